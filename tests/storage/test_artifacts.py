"""What an artifact's fingerprint depends on: everything that it is made from, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

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


def made(stage: str, role: Any = "main", model: str = "", source: str = "", round_: int = 0) -> Artifact:
    return Artifact(run="r", stage=stage, role=role, model=model, source=source, round=round_)


@pytest.mark.parametrize(
    ("artifact", "name", "folder", "recipe_model"),
    [
        (made("corpus"), "", "1_corpus", ""),
        (made("distributions", model="pivot"), "pivot", "2_distributions/pivot", "pivot"),
        (made("answers", source="math"), "math", "2_answers/math", "math"),
        (made("distributions", "answers", "code", "math"), "answers/math/code", "2_distributions/answers/math/code",
         "code"),
        (made("distributions", "anchor", "gold"), "gold", "2_distributions/gold", "pivot"),
        (made("distributions", "anchor", "merged", round_=1), "round-1", "2_distributions/round-1", "pivot"),
        (made("fused", source="math", round_=2), "round-2/math", "3_fused/round-2/math", "math"),
        (made("targets", "control", "gold"), "gold", "4_targets/gold", "gold"),
        (made("targets", model="math", round_=1), "round-1/math", "4_targets/round-1/math", "math"),
        (made("merged"), "", "5_merged", ""),
        (made("merged", round_=1), "round-1", "4_targets/round-1/merged", ""),
    ],
)  # fmt: skip
def test_the_name_and_the_folder_of_an_artifact_follow_from_what_it_is(
    artifact: Artifact, name: str, folder: str, recipe_model: str
) -> None:
    assert (artifact.name, artifact.folder, artifact.recipe_model) == (name, f"r/{folder}", recipe_model)
    assert str(artifact) == (f"{artifact.stage}/{name}" if name else artifact.stage)


def test_inputs_are_found_by_what_they_are() -> None:
    corpus, answers = made("corpus"), made("answers", source="math")
    scores = [made("distributions", model=model) for model in ("pivot", "math")]
    anchor, control = made("distributions", "anchor", "gold"), made("targets", "control", "gold")
    fused = replace(FUSED, inputs=(corpus, *scores, anchor))
    assert fused.chats is corpus and replace(FUSED, inputs=(answers, *scores)).chats is answers
    assert fused.scores == {"pivot": scores[0], "math": scores[1]}
    assert fused.inputs_of("distributions") == scores
    assert fused.input_of("distributions", "anchor") is anchor
    with pytest.raises(ValueError, match="too many"):
        fused.input_of("distributions")
    assert fused.start is None
    for start in (control, made("merged", round_=1)):
        assert replace(FUSED, inputs=(corpus, *scores, start)).start is start


def test_what_a_fingerprint_covers_is_named_part_by_part() -> None:
    assert FUSED.parts == {
        "code": artifacts.CODE_VERSIONS["fused"], "setting align.kind": "bytes", "setting top_k": 4,
        "input corpus": CORPUS.fingerprint, "model pivot": PIVOT.fingerprint,
    }  # fmt: skip
    assert CORPUS.parts == {"code": artifacts.CODE_VERSIONS["corpus"], "setting seed": 0, "content chats": "2"}
    assert made("targets", "control", "gold").parts == {"code": 1, "arm": "gold"}
    assert made("targets", model="gold").parts == {"code": 1}
    assert repr(CORPUS) == f"<corpus {CORPUS.fingerprint}>"


def test_every_change_is_told_in_words_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = replace(FUSED, run=str(tmp_path))
    written = write_manifest(artifact, seconds=1)
    model = replace(PIVOT, hashes={"config.json": "9"})
    changed = replace(artifact, settings={"top_k": 5}, models={"pivot": model}, inputs=(replace(CORPUS, contents={}),))
    before = artifacts.CODE_VERSIONS["fused"]
    monkeypatch.setitem(artifacts.CODE_VERSIONS, "fused", before + 5)
    assert changed.why_stale(written) == [
        f"code was {before}, is {before + 5}", "input corpus changed", "model pivot changed",
        "align.kind was 'bytes', is None", "top_k was 4, is 5",
    ]  # fmt: skip
    other = replace(artifact)
    assert other.why_stale(replace(written, parts=other.parts, fingerprint="x")) == ["its recorded parts"]


def test_a_manifest_is_the_json_of_all_that_it_was_told(tmp_path: Path) -> None:
    artifact = replace(FUSED, run=str(tmp_path))
    shard = ShardRecord("train/0.parquet", 3, 9, "h", {"rejected": []})
    write_manifest(artifact, seconds=2.0006, shards=[shard], files={"a": "1"}, facts={"b": 2}, peak_bytes={"driver": 7})
    text = Path(artifact.folder, "MANIFEST.json").read_text()
    told = {
        "facts": {"b": 2}, "files": {"a": "1"}, "fingerprint": artifact.fingerprint, "name": "math",
        "parts": artifact.parts, "peak_bytes": {"driver": 7}, "seconds": 2.001,
        "shards": [{"path": "train/0.parquet", "rows": 3, "bytes": 9, "sha256": "h", "facts": {"rejected": []}}],
        "stage": "fused", "versions": artifacts.versions(),
    }  # fmt: skip
    assert text == json.dumps(told, indent=1, sort_keys=True)
    assert {"python", "fusion_ray", "torch", "numpy"} <= artifacts.versions().keys()
    assert write_manifest(artifact, seconds=0, peak_bytes={}).peak_bytes == {}
