"""Judge and benchmarks end to end: a run of toys; the judge is a tiny model behind a real `vllm serve`."""

import importlib.util
import json
from pathlib import Path

import pytest
from toys.models import byte_level_tokenizer, save_toy
from toys.run import make_run
from toys.vllm_server import vllm_server

from fusion_ray.pipeline.run import run
from fusion_ray.recipe import parse_recipe
from fusion_ray.report.reading import RunReport

# Ray sets its own deprecated options while it makes its defaults.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

MODELS = ["pivot", "source:math", "sft", "target:math", "merged"]
# A model this small writes no verdict by itself: the server holds it to the form, its choice stays its own.
FORM = {"structured_outputs": {"regex": r"(\[\[[ABC]\]\]) Rating: (\[\[[1-9]\]\])"}}


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_all_models_answer_are_judged_in_both_orders_and_nothing_is_asked_twice(tmp_path: Path, engine: str) -> None:
    recipe = make_run(tmp_path, distributions={"top_k": 4, "engine": engine})
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Make it <b>bold</b>."]},
        {"question_id": 101, "category": "math", "turns": ["What is 2 squared?"], "reference": ["4"]},
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    exam = tmp_path / "exam.jsonl"
    choices = [{"question": f"{n}?", "choices": ["yes", "no"], "answer": n % 2} for n in range(10)]
    exam.write_text("".join(json.dumps(row) + "\n" for row in choices))
    evaluate = {"tasks": [{"kind": "multiple_choice", "name": "exam", "path": str(exam)}]}
    folder = save_toy(tmp_path / "judge", "llama", byte_level_tokenizer(), max_position_embeddings=4096)
    with vllm_server(folder, tmp_path / "server.txt", "--served-model-name", "toy-judge") as address:
        judge = {
            "base_url": address, "model": "toy-judge", "questions": str(questions), "answer_tokens": 12,
            "judgment_tokens": 40, "options": FORM, "usd_per_million_input_tokens": 1.0,
        }  # fmt: skip
        judged = parse_recipe(recipe.model_dump(mode="json") | {"judge": judge, "evaluate": evaluate})
        run(judged)
    place = Path(judged.folder) / "6_report"
    found = RunReport.read(judged.folder).content["judge"]
    benchmarks = RunReport.read(judged.folder).content["benchmarks"]
    judgments = [json.loads(line) for line in (place / "judge" / "judgments.jsonl").read_text().splitlines()]

    assert list(found["ratings"]) == MODELS
    assert all(1 <= rating["overall"] <= 9 and rating["readable"] == 3 for rating in found["ratings"].values())
    assert found["ratings"]["merged"].keys() == {
        "overall", "turn 1", "turn 2", "category writing", "category math", "readable",
    }  # fmt: skip
    assert list(found["pairs"]) == [f"merged - {model}" for model in MODELS[:-1]]
    assert all(pair["wins"] + pair["ties"] + pair["losses"] == 3 for pair in found["pairs"].values())
    # Three turns: five ratings each, and four pairs in two orders.
    assert found["judgments"] == len(judgments) == 3 * (5 + 4 * 2) and found["unreadable"] == 0
    assert found["tokens"]["input"] > 0 and found["usd"] == pytest.approx(found["tokens"]["input"] / 1e6)

    exams = benchmarks["tasks"]["exam"]["acc"]
    assert list(exams["values"]) == MODELS and exams["documents"] == 10
    assert exams["differences"].keys() == {f"merged - {model}" for model in MODELS[:-1]}

    replies = {path: path.read_bytes() for path in (place / "judge" / "replies").iterdir()}
    texts = [json.loads(content)["request"]["messages"][1]["content"] for content in replies.values()]
    merged, sft = (_answers(place, model) for model in ("merged", "sft"))
    both = [
        t for t in texts if "ANSWER OF A" in t and "2 squared" in t and merged["101"][0] in t and sft["101"][0] in t
    ]
    assert {t.find(merged["101"][0], t.find("ANSWER OF A")) < t.find("ANSWER OF B") for t in both} == {True, False}

    # The server is gone: what was asked before is not asked again, and every byte comes out the same.
    before = {path: path.read_bytes() for name in ("judge", "benchmarks") for path in (place / name).rglob("*.json*")}
    made = {path: path.stat().st_mtime_ns for path in before if path.name != "judgments.jsonl"}
    (place / "MANIFEST.json").unlink()
    run(judged)
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.stat().st_mtime_ns for path in made} == made
    again = RunReport.read(judged.folder).content
    assert (again["judge"], again["benchmarks"]) == (found, benchmarks)


def _answers(place: Path, model: str) -> dict[str, list[str]]:
    lines = (place / "judge" / "answers" / f"{model}.jsonl").read_text().splitlines()
    return {row["question_id"]: row["choices"][0]["turns"] for row in map(json.loads, lines)}
