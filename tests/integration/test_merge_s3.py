"""Merging from and to an object store: the bytes of a local merge, few requests, and nothing half-written left."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from moto.server import ThreadedMotoServer
from pyarrow import fs
from toys.checkpoints import moved, save_toy, toy_tensors

from fusion_ray.errors import CorruptArtifactError, MissingArtifactError, NonFiniteError, RecipeError
from fusion_ray.merged.add import add_target
from fusion_ray.merged.from_yaml import merge_from_yaml
from fusion_ray.storage.checkpoint_writer import CheckpointWriter, Slot
from fusion_ray.storage.checkpoints import TensorReader, open_checkpoint
from fusion_ray.storage.filesystem import exists, join, list_files, locate, read_bytes, write_bytes

PIVOT = toy_tensors()
STORE = "s3://models"


@pytest.fixture(scope="module", autouse=True)
def _store() -> Iterator[None]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="models")
        yield
    server.stop()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models in the store, and the same ones on disk."""
    disk = tmp_path_factory.mktemp("disk")
    for seed, name in enumerate(("pivot", "math", "code")):
        save_toy(disk / name, moved(PIVOT, seed) if seed else PIVOT)
        fs.copy_files(str(disk / name), f"models/{name}", fs.LocalFileSystem(), locate(STORE).filesystem)
    return {"disk": str(disk), "store": STORE}


def write_config(folder: Path, root: str, **changes: object) -> Path:
    document: dict[str, object] = {
        "merge_method": "varm",
        "base_model": f"{root}/pivot",
        "models": [{"model": f"{root}/math"}, {"model": f"{root}/code"}],
    }
    path = folder / f"{root.replace('/', '_')}.yaml"
    path.write_text(yaml.safe_dump(document | changes))
    return path


@pytest.mark.parametrize("change", [{}, {"merge_method": "ties", "parameters": {"weight": 1.0, "density": 0.4}}])
def test_a_merge_in_the_store_gives_the_bytes_of_a_merge_on_disk(
    tmp_path: Path, folders: dict[str, str], change: dict[str, object]
) -> None:
    here, there = str(tmp_path / "out"), f"{STORE}/out-{change.get('merge_method', 'varm')}"
    merge_from_yaml(write_config(tmp_path, folders["disk"], **change), here, file_bytes=20_000)
    merge_from_yaml(write_config(tmp_path, folders["store"], **change), there, file_bytes=20_000)
    files = [name for name in list_files(here) if name.endswith((".safetensors", ".index.json", "tokenizer.json"))]
    assert len(files) > 3
    assert set(list_files(there, recursive=True)) == set(list_files(here, recursive=True))
    for name in files:
        assert read_bytes(join(there, name)) == read_bytes(join(here, name)), name
    with pytest.raises(RecipeError, match="there is a model already"):
        merge_from_yaml(write_config(tmp_path, folders["store"], **change), there)


def test_a_target_is_added_to_a_merge_in_the_store(tmp_path: Path, folders: dict[str, str]) -> None:
    first = write_config(tmp_path, folders["store"], models=[{"model": f"{STORE}/math"}])
    merge_from_yaml(first, f"{STORE}/one")
    add_target(f"{STORE}/one", "code", f"{STORE}/code", f"{STORE}/two")
    merge_from_yaml(write_config(tmp_path, folders["store"]), f"{STORE}/both")
    added, whole = (safetensors.torch.load(read_bytes(f"{STORE}/{name}/model.safetensors")) for name in ("two", "both"))
    assert added.keys() == whole.keys()
    assert all(torch.equal(added[name], tensor) for name, tensor in whole.items())


def test_stretches_are_served_from_few_requests(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = open_checkpoint(f"{folders['store']}/pivot").tensors["lm_head.weight"]
    expected = PIVOT["lm_head.weight"].bfloat16().float().flatten()
    with TensorReader() as reader:
        asked = []
        fetch = reader._fetch
        monkeypatch.setattr(reader, "_fetch", lambda *given: asked.append(given) or fetch(*given))
        parts = [reader.read(tensor, start, min(start + 100, tensor.size)) for start in range(0, tensor.size, 100)]
        (window,) = reader._windows.values()
    assert torch.equal(torch.from_numpy(np.concatenate(parts)), expected)
    assert len(asked) == len(parts) > 10
    assert window.start == tensor.start, "one request served them all"


def test_a_file_whose_writing_failed_is_not_in_the_store(folders: dict[str, str]) -> None:
    uri = f"{folders['store']}/broken/model.safetensors"
    with pytest.raises(NonFiniteError), CheckpointWriter(uri, [Slot("x", "F32", (2,))]) as writer:
        writer.write(np.array([1.0, np.inf], dtype=np.float32))
    assert not exists(uri)


def test_what_is_missing_or_cut_short_in_the_store_is_named(tmp_path: Path, folders: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=r"model 's3://models/nothing': no config\.json there"):
        merge_from_yaml(write_config(tmp_path, folders["store"], base_model=f"{STORE}/nothing"), f"{STORE}/x")
    with pytest.raises(MissingArtifactError, match="no such file"):
        read_bytes(f"{STORE}/pivot/absent")
    for name in ("config.json", "model.safetensors"):
        data = read_bytes(f"{STORE}/pivot/{name}")
        write_bytes(f"{STORE}/cut/{name}", data[:-50] if name.startswith("model") else data)
    with pytest.raises(CorruptArtifactError, match="cut short"):
        open_checkpoint(f"{STORE}/cut")


def test_a_joined_vocabulary_of_models_in_the_store_is_refused_with_what_to_do(
    tmp_path: Path, folders: dict[str, str]
) -> None:
    config = write_config(tmp_path, folders["store"], tokenizer_source="union")
    with pytest.raises(RecipeError, match=r"a local folder is needed here\. Mount or copy it first"):
        merge_from_yaml(config, f"{STORE}/union")
