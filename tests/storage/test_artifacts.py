"""What an artifact's fingerprint depends on: everything that it is made from, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from fusion_ray.errors import CorruptArtifactError, MissingArtifactError
from fusion_ray.storage import artifacts
from fusion_ray.storage.artifacts import Artifact, model_folder, read_manifest, write_manifest
from fusion_ray.storage.model_files import ModelFiles
from fusion_ray.storage.shards import ShardRecord

PIVOT = ModelFiles("pivot", "/pivot", "", {"config.json": "1"})
CORPUS = Artifact(run="runs/x", stage="corpus", settings={"seed": 0}, contents={"chats": "2"})
FUSED = Artifact(
    run="runs/x", stage="fused", source="math", settings={"align": {"kind": "bytes"}, "top_k": 4}, inputs=(CORPUS,),
    models={"pivot": PIVOT},
)  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        replace(FUSED, settings={"align": {"kind": "em"}, "top_k": 4}),
        replace(FUSED, settings={"align": {"kind": "bytes"}, "top_k": 5}),
        replace(FUSED, inputs=(replace(CORPUS, settings={"seed": 1}),)),
        replace(FUSED, inputs=(replace(CORPUS, contents={"chats": "3"}),)),
        replace(FUSED, inputs=()),
        replace(FUSED, models={"pivot": replace(PIVOT, hashes={"config.json": "9"})}),
        replace(FUSED, models={"pivot": PIVOT, "math": PIVOT}),
        replace(FUSED, stage="targets"),
    ],
)
def test_whatever_an_artifact_is_made_from_changes_its_fingerprint(changed: Artifact) -> None:
    assert changed.fingerprint != FUSED.fingerprint


def test_where_a_run_or_a_model_lies_changes_no_fingerprint() -> None:
    elsewhere = replace(FUSED, run="s3://b/runs/y", models={"pivot": ModelFiles("p", "/q", "", {"config.json": "1"})})
    assert elsewhere.fingerprint == FUSED.fingerprint


def test_a_stage_whose_results_change_has_a_code_version_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before, corpus = replace(FUSED).fingerprint, replace(CORPUS).fingerprint
    monkeypatch.setitem(artifacts.CODE_VERSIONS, "fused", artifacts.CODE_VERSIONS["fused"] + 1)
    assert replace(FUSED).fingerprint != before
    assert replace(CORPUS).fingerprint == corpus


def test_a_manifest_counts_rows_and_gives_the_shards_of_a_split_in_order(tmp_path: Path) -> None:
    artifact = replace(FUSED, run=str(tmp_path))
    shards = [ShardRecord(f"{split}/{n}.parquet", 3 + n, 9, "h", {}) for split in ("train", "heldout") for n in (0, 1)]
    written = write_manifest(artifact, seconds=1.23456, shards=shards, facts={"a": 1})
    found = read_manifest(artifact.folder)
    assert (found.rows, found.seconds, found.facts) == (14, 1.235, {"a": 1})
    assert found == written
    assert found.shards_of("heldout") == shards[2:]
    assert found.shards_of("held") == []
    assert artifact.why_stale(found) == []
    changed = replace(artifact, settings={"align": {"kind": "bytes"}, "top_k": 9})
    assert changed.why_stale(found) == ["top_k was 4, is 9"]


def test_what_is_no_manifest_or_no_model_is_said(tmp_path: Path) -> None:
    artifact = replace(FUSED, run=str(tmp_path))
    with pytest.raises(MissingArtifactError, match="never finished"):
        read_manifest(artifact.folder)
    with pytest.raises(MissingArtifactError, match="fused/math: no model in"):
        model_folder(artifact)
    folder = Path(artifact.folder)
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").write_text('{"shards": []}')
    with pytest.raises(CorruptArtifactError, match="not a manifest"):
        read_manifest(artifact.folder)
    (folder / "config.json").write_text("{}")
    assert model_folder(artifact) == str(folder)
