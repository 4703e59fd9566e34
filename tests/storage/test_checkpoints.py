"""Reading and writing safetensors by offset, against the safetensors package, and everything that is refused."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_ray.errors import CorruptArtifactError, MergeError, MissingArtifactError, NonFiniteError
from fusion_ray.storage.checkpoint_writer import CheckpointWriter, Slot, shard_name, write_index
from fusion_ray.storage.checkpoints import (
    BYTES_OF,
    TensorReader,
    from_float32,
    open_checkpoint,
    read_header,
    to_float32,
)

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def save(folder: Path, tensors: dict[str, torch.Tensor], file: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / file)
    return folder


def save_sharded(folder: Path, shards: dict[str, dict[str, torch.Tensor]]) -> Path:
    places = {}
    for file, tensors in shards.items():
        save(folder, tensors, file)
        places |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stretch_of_a_tensor_reads_as_torch_widens_it(tmp_path: Path, dtype: str) -> None:
    values = torch.randn(7, 5).to(DTYPES[dtype])
    checkpoint = open_checkpoint(str(save(tmp_path, {"a": torch.ones(3), "w": values})))
    with TensorReader() as reader:
        read = reader.read(checkpoint.tensors["w"], 5, 20)
    assert checkpoint.tensors["w"].dtype == dtype
    np.testing.assert_array_equal(read, values.float().numpy().ravel()[5:20])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_to_a_stored_type_is_the_rounding_of_torch(dtype: str) -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), dtype=torch.int32)
    values = bits.view(torch.float32)
    values = torch.cat([values[values.isfinite()], torch.tensor([1.00390625, 1.01171875, -0.0, 6e-8])])
    rounded = to_float32(from_float32(values.numpy(), dtype), dtype)
    np.testing.assert_array_equal(rounded, values.to(DTYPES[dtype]).float().numpy())


def test_a_sharded_checkpoint_lists_every_tensor_with_its_file(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path, {"a.safetensors": {"x": torch.ones(2)}, "b.safetensors": {"y": torch.zeros(3)}})
    tensors = open_checkpoint(str(folder)).tensors
    assert {name: tensor.uri.rpartition("/")[2] for name, tensor in tensors.items()} == {
        "x": "a.safetensors",
        "y": "b.safetensors",
    }


def test_a_checkpoint_opens_by_uri(tmp_path: Path) -> None:
    save(tmp_path, {"w": torch.arange(4.0)})
    checkpoint = open_checkpoint(f"file://{tmp_path}")
    with TensorReader() as reader:
        assert reader.read(checkpoint.tensors["w"]).tolist() == [0, 1, 2, 3]


def test_tied_embeddings_are_read_from_the_config_and_from_a_nested_one(tmp_path: Path) -> None:
    save(tmp_path, {"w": torch.ones(1)})
    for config in ({"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert open_checkpoint(str(tmp_path)).ties_embeddings


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(MissingArtifactError, match=r"pytorch_model\.bin.*never read"):
        open_checkpoint(str(tmp_path))


def test_a_folder_without_weights_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="safetensors"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("file", ["../evil.safetensors", "/etc/evil.safetensors", "sub/x.safetensors", "x.bin"])
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": file}}))
    with pytest.raises(CorruptArtifactError, match="same folder"):
        open_checkpoint(str(tmp_path))


def test_an_index_that_promises_a_tensor_its_file_lacks_is_refused(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path, {"a.safetensors": {"x": torch.ones(2)}})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"q": "a.safetensors"}}))
    with pytest.raises(CorruptArtifactError, match="promises q"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("keep", [0, 5, 20, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    save(tmp_path, {"w": torch.ones(1000)})
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:keep])
    with pytest.raises(CorruptArtifactError, match=r"model\.safetensors"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, -16]},
        {"dtype": "F32", "shape": [4]},
        [],
    ],
)
def test_a_header_that_lies_about_a_tensor_is_refused(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"w": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    with pytest.raises(CorruptArtifactError):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_that_is_not_finite_is_named_with_its_place(tmp_path: Path, bad: float, dtype: str) -> None:
    values = torch.ones(9)
    values[7] = bad
    checkpoint = open_checkpoint(str(save(tmp_path, {"w": values.to(DTYPES[dtype])})))
    with TensorReader() as reader, pytest.raises(NonFiniteError, match=r"tensor w holds .* at element 7"):
        reader.read(checkpoint.tensors["w"], 2, 9)


def test_integers_are_not_read_as_weights(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save(tmp_path, {"ids": torch.arange(4)})))
    with TensorReader() as reader:
        assert reader.read_raw(checkpoint.tensors["ids"]).tolist() == [0, 1, 2, 3]
        with pytest.raises(MergeError, match="ids has the type I64"):
            reader.read(checkpoint.tensors["ids"])


def test_what_is_written_block_by_block_loads_with_safetensors(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(4, 6).bfloat16(), "empty": torch.zeros(0, 3), "b": torch.randn(5)}
    slots = [Slot("a", "BF16", (4, 6)), Slot("empty", "F32", (0, 3)), Slot("b", "F32", (5,))]
    with CheckpointWriter(str(tmp_path / "model.safetensors"), slots) as writer:
        for block in tensors["a"].float().numpy().reshape(8, 3):
            writer.write(block)
        writer.write(tensors["b"].numpy())
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_nothing_is_left_of_a_file_whose_writing_failed(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path / "model.safetensors"), [Slot("a", "F32", (4,))])
    with pytest.raises(RuntimeError, match="stopped"), writer:
        writer.write(np.ones(2, dtype=np.float32))
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == []


def test_a_merged_weight_too_large_for_its_type_is_refused(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path / "model.safetensors"), [Slot("a", "F16", (1,))])
    with pytest.raises(NonFiniteError, match=r"tensor a: .* not finite in F16"), writer:
        writer.write(np.array([1e6], dtype=np.float32))


def test_an_index_of_several_files_opens_again(tmp_path: Path) -> None:
    for index, name in enumerate("xy"):
        with CheckpointWriter(str(tmp_path / shard_name(index, 2)), [Slot(name, "F32", (2,))]) as writer:
            writer.write(np.full(2, index, dtype=np.float32))
    write_index(str(tmp_path), {"x": shard_name(0, 2), "y": shard_name(1, 2)}, 16)
    assert set(open_checkpoint(str(tmp_path)).tensors) == {"x", "y"}


def test_a_header_is_read_without_the_file(tmp_path: Path) -> None:
    save(tmp_path, {"w": torch.ones(2, 3)})
    tensor = read_header(str(tmp_path / "model.safetensors"))["w"]
    assert (tensor.shape, tensor.size, tensor.nbytes) == ((2, 3), 6, 24)


def test_every_dtype_has_the_bytes_that_torch_gives_it() -> None:
    named = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
        "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
        "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
    }  # fmt: skip
    assert {name: dtype.itemsize for name, dtype in named.items()} == BYTES_OF


def test_a_checkpoint_is_written_into_a_folder_that_is_not_there_yet_and_again(tmp_path: Path) -> None:
    for values in (np.arange(6, dtype=np.float32), np.ones(6, dtype=np.float32)):
        uri = str(tmp_path / "new" / "folder" / "model.safetensors")
        with CheckpointWriter(uri, [Slot("a", "F32", (2, 3)), Slot("b", "F32", ())]) as writer:
            writer.write(values)
            writer.write(np.array([7.0], dtype=np.float32))
        found = load_file(uri)
        assert found["a"].numpy().ravel().tolist() == values.tolist() and float(found["b"]) == 7.0


def test_files_shorter_than_their_header_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for data in (b"", b"1234567", struct.pack("<Q", 1) + b"{", struct.pack("<Q", 3) + b"{}", struct.pack("<Q", 0)):
        path.write_bytes(data)
        with pytest.raises(CorruptArtifactError, match="not a safetensors file, or cut short"):
            read_header(str(path))
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    assert read_header(str(path)) == {}
