"""Write safetensors files as their tensors come, block by block; a file appears whole under its name or not at all."""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from fusion_ray.errors import NonFiniteError
from fusion_ray.storage.checkpoints import BYTES_OF, INDEX, SINGLE, StoredTensor, from_float32
from fusion_ray.storage.filesystem import join, locate, write_bytes


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

    Tensors are written in the order of the slots, elements in order, in blocks of any size.
    """

    def __init__(self, uri: str, slots: Sequence[Slot]) -> None:
        self.uri = uri
        self._slots = list(slots)
        place = locate(uri)
        self._local = Path(place.path) if place.is_local else None
        folder, _, name = place.path.rpartition("/")
        # On a remote store an object exists once its upload is complete, so it needs no other name before.
        self._path = f"{folder}/.{name}.{os.getpid()}.tmp" if self._local else place.path
        if self._local:
            self._local.parent.mkdir(parents=True, exist_ok=True)
        self._stream = place.filesystem.open_output_stream(self._path)
        self._stream.write(_header(self._slots))
        self._left = [slot.nbytes // BYTES_OF[slot.dtype] for slot in self._slots]
        self._current = 0

    def write(self, values: np.ndarray) -> None:
        """Append float32 elements to the tensor that is being written, rounding them to its type.

        Raises:
            NonFiniteError: A value is not finite, or too large for the tensor's type.
        """
        slot = self._slots[self._at()]
        stored = from_float32(values, slot.dtype)
        if not _is_finite(stored, slot.dtype):
            raise NonFiniteError(
                f"{self.uri}: tensor {slot.name}: a merged weight is not finite in {slot.dtype}. "
                "Write a wider type (dtype: bfloat16 or float32)."
            )
        self.write_raw(stored)

    def write_raw(self, stored: np.ndarray) -> None:
        """Append elements as they are stored."""
        self._left[self._at()] -= stored.size
        assert self._left[self._current] >= 0, "more elements than the tensor has"
        self._stream.write(np.ascontiguousarray(stored).data)

    def _at(self) -> int:
        while self._left[self._current] == 0:
            self._current += 1
        return self._current

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abort()
            return
        assert not any(self._left), "a tensor was not written to its end"
        self._stream.close()
        if self._local:
            with Path(self._path).open("rb") as file:
                os.fsync(file.fileno())
            Path(self._path).replace(self._local)

    def _abort(self) -> None:
        if self._local:
            self._stream.close()
            Path(self._path).unlink(missing_ok=True)
        elif hasattr(self._stream, "abort"):
            self._stream.abort()


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
