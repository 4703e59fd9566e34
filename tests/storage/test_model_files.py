"""Which files make a model, where a node reads them, and what their fingerprint covers."""

import hashlib
from pathlib import Path

import pytest

from fusion_ray.errors import MissingArtifactError, RecipeError
from fusion_ray.storage.filesystem import stamp
from fusion_ray.storage.model_files import (
    ModelFiles,
    config_sections,
    file_hash,
    find_model,
    text_config,
    trained_model,
    why_no_tokenizer,
    why_no_weights,
)
from fusion_ray.storage.node_cache import fetch_folder
from fusion_ray.storage.run_folder import MANIFEST, find_merged, stage_folder

GOOD = ("config.json", "tokenizer.json", "model.safetensors", "code.py", "merges.txt")
BESIDE = (MANIFEST, "picture.png", "pytorch_model.bin")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a model with files beside it that are none of its own, and a cache of hashes of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (*GOOD, *BESIDE):
        (folder / name).write_text(name)
    return folder


def test_a_model_is_all_its_files_by_content_and_nothing_beside_them(model: Path) -> None:
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in GOOD}
    assert find_model(str(model)) == ModelFiles(str(model), str(model), "", hashes)


def test_the_weights_of_a_model_in_a_store_are_told_by_size_and_time(model: Path) -> None:
    uri = f"file://{model}/"
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in GOOD}
    hashes["model.safetensors"] = stamp(str(model / "model.safetensors"))
    assert find_model(uri) == ModelFiles(uri, uri.rstrip("/"), "", hashes)
    with pytest.raises(RecipeError, match="nothing there"):
        find_model(f"{uri}nowhere")


def test_a_hash_is_computed_once_and_a_cache_that_cannot_be_written_changes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, expected = model / "config.json", hashlib.sha256(b"config.json").hexdigest()
    assert file_hash(file) == expected
    (entry,) = (tmp_path / "cache" / "fusion_ray" / "hashes").iterdir()
    assert entry.read_text() == expected
    entry.write_text("remembered")
    file_hash(model / "merges.txt")
    assert len(list(entry.parent.iterdir())) == 2
    assert file_hash(file) == "remembered"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert file_hash(file) == expected


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("./name", "no such folder"),
        ("/nowhere", "no such folder"),
        ("~/nowhere", "no such folder"),
        ("name", "no such folder"),
        ("a/b/c", "no such folder"),
        ("org/name", "neither a folder here nor a model that the Hub gave"),
        ("org/name@main", "neither a folder here nor a model that the Hub gave"),
    ],
)
def test_only_an_organisation_and_a_name_are_looked_for_on_the_hub(reference: str, said: str) -> None:
    with pytest.raises(RecipeError, match=f"model '{reference}': {said}"):
        find_model(reference)


def test_a_node_reads_a_model_where_it_is_or_says_why_it_cannot(tmp_path: Path) -> None:
    here, gone = str(tmp_path), str(tmp_path / "gone")
    assert ModelFiles("x", "", "", {}).folder == ""
    assert ModelFiles("x", here, "", {}).folder == ModelFiles("org/x", here, "abc", {}).folder == here
    assert ModelFiles("x", f"file://{here}", "", {}).folder == here
    assert ModelFiles("x", f"file://{here}", "", {}).readable == f"file://{here}"
    assert ModelFiles("x", here, "", {}).readable == here
    with pytest.raises(RecipeError, match=r"model 'org/x@abc': neither a folder"):
        ModelFiles("org/x@main", gone, "abc", {}).folder  # noqa: B018
    with pytest.raises(RecipeError, match=f"model 'x': {gone} is no folder of this node"):
        ModelFiles("x", gone, "", {}).readable  # noqa: B018


def test_a_trained_model_is_named_by_an_address_that_holds_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert trained_model("math", "runs/x") == ModelFiles("math", str(tmp_path / "runs" / "x"), "", {})
    assert trained_model("math", "s3://b/x").place == "s3://b/x"


def test_what_a_folder_lacks_is_said_and_of_pickles_the_first() -> None:
    assert why_no_tokenizer(["x", "vocab.json"]) == why_no_weights(["b.bin", "a.safetensors"]) == ""
    assert why_no_tokenizer(["x"]).startswith("has no tokenizer (looked for tokenizer.json, ")
    assert why_no_weights(["z.bin", "b.pt"]).startswith("holds only pickled weights (b.pt), ")
    assert why_no_weights(["config.json"]).startswith("has no weights (")


def test_the_text_model_s_config_goes_before_that_of_the_whole() -> None:
    config = {"a": 1, "b": 2, "text_config": {"b": 3}}
    assert config_sections(config) == [config, {"b": 3}]
    assert text_config(config) == config | {"b": 3}
    assert config_sections({"text_config": "x"}) == [{"text_config": "x"}]


def test_a_run_that_has_merged_is_read_as_its_merged_model(tmp_path: Path) -> None:
    assert find_merged(str(tmp_path)) == str(tmp_path)
    (tmp_path / "5_merged").mkdir()
    assert find_merged(str(tmp_path)) == stage_folder(str(tmp_path), "merged") == f"{tmp_path}/5_merged"
    stages = ("corpus", "distributions", "answers", "fused", "targets", "report")
    assert [stage_folder("r", stage) for stage in stages] == [
        "r/1_corpus", "r/2_distributions", "r/2_answers", "r/3_fused", "r/4_targets", "r/6_report"
    ]  # fmt: skip


def test_a_local_folder_is_not_copied_for_a_node_and_must_be_local_or_there(tmp_path: Path) -> None:
    assert fetch_folder(f"file://{tmp_path}", ("*.json",)) == tmp_path
    with pytest.raises(MissingArtifactError):
        stamp(str(tmp_path))
