"""Reading and writing safetensors by offset, against the safetensors package, and everything that is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_ray.errors import CorruptArtifactError, MergeError, MissingArtifactError, NonFiniteError
from fusion_ray.storage.checkpoint_writer import CheckpointWriter, Slot, shard_name, write_index
from fusion_ray.storage.checkpoints import (
    BYTES_OF,
    Checkpoint,
    StoredTensor,
    TensorReader,
    _Window,
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


def header_of(entries: dict[str, Any], data: bytes = b"", pad: int = 0) -> bytes:
    """A safetensors file by hand."""
    text = json.dumps({"__metadata__": {"note": "x" * pad}} | entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({}, False),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
        ({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, True),
        ({"text_config": {"tie_word_embeddings": False}}, False),
    ],
)
def test_whether_embeddings_are_tied_is_what_the_outer_config_says_first(config: dict[str, Any], tied: bool) -> None:
    assert Checkpoint("x", {}, config).ties_embeddings is tied


@pytest.mark.parametrize("places", [None, {}, [], ["a.safetensors"], "x", {"w": 7}, {"v": "a.safetensors", "w": None}])
def test_an_index_without_names_of_files_is_refused(places: Any, tmp_path: Path) -> None:
    save(tmp_path, {"v": torch.ones(1)}, "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CorruptArtifactError, match=r"no 'weight_map' of tensor names"):
        open_checkpoint(str(tmp_path))


def test_an_index_says_which_of_two_files_a_tensor_is_read_from_and_all_that_is_missing(tmp_path: Path) -> None:
    one, two = {"x": torch.ones(2), "y": torch.zeros(1)}, {"y": torch.ones(3), "z": torch.ones(1)}
    folder = save_sharded(tmp_path, {"a.safetensors": one, "b.safetensors": two})
    tensors = open_checkpoint(str(folder)).tensors
    assert {name: (tensor.uri[-13:], tensor.size) for name, tensor in tensors.items()} == {
        "x": ("a.safetensors", 2), "y": ("b.safetensors", 3), "z": ("b.safetensors", 1)
    }  # fmt: skip
    index = folder / "model.safetensors.index.json"
    for places, said in (
        ({"x": "a.safetensors", "r": "a.safetensors", "q": "b.safetensors"}, r"promises q in b.*\(2 such tensors\)"),
        ({"x": "c.safetensors"}, "names c.safetensors, which is not there"),
        ({"x": "a\\b.safetensors"}, "expected a plain"),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(CorruptArtifactError, match=said):
            open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, "offsets give 4"),
        ({"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}, r"shape \[-1, -2\] and type F32 needs 8"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "needs 8 bytes, but its offsets give 4"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, r"ends at byte \d+, the file at"),
        ({"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}, "has the type 'F31'; known: F64, "),
        ({"dtype": "F32", "shape": [2]}, "header is damaged"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, ""),
        ({"dtype": "F32", "shape": [0, 3], "data_offsets": [8, 8]}, ""),
        ({"dtype": "F32", "shape": [], "data_offsets": [4, 8]}, ""),
    ],
)
def test_an_entry_of_a_header_fits_its_own_shape_and_the_file(entry: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header_of({"w": entry}, b"\0" * 8))
    if said:
        with pytest.raises(CorruptArtifactError, match=said):
            read_header(str(path))
        return
    start = path.stat().st_size - 8 + entry["data_offsets"][0]
    assert read_header(str(path)) == {"w": StoredTensor("w", "F32", tuple(entry["shape"]), str(path), start)}


@pytest.mark.parametrize("beyond", [-9, -8, -7, 0, 1, 70_000])
def test_a_header_of_any_length_is_read_whole(beyond: int, tmp_path: Path) -> None:
    entry = {"w": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}
    pad = (64 << 10) + beyond - len(json.dumps({"__metadata__": {"note": ""}} | entry))
    path = tmp_path / "model.safetensors"
    path.write_bytes(header_of(entry, b"abc", pad))
    with TensorReader() as reader:
        assert reader.read_raw(read_header(str(path))["w"]).tobytes() == b"abc"
    with pytest.raises(MissingArtifactError, match="no such file"):
        read_header(str(tmp_path))


class Counted:
    """An open file that notes what is asked of it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked = data, list[tuple[int, int]]()

    def read_at(self, count: int, start: int) -> bytes:
        """Bytes from there on."""
        self.asked.append((start, count))
        return self.data[start : start + count]


