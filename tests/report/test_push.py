"""What a push would send, read off a folder."""

from pathlib import Path

import pytest

from fusion_ray.errors import MissingArtifactError
from fusion_ray.report.push import pack


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, as far as a push looks at it."""
    merged = tmp_path / "run" / "5_merged"
    merged.mkdir(parents=True)
    card = "---\nbase_model:\n- ./models/pivot\n- org/name\n---\n\nSee https://example.org/a/b and and/or.\n"
    for name, text in {
        "config.json": "{}", "model.safetensors": "weights", "README.md": card, "MANIFEST.json": "{}", ".hidden": "x",
    }.items():  # fmt: skip
        (merged / name).write_text(text)
    return tmp_path / "run"


def test_what_is_no_finished_model_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "5_merged" / "MANIFEST.json").unlink()
    for folder in (run, tmp_path):
        with pytest.raises(MissingArtifactError, match="no finished merged model"):
            pack(str(folder))
