"""Tasks for lm-evaluation-harness over a file of one's own: multiple choice, and the bits per byte of gold answers."""

import math
from collections.abc import Mapping
from typing import Any

from fusion_ray.corpus.files import read_rows
from fusion_ray.errors import FusionRayError, RecipeError
from fusion_ray.recipe import LocalTask

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def task_config(task: LocalTask, chat_template: bool = False) -> dict[str, Any]:
    """What the harness is to do, as a task file of its own would say.

    `multiple_choice` has rows of `question`, `choices` (a list) and `answer` (index or letter), as MMLU has; the model
    chooses among the letters. `gold_answer` has rows of `question` and `answer`; the answer's bits per byte are
    measured, given the question.

    Args:
        task: Of the recipe.
        chat_template: Whether a chat template separates question and answer; else a space does.

    Raises:
        RecipeError: The file cannot be read, or a row has other columns.
    """
    read = _read_choice if task.kind == "multiple_choice" else _read_gold
    paths = {"test": task.path} | ({"few_shot": task.few_shot_path} if task.few_shot_path else {})
    rows = {split: _read_file(path, task, read) for split, path in paths.items()}
    common = {
        "task": task.name,
        "custom_dataset": lambda **_: _datasets(rows),
        "test_split": "test",
        "fewshot_split": "few_shot" if task.few_shot_path else "test",
        "fewshot_config": {"sampler": "first_n"} if task.few_shot_path else {},
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "answer",
        "metadata": {"version": 1.0},
    }
    if task.kind == "multiple_choice":
        return common | _CHOICE
    # The space is written out, because the harness puts its delimiter before choices only.
    return common | _GOLD | {"doc_to_target": "{{answer}}" if chat_template else " {{answer}}", "target_delimiter": ""}


def _datasets(rows: Mapping[str, list[dict[str, Any]]]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(found) for split, found in rows.items()})


def _read_file(path: str, task: LocalTask, read: Any) -> list[dict[str, Any]]:
    try:
        rows = [read(row) for row in read_rows(path)]
    except (FusionRayError, OSError, KeyError, TypeError, ValueError) as error:
        columns = "question, choices, answer (index or letter)" if read is _read_choice else "question, answer"
        raise RecipeError(
            f"evaluate.tasks.{task.name}: {path} cannot be used ({type(error).__name__}: {error}). Expected JSONL, "
            f"Parquet or Arrow with the columns {columns}."
        ) from error
    if not rows:
        raise RecipeError(f"evaluate.tasks.{task.name}: {path} holds no rows.")
    return rows


def _read_choice(row: Mapping[str, Any] | str) -> dict[str, Any]:
    if isinstance(row, str):
        raise ValueError(row)
    choices, answer = [str(choice) for choice in row["choices"]], row["answer"]
    right = _LETTERS.index(answer.strip().upper()) if isinstance(answer, str) and not answer.isdigit() else int(answer)
    if not 0 <= right < len(choices) <= len(_LETTERS):
        raise ValueError(f"answer {answer!r} is none of {len(choices)} choices")
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False)]
    prompt = "\n".join([str(row["question"]).strip(), *lines, "Answer:"])
    return {"prompt": prompt, "letters": list(_LETTERS[: len(choices)]), "answer": right}


def _read_gold(row: Mapping[str, Any] | str) -> dict[str, Any]:
    if isinstance(row, str):
        raise ValueError(row)
    question, answer = row["question"], row["answer"]
    if not (isinstance(question, str) and isinstance(answer, str) and question and answer):
        raise ValueError("question and answer must be texts that are not empty")
    return {"prompt": question, "answer": answer}


def _bits_per_byte(row: Mapping[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """The nll of the gold answer in nats (negative) and its bytes: the harness's own `bits_per_byte` divides sums."""
    logprob, _ = results[0]
    return {"bits_per_byte": (logprob, len(row["answer"].encode()))}


_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "letters",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
_GOLD = {
    "output_type": "loglikelihood",
    "process_results": _bits_per_byte,
    "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
}


def per_document(value: Any) -> tuple[float, float] | None:
    """A document's value as a sum and a count whose totals give the mean; None where it is no number.

    Args:
        value: As the harness logs it: a number, or log-probability in nats and bytes.

    >>> per_document(True), per_document("text")
    ((1.0, 1.0), None)
    """
    if isinstance(value, bool | int | float):
        return (float(value), 1.0)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, int | float) for part in value):
        return (-float(value[0]) / math.log(2.0), float(value[1]))
    return None
