"""Read Hugging Face checkpoints: find every tensor's bytes in its safetensors file, and read any stretch of it.

Nothing is loaded to find out what is there: a safetensors file begins with the length of its header (8 bytes,
little endian) and a JSON header of {tensor: {dtype, shape, data_offsets}}; the bytes follow. Pickles are never read.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from pyarrow import fs

from fusion_ray.errors import CorruptArtifactError, MergeError, MissingArtifactError, NonFiniteError
from fusion_ray.storage.filesystem import exists, join, list_files, locate, read_bytes
from fusion_ray.storage.model_files import config_sections, why_no_weights

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FIRST_READ_BYTES = 64 << 10
_MAX_HEADER_BYTES = 100 << 20
_REMOTE_BYTES = 8 << 20
BYTES_OF = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4,
            "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        name: Its name in the checkpoint.
        dtype: Its type as safetensors spells it, such as `BF16`.
        shape: Its shape; () for a scalar.
        uri: File that holds it.
        start: Offset of its first byte in that file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    uri: str
    start: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes on disk."""
        return self.size * BYTES_OF[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """A model folder: its config and where every tensor lies, in the order of its files."""

    folder: str
    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ties_embeddings(self) -> bool:
        """Whether the output projection is the input embedding, as `tie_word_embeddings` says."""
        known = [
            section["tie_word_embeddings"]
            for section in config_sections(self.config)
            if "tie_word_embeddings" in section
        ]
        return bool(known and known[0])


def open_checkpoint(folder: str) -> Checkpoint:
    """Find the tensors of a model folder, one `model.safetensors` or several with an index.

    Raises:
        MissingArtifactError: No safetensors weights are there.
        CorruptArtifactError: A file is truncated or lies about its content, or the index names a file outside.
    """
    config = _read_json(join(folder, "config.json")) if exists(join(folder, "config.json")) else {}
    if exists(join(folder, INDEX)):
        return Checkpoint(folder, _read_sharded(folder), config)
    if exists(join(folder, SINGLE)):
        return Checkpoint(folder, read_header(join(folder, SINGLE)), config)
    wrong = why_no_weights(list_files(folder)) or f"has no {SINGLE} and no {INDEX}"
    raise MissingArtifactError(f"{folder} {wrong}.")


def _read_json(uri: str) -> dict[str, Any]:
    try:
        data = json.loads(read_bytes(uri))
    except ValueError as error:
        raise CorruptArtifactError(f"{uri}: not JSON ({error}).") from error
    if not isinstance(data, dict):
        raise CorruptArtifactError(f"{uri}: expected a JSON object, found {type(data).__name__}.")
    return data


def _read_sharded(folder: str) -> dict[str, StoredTensor]:
    uri = join(folder, INDEX)
    places = _read_json(uri).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise CorruptArtifactError(f"{uri}: no 'weight_map' of tensor names to files. Download the model again.")
    found: dict[str, StoredTensor] = {}
    for file in dict.fromkeys(places.values()):
        if "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise CorruptArtifactError(
                f"{uri}: names the file {file!r}; expected a plain *.safetensors name in the same folder. "
                "An index may not point outside its folder: do not trust this model."
            )
        if not exists(join(folder, file)):
            raise CorruptArtifactError(f"{uri}: names {file}, which is not there. Download the model again.")
        held = read_header(join(folder, file))
        found |= {name: tensor for name, tensor in held.items() if places.get(name) == file}
    missing = sorted(places.keys() - found.keys())
    if missing:
        raise CorruptArtifactError(
            f"{uri}: promises {missing[0]} in {places[missing[0]]}, which does not hold it "
            f"({len(missing)} such tensors). Download the model again."
        )
    return found


