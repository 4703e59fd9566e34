"""A planted failure, run for real: the only source knows nothing, and the report must say so plainly."""

from pathlib import Path

import pytest
from toys.run import make_recipe

from fusion_ray.pipeline.run import run
from fusion_ray.report.reading import RunReport

# Ray sets its own deprecated options while it makes its defaults; DeepSpeed and Torch warn of each other.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def test_a_source_that_knows_nothing_is_reported_as_no_help(tmp_path: Path) -> None:
    targets = {
        "lambda_": 0.3, "epochs": 4, "learning_rate": 1e-3, "tokens_per_step": 1024, "tokens_per_batch": 1024,
        "max_length": 256, "dtype": "float32", "zero_stage": 0,
    }  # fmt: skip
    recipe = make_recipe(tmp_path, rows=100, targets=targets)
    run(recipe)
    report = RunReport.read(recipe.folder).content
    assert report["bits_per_byte"]["sft"]["overall"] < report["bits_per_byte"]["pivot"]["overall"]
    assert report["verdict"]["helped"] is False
    assert report["verdict"]["text"].startswith("Fusion did not help: ")
    page = (Path(recipe.folder) / "6_report" / "report.html").read_text(encoding="utf-8")
    assert 'class="verdict failed"' in page