def test_of_a_store_much_is_fetched_at_once_and_read_from_again() -> None:
    window = 8 << 20
    data = np.random.default_rng(0).bytes(window + 4000)
    reader, file = TensorReader(), Counted(data)
    reader._files["u"], reader._windows["u"] = file, _Window(0, b"")
    for start, count, asked in (
        (8, 4, [(8, window)]),
        (8, 8, []),
        (window, 8, []),  # The window ends here.
        (window + 1, 8, [(window + 1, window)]),
        (window + 9, 3, []),
        (window, 2, [(window, window)]),
        (0, window + 100, [(0, window + 100)]),
        (window, 100, []),
        (window + 50, 51, [(window + 50, window)]),
    ):
        assert bytes(reader._fetch("u", start, count)) == data[start : start + count]
        assert file.asked == asked
        file.asked.clear()


def test_a_tensor_that_ends_early_or_is_not_finite_says_where(tmp_path: Path) -> None:
    save(tmp_path, {"w": torch.tensor([1.0, 2.0, float("inf"), float("nan"), 5.0])})
    tensor = open_checkpoint(str(tmp_path)).tensors["w"]
    with TensorReader() as reader:
        assert reader.read(tensor, 0, 2).tolist() == [1, 2] and reader.read(tensor, 4).tolist() == [5]
        assert reader.read_raw(tensor, 3, 3).tolist() == []
        for start, said in ((0, "inf at element 2"), (2, "inf at element 2"), (3, "nan at element 3")):
            with pytest.raises(NonFiniteError, match=said):
                reader.read(tensor, start)
        with pytest.raises(CorruptArtifactError, match="cut short within tensor w"):
            reader.read_raw(tensor, 0, 6)


def test_a_file_is_written_byte_for_byte_and_its_index_too(tmp_path: Path) -> None:
    slots = [Slot("a", "BF16", (3,)), Slot("b", "F32", ())]
    assert [slot.nbytes for slot in slots] == [6, 4]
    with CheckpointWriter(str(tmp_path / "model.safetensors"), slots) as writer:
        assert writer.any_order and [part.left for part in writer.parts] == [3, 1]
        writer.parts[1].write(np.array(2.0, dtype=np.float32))
        writer.write(np.array([1.0, -2.0], dtype=np.float32))
        writer.write(np.array([], dtype=np.float32))
        writer.write(np.array([0.0], dtype=np.float32))
    text = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},'
        b'"b":{"dtype":"F32","shape":[],"data_offsets":[6,10]}}'
    )
    text += b" " * (-len(text) % 8)
    data = struct.pack("<Q", len(text)) + text + bytes.fromhex("803f00c00000") + struct.pack("<f", 2.0)
    assert (tmp_path / "model.safetensors").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    write_index(str(tmp_path), {"y": "2", "x": "1"}, 10)
    assert (tmp_path / "model.safetensors.index.json").read_text() == (
        '{\n  "metadata": {\n    "total_size": 10\n  },\n  "weight_map": {\n    "x": "1",\n    "y": "2"\n  }\n}\n'
    )
    assert [shard_name(n, count) for n, count in ((0, 1), (0, 2), (1, 2))] == [
        "model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not_written(dtype: str, value: float, tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path / "model.safetensors"), [Slot("a", dtype, (2,))])
    with pytest.raises(NonFiniteError, match=f"tensor a: a merged weight is not finite in {dtype}"), writer:
        writer.write(np.array([60000.0, value], dtype=np.float32))
    assert list(tmp_path.iterdir()) == []
