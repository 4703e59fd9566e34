"""Numbers of a shard's positions as bytes: byte 0 of all numbers in one column, byte 1 in the next.

Columns are binary, one value a row, null in unusable rows; Parquet's zstd packs columns of one kind of byte well.
docs/formats.md describes them for readers in other languages.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from fusion_ray.errors import CorruptArtifactError
from fusion_ray.storage.topk import TopK

PLAIN_COLUMNS = ("real_logprobs", "topk_ids", "topk_logprobs")
ID_BYTES, REAL_BYTES = 3, 4
REAL_STEP_NATS = 1 / 4096
Columns: TypeAlias = "Mapping[str, Any] | pa.Table"


class Rows(NamedTuple):
    """How numbers fall into rows: `ends_N` counts them up to and with row n; `usable_N` is False for null rows."""

    ends_N: np.ndarray
    usable_N: np.ndarray

    def times(self, width: int) -> "Rows":
        """The same rows with `width` numbers for each one."""
        return Rows(self.ends_N * width, self.usable_N)


def write_planes(name: str, numbers: np.ndarray, n_bytes: int, rows: Rows) -> dict[str, pa.Array]:
    """Byte b of all numbers, row by row, as binary column `name_b`.

    Args:
        name: Of the columns.
        numbers: uint32, in any shape that lists them row after row.
        n_bytes: Bytes of each that are kept, the lowest first.
        rows: How they fall into rows.
    """
    offsets = np.concatenate([[0], rows.ends_N]).astype(np.int64)
    valid = None if rows.usable_N.all() else pa.py_buffer(np.packbits(rows.usable_N, bitorder="little"))
    planes = {}
    for b in range(n_bytes):
        data = np.ascontiguousarray(numbers.view(np.uint8).reshape(*numbers.shape, 4)[..., b])
        buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(data)]
        planes[f"{name}_{b}"] = pa.Array.from_buffers(pa.large_binary(), len(rows.usable_N), buffers)
    return planes


def read_planes(columns: Columns, name: str, n_bytes: int) -> tuple[np.ndarray, Rows]:
    """The numbers of all rows, uint32, and how they fall into rows.

    Raises:
        CorruptArtifactError: The columns do not fit together.
    """
    numbers, rows = np.zeros(0, dtype=np.uint32), Rows(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))
    for b in range(n_bytes):
        column = columns[f"{name}_{b}"]
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        column = column.cast(pa.large_binary())
        _, offsets_buffer, data = column.buffers()
        offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
        plane = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]] if data else np.zeros(0, dtype=np.uint8)
        if b == 0:
            numbers = plane.astype(np.uint32)
            rows = Rows(offsets[1:] - offsets[0], column.is_valid().to_numpy(zero_copy_only=False))
        elif len(plane) != len(numbers):
            raise CorruptArtifactError(f"compact store: {name}_{b} has {len(plane)} bytes, expected {len(numbers)}.")
        elif plane.any():
            numbers |= plane.astype(np.uint32) << (8 * b)
    return numbers, rows


def write_real(real_logprobs_T: np.ndarray, rows: Rows) -> dict[str, pa.Array]:
    """The log-probabilities of the tokens that came, in steps of REAL_STEP_NATS."""
    steps_T = np.rint(np.maximum(-real_logprobs_T.astype(np.float64), 0) / REAL_STEP_NATS).astype(np.uint32)
    return write_planes("real", steps_T, REAL_BYTES, rows)


def read_real(columns: Columns) -> tuple[np.ndarray, Rows]:
    """Undo `write_real`, float32; the rows count positions."""
    steps_T, rows = read_planes(columns, "real", REAL_BYTES)
    return (steps_T.astype(np.float64) * -REAL_STEP_NATS).astype(np.float32), rows


def number_ids(ids_TK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the ids from 1 in order of the power of two of their count, then of id; 0 stands for an unused place."""
    counts_V = np.bincount((ids_TK + 1).reshape(-1), minlength=1)[1:]
    seen = np.flatnonzero(counts_V)
    dictionary = seen[np.argsort(-np.frexp(counts_V[seen].astype(np.float64))[1], kind="stable")]
    code_of_V = np.zeros(len(counts_V) + 1, dtype=np.uint32)
    code_of_V[dictionary] = np.arange(1, len(dictionary) + 1)
    return code_of_V[ids_TK], dictionary  # The id -1 looks up the last place, which is 0.


def ids_of(codes: np.ndarray, dictionary: np.ndarray) -> np.ndarray:
    """Undo `number_ids`, int32; -1 in unused places.

    Raises:
        CorruptArtifactError: A number is not in the dictionary.
    """
    if len(codes) and int(codes.max()) > len(dictionary):
        raise CorruptArtifactError(
            f"compact store: an entry has number {int(codes.max())} and the dictionary {len(dictionary)} ids. The "
            "dictionary stands in the first row: read whole shards."
        )
    return np.concatenate([[-1], dictionary]).astype(np.int32)[codes]


def dictionary_column(dictionary: np.ndarray, n_rows: int) -> pa.Array:
    """In the first row: differences between the ids in order of their numbers, as four planes of bytes."""
    differences = np.diff(dictionary, prepend=0).astype(np.uint32)
    planes = differences.view(np.uint8).reshape(-1, 4).T.tobytes()
    return pa.array([planes, *[None] * (n_rows - 1)][:n_rows], type=pa.large_binary())


def read_dictionary(columns: Columns, name: str) -> np.ndarray:
    """Undo `dictionary_column`, int64."""
    column = columns[name]
    planes = (column[0].as_py() if len(column) else None) or b""
    differences = np.frombuffer(planes, dtype=np.uint8).reshape(4, -1).T.copy().view(np.uint32)[:, 0]
    return np.cumsum(differences, dtype=np.uint32).astype(np.int64)


def take_plain(table: pa.Table) -> tuple[pa.Table, TopK, Rows]:
    """Split a table into its other columns, its distributions of all positions, and how these fall into rows."""
    real = table["real_logprobs"].combine_chunks()
    real_T = real.flatten().to_numpy()
    ids, logprobs = (table[name].combine_chunks().flatten().to_numpy() for name in PLAIN_COLUMNS[1:])
    width = len(ids) // len(real_T) if len(real_T) else 0
    rows = Rows(np.cumsum(real.value_lengths().fill_null(0).to_numpy()), real.is_valid().to_numpy(zero_copy_only=False))
    topk = TopK(ids.reshape(len(real_T), width), logprobs.reshape(len(real_T), width), real_T)
    return table.drop_columns(list(PLAIN_COLUMNS)), topk, rows


def put_plain(table: pa.Table, topk: TopK, rows: Rows) -> pa.Table:
    """Undo `take_plain`."""
    width = topk.ids_TK.shape[1]
    for name, values, each in zip(
        PLAIN_COLUMNS, (topk.real_logprobs_T, topk.ids_TK, topk.logprobs_TK), (1, width, width), strict=True
    ):
        offsets = pa.array(np.concatenate([[0], rows.ends_N * each]).astype(np.int32))
        lists = pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)), mask=pa.array(~rows.usable_N))
        table = table.append_column(name, lists)
    return table


def put_columns(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """Append columns by name."""
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def plane_names(name: str, n_bytes: int) -> list[str]:
    """The columns that `write_planes` makes."""
    return [f"{name}_{b}" for b in range(n_bytes)]
