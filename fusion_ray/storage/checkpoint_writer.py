"""Write safetensors files as their tensors come, block by block; a file appears whole under its name or not at all."""

import contextlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from fusion_ray.errors import NonFiniteError
from fusion_ray.storage.checkpoints import BYTES_OF, INDEX, SINGLE, StoredTensor, from_float32
from fusion_ray.storage.filesystem import join, locate, naming_a_full_disk, write_bytes


class Slot(NamedTuple):
    """A tensor that is going to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Number of bytes it takes."""
        return StoredTensor(self.name, self.dtype, self.shape, "", 0).nbytes


class CheckpointWriter:
    """Writes one safetensors file; a context manager. Leaving it with an error leaves nothing behind.

    A tensor is written by its part, in order, in blocks of any size. On a local disk the parts may be written in any
    order and by several threads; to a remote store one after the other (see `any_order`).

    Attributes:
        parts: Where each tensor is written, in the order of the slots.
        any_order: Whether the parts may be written in any order.
    """

    def __init__(self, uri: str, slots: Sequence[Slot]) -> None:
        self.uri = uri
        self._place = locate(uri)
        self.any_order = self._place.is_local
        header = _header(slots)
        starts = accumulate([slot.nbytes for slot in slots], initial=len(header))
        self.parts = [Part(self, slot, start) for slot, start in zip(slots, starts, strict=False)]
        # On a remote store an object exists once its upload is complete, so it needs no other name before.
        self._path, self._stream, self._file = self._place.path, None, -1
        if self.any_order:
            folder, _, name = self._path.rpartition("/")
            self._path = f"{folder}/.{name}.{os.getpid()}.tmp"
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        else:
            self._stream = self._place.filesystem.open_output_stream(self._path)
        self.write_at(header, 0)

    def write(self, values: np.ndarray) -> None:
        """Append float32 elements to the first tensor that is not whole yet; see `Part.write`."""
        next(part for part in self.parts if part.left).write(values)

    def write_at(self, data: bytes | memoryview, start: int) -> None:
        """Put bytes at their place in the file; where there is no `any_order`, at its end."""
        if self._stream is not None:
            self._stream.write(data)
            return
        left = memoryview(data)
        with naming_a_full_disk(self.uri):
            while left:
                written = os.pwrite(self._file, left, start)
                left, start = left[written:], start + written

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abort()
            return
        assert not any(part.left for part in self.parts), "a tensor was not written to its end"
        if self._stream is not None:
            self._stream.close()
            return
        with naming_a_full_disk(self.uri):
            os.fsync(self._file)
        os.close(self._file)
        Path(self._path).replace(self._place.path)

    def _abort(self) -> None:
        # Closing completes an upload, and pyarrow can end one in no other way; so what it made is deleted at once.
        with contextlib.suppress(OSError):
            os.close(self._file) if self._stream is None else self._stream.close()
        with contextlib.suppress(FileNotFoundError):
            self._place.filesystem.delete_file(self._path)


class Part:
    """The place of one tensor in a file that is being written.

    Attributes:
        left: Elements that are still to come.
    """

    def __init__(self, writer: CheckpointWriter, slot: Slot, start: int) -> None:
        self._writer, self._slot, self._next = writer, slot, start
        self.left = slot.nbytes // BYTES_OF[slot.dtype]

    def write(self, values: np.ndarray) -> None:
        """Append float32 elements, rounding them to the tensor's type.

        Raises:
            NonFiniteError: A value is not finite, or too large for the tensor's type.
        """
        stored = from_float32(values, self._slot.dtype)
        if not _is_finite(stored, self._slot.dtype):
            raise NonFiniteError(
                f"{self._writer.uri}: tensor {self._slot.name}: a merged weight is not finite in {self._slot.dtype}. "
                "Write a wider type (dtype: bfloat16 or float32)."
            )
        self.write_raw(stored)

    def write_raw(self, stored: np.ndarray) -> None:
        """Append elements as they are stored."""
        self.left -= stored.size
        assert self.left >= 0, "more elements than the tensor has"
        data = np.ascontiguousarray(stored).data.cast("B") if stored.size else b""
        self._writer.write_at(data, self._next)
        self._next += len(data)


def _header(slots: Sequence[Slot]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for slot in slots:
        entries[slot.name] = {
            "dtype": slot.dtype,
            "shape": list(slot.shape),
            "data_offsets": [offset, offset + slot.nbytes],
        }
        offset += slot.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # The format asks for data aligned to 8 bytes.
    return struct.pack("<Q", len(text)) + text


def _is_finite(stored: np.ndarray, dtype: str) -> bool:
    if dtype == "BF16":
        return not bool(((stored & np.uint16(0x7F80)) == np.uint16(0x7F80)).any())
    return bool(np.isfinite(stored).all())


def shard_name(index: int, count: int) -> str:
    """The name that Hugging Face gives file `index` (from 0) of `count`.

    >>> shard_name(0, 1), shard_name(1, 3)
    ('model.safetensors', 'model-00002-of-00003.safetensors')
    """
    return SINGLE if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def write_index(folder: str, places: Mapping[str, str], total_bytes: int) -> None:
    """Write the index of a checkpoint of several files.

    Args:
        folder: The model folder.
        places: File name by tensor name.
        total_bytes: Bytes of all tensors together.
    """
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(places.items()))}
    write_bytes(join(folder, INDEX), (json.dumps(index, indent=2) + "\n").encode())
