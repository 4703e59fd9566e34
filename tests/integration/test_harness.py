"""lm-evaluation-harness on a toy model with local data: its numbers are the ones that the model itself gives."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toys.models import FLOAT32, byte_level_tokenizer, save_toy

from fusion_ray.models.folders import load_model
from fusion_ray.recipe import Evaluate
from fusion_ray.report.harness import run_harness

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # lm_eval and datasets warn of each other.

CHOICES = [
    {"question": f"What is {n} plus one?", "choices": [str(n), str(n + 1), str(n + 2)], "answer": "B" if n % 2 else 2}
    for n in range(5)
]
GOLD = [{"question": f"Say {n}:", "answer": f"It is {n}, ü."} for n in range(4)]
OWN = """task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("m") / "toy", "llama", byte_level_tokenizer(), extra_rows=0)


def logprob(folder: str, prompt: str, answer: str) -> float:
    """What the model gives the answer's tokens, one forward pass."""
    tokenizer, model = byte_level_tokenizer(), load_model(folder)
    start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    ids = torch.tensor([tokenizer(prompt + answer, add_special_tokens=False).input_ids])
    logprobs = model(ids).logits.float().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return float(logprobs[start - 1 :].sum())


def test_local_tasks_give_the_models_own_numbers(folder: str, tmp_path: Path) -> None:
    exam, gold = tmp_path / "exam.parquet", tmp_path / "gold.jsonl"
    rows = [row | {"answer": str(row["answer"])} for row in CHOICES]
    pq.write_table(pa.Table.from_pylist(rows), exam)
    gold.write_text("".join(json.dumps(row) + "\n" for row in GOLD))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(OWN.format(path=gold))
    tasks = [
        {"kind": "multiple_choice", "name": "exam", "path": str(exam)},
        {"kind": "gold_answer", "name": "gold", "path": str(gold)},
        "own",
    ]
    settings = Evaluate.model_validate({"tasks": tasks, "folder": str(tmp_path / "tasks")})
    found = run_harness(folder, FLOAT32, settings)
    assert {name: result["documents"] for name, result in found.items()} == {"exam": 5, "gold": 4, "own": 4}

    right = []
    for row in CHOICES:
        lines = [f"{letter}. {choice}" for letter, choice in zip("ABC", row["choices"], strict=True)]  # type: ignore[call-overload]
        prompt = "\n".join([str(row["question"]), *lines, "Answer:"])
        scores = [logprob(folder, prompt, f" {letter}") for letter in "ABC"]
        right.append(float(scores.index(max(scores)) == (1 if row["answer"] == "B" else 2)))
    assert [value for value, _ in found["exam"]["values"]["acc"]] == right
    assert found["exam"]["metrics"]["acc"] == pytest.approx(sum(right) / 5)

    nats = sum(logprob(folder, row["question"], f" {row['answer']}") for row in GOLD)
    n_bytes = sum(len(row["answer"].encode()) for row in GOLD)
    assert found["gold"]["metrics"]["bits_per_byte"] == pytest.approx(-nats / math.log(2) / n_bytes, rel=1e-4)
    assert found["gold"]["higher_is_better"] == {"bits_per_byte": False}
    assert found["own"]["metrics"].keys() == {"acc"}
