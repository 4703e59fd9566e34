"""Tasks of one's own for lm-evaluation-harness: a row that is no question is refused before any model is opened."""

import json
from pathlib import Path
from typing import Any

import pytest
from toys.models import byte_level_tokenizer, save_toy

from fusion_ray.errors import RecipeError
from fusion_ray.recipe import Evaluate, TransformersEngine
from fusion_ray.report.harness import run_harness

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # lm_eval and datasets warn of each other.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("m") / "toy", "llama", byte_level_tokenizer(), extra_rows=0)


def evaluate(*tasks: Any, **settings: Any) -> Evaluate:
    return Evaluate.model_validate({"tasks": tasks} | settings)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "a", "choices": ["x", "y"], "answer": "C"}, "answer 'C' is none of 2 choices"),
        ({"question": "a", "answer": 0}, "KeyError: 'choices'"),
        ([1], "not a JSON object"),
    ],
)
def test_a_row_that_is_no_question_is_an_error_that_names_the_columns(
    row: Any, expected: str, folder: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(row) + "\n")
    settings = evaluate({"kind": "multiple_choice", "name": "bad", "path": str(path)})
    with pytest.raises(RecipeError, match=rf"evaluate.tasks.bad: .*{expected}.*question, choices, answer"):
        run_harness(folder, TransformersEngine(), settings)
