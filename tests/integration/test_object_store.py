"""Files, shards, manifests and models on an object store: whole or absent, through refusals, credentials apart."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from toys.models import byte_level_tokenizer, save_toy
from toys.store import Store, object_store

from fusion_ray.errors import CorruptArtifactError, MissingArtifactError, RecipeError
from fusion_ray.storage.artifacts import Artifact, read_manifest, retract_manifest, write_manifest
from fusion_ray.storage.checkpoint_writer import CheckpointWriter, Slot
from fusion_ray.storage.checkpoints import TensorReader, open_checkpoint, read_header
from fusion_ray.storage.filesystem import copy_folder, delete, exists, join, list_files, read_bytes, write_bytes
from fusion_ray.storage.model_files import find_model, trained_model
from fusion_ray.storage.node_cache import fetch_folder
from fusion_ray.storage.shards import find_shard, read_shard, write_shard


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with object_store(refuse_every=20, kind=request.param) as store:
        yield store


@pytest.fixture
def root(store: Store) -> str:
    return f"{store.root}/runs/toy"


def test_files_come_back_through_refusals(root: str, store: Store) -> None:
    for number in range(20):
        write_bytes(f"{root}/files/{number}", bytes([number]) * 100)
    assert [read_bytes(f"{root}/files/{number}") for number in range(20)] == [bytes([n]) * 100 for n in range(20)]
    assert len(list_files(f"{root}/files")) == 20
    assert store.counts().refused >= 2
    delete(f"{root}/files")
    assert not list_files(f"{root}/files")
    with pytest.raises(MissingArtifactError):
        read_bytes(f"{root}/files/3")


def test_large_files_come_back_while_the_store_is_asked_for_others(root: str, tmp_path: Path) -> None:
    data = {f"{number}.bin": bytes([number]) * (6 << 20) for number in range(3)}
    for name, content in data.items():
        write_bytes(f"{root}/large/{name}", content)
    copy_folder(f"{root}/large", str(tmp_path), list(data))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == data


def test_a_shard_and_its_manifest_are_found_again_and_damage_is_seen(root: str) -> None:
    table = pa.table({"id": [f"row-{n}" for n in range(500)]})
    record = write_shard(f"{root}/1_corpus", "train/00000.parquet", table, "abc", {"rejected": []})
    assert find_shard(f"{root}/1_corpus", "train/00000.parquet", "abc") == record
    assert find_shard(f"{root}/1_corpus", "train/00000.parquet", "other") is None
    artifact = Artifact(run=root, stage="corpus")
    write_manifest(artifact, seconds=1.0, shards=[record])
    assert read_shard(artifact.folder, read_manifest(artifact.folder).shards[0]).equals(table)
    data = bytearray(read_bytes(join(artifact.folder, record.path)))
    data[len(data) // 2] ^= 1
    write_bytes(join(artifact.folder, record.path), bytes(data))
    with pytest.raises(CorruptArtifactError):
        read_shard(artifact.folder, record)
    retract_manifest(artifact.folder)
    assert not exists(join(artifact.folder, "MANIFEST.json"))


def test_an_upload_that_breaks_off_leaves_no_object(root: str) -> None:
    uri = f"{root}/model/model.safetensors"
    with pytest.raises(ZeroDivisionError), CheckpointWriter(uri, [Slot("a", "F32", (3_000_000,))]) as writer:
        import numpy as np

        writer.write(np.ones(2_000_000, dtype=np.float32))
        raise ZeroDivisionError
    assert not exists(uri)


def test_a_checkpoint_is_written_and_read_by_offset(root: str) -> None:
    import numpy as np

    values = np.arange(200_000, dtype=np.float32)
    with CheckpointWriter(f"{root}/whole/model.safetensors", [Slot("a", "F32", (200_000,))]) as writer:
        writer.write(values)
    tensor = read_header(f"{root}/whole/model.safetensors")["a"]
    with TensorReader() as reader:
        assert np.array_equal(reader.read(tensor, 1_000, 1_500), values[1_000:1_500])
    assert open_checkpoint(f"{root}/whole").tensors["a"].size == 200_000


def test_a_model_in_a_store_is_fetched_once_a_node(
    root: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_RAY_CACHE", str(tmp_path / "cache"))
    here = save_toy(tmp_path / "pivot", "llama", byte_level_tokenizer())
    copy_folder(here, f"{root}/pivot", list_files(here))
    model = find_model(f"{root}/pivot")
    assert not (tmp_path / "cache").exists(), "finding a model, as `plan` does, must not fetch it"
    folder = Path(model.folder)
    needed = {name for name in list_files(here) if name != "MANIFEST.json"}
    assert {path.name for path in folder.iterdir()} == needed
    assert all((folder / name).read_bytes() == Path(here, name).read_bytes() for name in needed)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    asked = store.counts().asked
    assert model.folder == str(folder)
    assert store.counts().asked - asked < 3 * len(needed) + 10, "nothing is fetched twice"
    before = model.fingerprint
    write_bytes(f"{root}/pivot/config.json", read_bytes(f"{root}/pivot/config.json") + b"\n")
    changed = find_model(f"{root}/pivot")
    assert changed.fingerprint != before
    assert changed.folder != str(folder)


def test_a_trained_model_of_a_run_in_a_bucket_is_fetched_where_it_is_used(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = save_toy(tmp_path / "target", "llama", byte_level_tokenizer())
    copy_folder(here, f"{root}/4_targets/math", list_files(here))
    sent = pickle.dumps(trained_model("target:math", f"{root}/4_targets/math"))
    for node in ("one", "two"):
        monkeypatch.setenv("FUSION_RAY_CACHE", str(tmp_path / node))
        model = pickle.loads(sent)
        assert model.folder.startswith(str(tmp_path / node))
        assert Path(model.folder, "config.json").read_bytes() == Path(here, "config.json").read_bytes()
        assert model.readable == f"{root}/4_targets/math"


def test_a_missing_model_and_one_of_another_machine_are_named(root: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing there"):
        find_model(f"{root}/no/such/model")
    with pytest.raises(MissingArtifactError):
        fetch_folder(f"{root}/no/such/model")
    here = save_toy(tmp_path / "pivot", "llama", byte_level_tokenizer())
    model = find_model(here)
    (tmp_path / "pivot").rename(tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match="no folder of this node"):
        _ = model.folder
