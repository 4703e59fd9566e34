"""Making the demo: models trained in processes of their own, a failed one told, and nothing made twice."""

from dataclasses import replace
from pathlib import Path

import pytest

from fusion_ray.demo import prepare
from fusion_ray.demo.plans import PLANS, TINY
from fusion_ray.errors import EngineError
from fusion_ray.progress import Progress


def test_a_failed_training_tells_what_the_process_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impossible = replace(TINY.models[0], architecture="no_such_architecture")
    monkeypatch.setitem(PLANS, "tiny", replace(TINY, models=(impossible,), apart=True))
    with pytest.raises(EngineError, match="no_such_architecture"):
        prepare(tmp_path, size="tiny")
    assert not (tmp_path / "models" / "code").exists()


def test_a_second_call_makes_nothing_anew_and_a_damaged_folder_only_what_is_missing(tmp_path: Path) -> None:
    prepare(tmp_path, size="tiny")
    before = _bytes_of(tmp_path / "models")
    told: list[Progress] = []
    prepare(tmp_path, size="tiny", progress=told.append)
    assert {progress.detail for progress in told} == {"already there"}
    (tmp_path / "models" / "reference" / "model.safetensors").unlink()
    (tmp_path / "chats.jsonl").unlink()
    told.clear()
    prepare(tmp_path, size="tiny", progress=told.append)
    assert {p.what for p in told if p.detail != "already there"} == {"demo chats", "demo model reference"}
    assert _bytes_of(tmp_path / "models") == before


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
