"""Making the demo: models trained in processes of their own, a failed one told, and nothing made twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fusion_ray.demo import prepare
from fusion_ray.demo.making import make_materials
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


def test_models_are_linked_from_a_folder_that_has_them_of_exactly_the_same(tmp_path: Path) -> None:
    models = tuple(replace(model, tokens=600) for model in TINY.models[:2])
    plan = replace(TINY, models=models)
    make_materials(tmp_path / "one", plan, 0, lambda _: None)
    told: list[Progress] = []
    beside = [tmp_path / "nowhere", tmp_path / "one"]
    longer = replace(plan, models=(models[0], replace(models[1], tokens=700)))
    make_materials(tmp_path / "two", longer, 0, told.append, beside)
    linked = [(p.what, p.done, p.total, p.detail) for p in told if "linked" in p.detail]
    assert linked == [("demo model code", 1, 1, f"linked from {tmp_path / 'one'}")]
    weights = [tmp_path / folder / "models" / "code" / "model.safetensors" for folder in ("one", "two")]
    assert weights[0].samefile(weights[1])
    trained = [p for p in told if p.what == "demo model reference"]
    assert (trained[-1].done, trained[-1].total) == (700, 700) and trained[-1].detail.startswith("loss ")
    told.clear()
    make_materials(tmp_path / "two", longer, 1, told.append, beside)
    assert not [p for p in told if "linked" in p.detail or p.detail == "already there"], "another seed is another demo"
    assert sorted(path.name for path in (tmp_path / "two" / "models").iterdir()) == ["code", "reference"]


def test_equal_seeds_train_equal_models_and_each_model_has_a_seed_of_its_own(tmp_path: Path) -> None:
    models = tuple(replace(TINY.models[0], name=name, tokens=600) for name in ("a", "b"))
    for folder in ("one", "two"):
        make_materials(tmp_path / folder, replace(TINY, models=models), 0, lambda _: None)
    same = [(tmp_path / folder / "models" / "a" / "model.safetensors").read_bytes() for folder in ("one", "two")]
    assert same[0] == same[1] != (tmp_path / "one" / "models" / "b" / "model.safetensors").read_bytes()
    seeds = [
        json.loads((tmp_path / "one" / "models" / name / "demo.json").read_text())["plan"]["seed"] for name in "ab"
    ]
    assert seeds == [0, 1]
    make_materials(tmp_path / "one", replace(TINY, models=models), 3, lambda _: None)
    assert json.loads((tmp_path / "one" / "models" / "b" / "demo.json").read_text())["plan"]["seed"] == 3001


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
