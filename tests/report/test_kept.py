"""What the report makes of each model once and keeps, here one after the other, without Ray."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fusion_ray.progress import Progress
from fusion_ray.recipe import Distributions, parse_recipe
from fusion_ray.report import examples, kept
from fusion_ray.report.evaluated_models import list_evaluated_models
from fusion_ray.report.examples import HeldoutShards, make_samples
from fusion_ray.report.heldout import HeldOut
from fusion_ray.report.history import describe_artifact, describe_report
from fusion_ray.report.kept import make_missing
from fusion_ray.report.samples import Prompt
from fusion_ray.report.statistics.rates import Scores
from fusion_ray.storage.artifacts import Artifact, read_manifest, write_manifest
from fusion_ray.storage.model_files import ModelFiles
from fusion_ray.storage.shards import write_shard


def one_by_one(items: list[Any], work: Callable[[Any], Any], _: Any) -> Iterator[Any]:
    """As a cluster would do it, in the opposite order."""
    yield from map(work, reversed(items))


def test_only_what_is_not_kept_is_made_and_all_comes_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept.streams, "stream_with_models", one_by_one)
    models: Any = [SimpleNamespace(label=label) for label in ("pivot", "sft", "merged")]
    have: dict[str, Any] = {"sft": ["old"]}
    written: list[tuple[str, Any]] = []
    told: list[Progress] = []
    found = make_missing(
        models,
        lambda model: have.get(model.label),
        lambda model: [model.label],
        lambda model, made: written.append((model.label, made)),
        Distributions(),
        told.append,
        "answers",
    )
    assert list(found.items()) == [("pivot", ["pivot"]), ("sft", ["old"]), ("merged", ["merged"])]
    assert written == [("merged", ["merged"]), ("pivot", ["pivot"])]
    assert [(p.what, p.done, p.total, p.detail) for p in told] == [
        ("report", 1, 3, "answers of merged"), ("report", 2, 3, "answers of pivot"),
    ]  # fmt: skip


def test_a_row_of_the_held_out_shards_is_a_table_of_one(tmp_path: Path) -> None:
    tables = [pa.table({"id": [f"{shard}{row}" for row in range(3)]}) for shard in "ab"]
    records = tuple(write_shard(str(tmp_path), f"{n}.parquet", table, "f", {}) for n, table in enumerate(tables))
    shards = HeldoutShards(str(tmp_path), records)
    assert shards.row(1, 2).to_pydict() == {"id": ["b2"]}
    assert shards.row(0, 0).to_pydict() == {"id": ["a0"]}


def test_all_models_continue_the_same_prompts_up_to_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any, dict[str, Any]]] = []

    class Echo:
        def __init__(self, folder: str, trust_remote_code: bool) -> None:
            self.folder, self.trusts = folder, trust_remote_code

        def generate(self, prompts: Any, **how: Any) -> list[str]:
            asked.append((self.folder, [ids.tolist() for ids in prompts], how | {"trusts": self.trusts}))
            return [f"{self.folder} {len(prompts)}"] * len(prompts)

    monkeypatch.setattr(examples, "TransformersGenerator", Echo)
    monkeypatch.setattr(examples.streams, "stream_with_models", one_by_one)
    ends = iter((7, None))
    prompt = lambda *_: Prompt("a", "x", [], "gold", np.array([1, 2]), next(ends))  # noqa: E731
    monkeypatch.setattr(examples, "_prompt", prompt)
    recipe = parse_recipe(
        {
            "name": "x", "pivot": {"model": "p"}, "sources": [{"name": "m", "model": "m"}], "corpus": {"path": "c"},
            "report": {"samples": 2, "sample_tokens": 5},
        }
    )  # fmt: skip
    scores = Scores(("pivot", "merged"), np.ones((2, 3)), np.ones(3, dtype=np.int64), np.array(["x"] * 3, dtype=object))
    heldout = HeldOut(scores, ("a", "b", "c"), ((0, 0), (0, 1), (0, 2)), {}, {})
    models: Any = {"pivot": SimpleNamespace(folder="one"), "merged": SimpleNamespace(folder="two")}
    shards = HeldoutShards("", ())
    told: list[Progress] = []
    found = make_samples(recipe, models, shards, shards, heldout, told.append)
    how = {"max_tokens": 5, "end_ids": [7], "trusts": False}
    assert asked == [("two", [[1, 2], [1, 2]], how), ("one", [[1, 2], [1, 2]], how)]
    assert [sample["answers"] for sample in found] == [{"pivot": "one 2", "merged": "two 2"}] * 2
    assert [list(sample["answers"]) for sample in found] == [["pivot", "merged"]] * 2
    assert [(p.done, p.total, p.detail) for p in told] == [
        (1, 3, "sample answers of merged"), (2, 3, "sample answers of pivot"),
    ]  # fmt: skip
    none = recipe.model_copy(update={"report": recipe.report.model_copy(update={"samples": 0})})
    assert make_samples(none, models, shards, shards, heldout, told.append) == [] and len(told) == 2


def test_an_artifact_is_described_by_its_manifest_and_all_its_files(tmp_path: Path) -> None:
    artifact = Artifact(run=str(tmp_path), stage="fused", source="math")
    record = write_shard(artifact.folder, "train/0.parquet", pa.table({"id": ["a", "b"]}), artifact.fingerprint, {})
    for facts, tokens in (({"tokens": 5, "answer_tokens": 3}, 5), ({"answer_tokens": 3}, 3), ({}, None)):
        write_manifest(artifact, seconds=2.0, shards=[record], facts=facts)
        found = describe_artifact(artifact, read_manifest(artifact.folder))
        assert (found["stage"], found["name"], found["seconds"], found["rows"]) == ("fused", "math", 2.0, 2)
        assert (found["tokens"], found["facts"]) == (tokens, facts)
        assert found["bytes"] == sum(path.stat().st_size for path in Path(artifact.folder).rglob("*") if path.is_file())
        assert found["bytes"] > (Path(artifact.folder) / "train" / "0.parquet").stat().st_size > 0
    report = Artifact(run=str(tmp_path), stage="report")
    own = describe_report(report, 1.23456, {"driver": 7}, {"documents": 9})
    assert (own["rows"], own["seconds"], own["peak_bytes"], own["bytes"]) == (9, 1.235, {"driver": 7}, 0)


def test_models_are_evaluated_with_their_own_engine_and_trained_ones_as_the_pivot(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {
            "name": "x", "pivot": {"model": "p"}, "corpus": {"path": "c"}, "distributions": {"engine": "vllm"},
            "sources": [{"name": "m", "model": "m"}, {"name": "n", "model": "n", "engine": "transformers"}],
        }
    )  # fmt: skip
    files: Any = {name: ModelFiles(name, str(tmp_path / name), "", {"x": name}) for name in ("pivot", "m", "n")}
    report = Artifact(run=str(tmp_path), stage="report", models=files)
    made = {name: Artifact(run=str(tmp_path), stage="distributions", model=name) for name in ("pivot", "m", "n")}
    made["merged"] = Artifact(run=str(tmp_path), stage="merged")
    Path(made["merged"].folder).mkdir()
    (Path(made["merged"].folder) / "config.json").write_text("{}")
    found = {each.label: each for each in list_evaluated_models(recipe, report, made)}
    assert list(found) == ["pivot", "m", "n", "merged"]
    assert {label: each.engine.kind for label, each in found.items() if label != "merged"} == {
        "pivot": "vllm", "m": "vllm", "n": "transformers",
    }  # fmt: skip
    assert found["m"].model.model == "m" and found["merged"].model == recipe.pivot
    assert found["m"].fingerprint == files["m"].fingerprint and found["m"].files == files["m"]
    assert found["merged"].fingerprint == made["merged"].fingerprint
    assert found["merged"].files.place == made["merged"].folder