def read_header(uri: str) -> dict[str, StoredTensor]:
    """Read which tensors one safetensors file holds, checking every offset against the file's size.

    Raises:
        MissingArtifactError: There is no such file.
        CorruptArtifactError: Not a safetensors file, or one that was cut short.
    """
    place = locate(uri)
    info = place.filesystem.get_file_info(place.path)
    if info.type != fs.FileType.File:
        raise MissingArtifactError(f"{uri}: no such file.")
    with place.filesystem.open_input_file(place.path) as file:
        # More than the header: a store takes as long for a few bytes, and Arrow cannot retry a refused read of so few.
        head = bytes(file.read(_FIRST_READ_BYTES))
        length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, info.size - 8):
            raise CorruptArtifactError(f"{uri}: not a safetensors file, or cut short within its header.")
        text = head[8 : 8 + length] + bytes(file.read(max(0, 8 + length - len(head))))
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        found = {name: _parse_entry(name, entry, uri, 8 + length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptArtifactError(f"{uri}: its safetensors header is damaged ({error}).") from error
    _check_extent(uri, found, info.size)
    return found


def _parse_entry(name: str, entry: Mapping[str, Any], uri: str, base: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(int(size) for size in entry["shape"])
    if dtype not in BYTES_OF:
        raise CorruptArtifactError(f"{uri}: tensor {name} has the type {dtype!r}; known: {', '.join(BYTES_OF)}.")
    tensor = StoredTensor(name, dtype, shape, uri, base + start)
    if start < 0 or min(shape, default=0) < 0 or stop - start != tensor.nbytes:
        raise CorruptArtifactError(
            f"{uri}: tensor {name} of shape {list(shape)} and type {dtype} needs {tensor.nbytes} bytes, but its "
            f"offsets give {stop - start}. The file is damaged; get it again."
        )
    return tensor


def _check_extent(uri: str, tensors: Mapping[str, StoredTensor], size: int) -> None:
    for tensor in tensors.values():
        if tensor.start + tensor.nbytes > size:
            raise CorruptArtifactError(
                f"{uri}: cut short: tensor {tensor.name} ends at byte {tensor.start + tensor.nbytes}, the file at "
                f"{size}. Copy or download it again."
            )


class _Window(NamedTuple):
    """Bytes start.. of a file."""

    start: int
    data: bytes


class TensorReader:
    """Reads stretches of tensors by offset, keeping files open in between; not shared between threads.

    A request to a remote store is slow however few bytes it asks for. So at least 8 MiB are fetched at once, and later
    reads are served from them.
    """

    def __init__(self) -> None:
        self._files: dict[str, Any] = {}
        self._windows: dict[str, _Window] = {}

    def read_raw(self, tensor: StoredTensor, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Elements start..stop of the flattened tensor as they are stored; BF16 as its bits in uint16.

        Raises:
            CorruptArtifactError: The file ended before the tensor did.
        """
        stop = tensor.size if stop is None else stop
        width = BYTES_OF[tensor.dtype]
        wanted = (stop - start) * width
        buffer = self._fetch(tensor.uri, tensor.start + start * width, wanted)
        if len(buffer) != wanted:
            raise CorruptArtifactError(f"{tensor.uri}: cut short within tensor {tensor.name}. Get the file again.")
        return np.frombuffer(buffer, dtype=_STORED_AS[tensor.dtype])

    def read(self, tensor: StoredTensor, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Elements start..stop of the flattened tensor, as float32; see `read_into`."""
        values = np.empty((tensor.size if stop is None else stop) - start, dtype=np.float32)
        self.read_into(tensor, start, values)
        return values

    def read_into(self, tensor: StoredTensor, start: int, values: np.ndarray) -> None:
        """Fill a float32 array with the elements from `start` on.

        Raises:
            MergeError: The tensor is not of a floating type that can be computed with.
            NonFiniteError: There is a NaN or infinity among them.
        """
        if tensor.dtype not in FLOATS:
            raise MergeError(
                f"{tensor.uri}: tensor {tensor.name} has the type {tensor.dtype}; expected one of "
                f"{', '.join(sorted(FLOATS))}. Convert the model to bfloat16 first."
            )
        widen(self.read_raw(tensor, start, start + values.size), tensor.dtype, values)
        if not np.isfinite(values).all():
            place = int(np.flatnonzero(~np.isfinite(values))[0])
            raise NonFiniteError(
                f"{tensor.uri}: tensor {tensor.name} holds {values[place]} at element {start + place}; expected "
                "finite weights. The model is broken, or was saved in a type too narrow for it."
            )

    def _fetch(self, uri: str, start: int, count: int) -> Any:
        if uri not in self._files:
            place = locate(uri)
            self._files[uri] = place.filesystem.open_input_file(place.path)
            if not place.is_local:
                self._windows[uri] = _Window(0, b"")
        window = self._windows.get(uri)
        if window is None:
            return self._files[uri].read_at(count, start)
        if start < window.start or start + count > window.start + len(window.data):
            window = _Window(start, self._files[uri].read_at(max(count, _REMOTE_BYTES), start))
            self._windows[uri] = window
        return memoryview(window.data)[start - window.start :][:count]

    def close(self) -> None:
        """Close every file."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._windows.clear()

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def widen(stored: np.ndarray, dtype: str, values: np.ndarray) -> None:
    """Fill a float32 array from stored elements; F64 is rounded, and may overflow to infinity."""
    if dtype == "BF16":
        np.left_shift(stored, 16, out=values.view(np.uint32), dtype=np.uint32, casting="unsafe")
        return
    with np.errstate(over="ignore"):
        values[...] = stored


def to_float32(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Widen stored elements to float32; BF16 comes as uint16 bits.

    >>> to_float32(np.array([0x3F80, 0xC000], dtype=np.uint16), "BF16").tolist()
    [1.0, -2.0]
    """
    values = np.empty(stored.shape, dtype=np.float32)
    widen(stored, dtype, values)
    return values


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 to a stored type, ties to even; BF16 as uint16 bits. Too large a value becomes infinite.

    >>> from_float32(np.array([1.00390625, 1.01171875], dtype=np.float32), "BF16").tolist()
    [16256, 16258]
    """
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounding = np.right_shift(bits, 16)
        rounding &= np.uint32(1)
        rounding += np.uint32(0x7FFF)
        rounding += bits
        return np.right_shift(rounding, 16, out=rounding).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(_STORED_AS[dtype], copy=False)


_STORED_AS: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
        "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1", "F8_E4M3": "u1", "F8_E5M2": "u1",
    }.items()
}  # fmt: skip
