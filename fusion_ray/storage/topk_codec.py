"""The compact store of distributions: exact ids, log-probabilities to 0.01 nat, two thirds of the bytes of lists.

    ids        numbered by how often they occur in the shard, the commonest first
    top-k      log-probabilities as steps of 0.0098 nat down from the one before, most probable first
    real       the real token's log-probability as steps of 1/4096 nat
    bytes      byte 0 of all numbers in one column, byte 1 in the next: Parquet's zstd packs columns of one kind well

docs/formats.md describes the columns for readers in other languages.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fusion_ray.algorithms.topk import TopK
from fusion_ray.errors import CorruptArtifactError, NonFiniteError

# Half a step is lost by rounding, and half a step more where the mass must be brought back to 1: below 0.01 together.
STEP_NATS = 0.0098
REAL_STEP_NATS = 1 / 4096
PLAIN_COLUMNS = ("real_logprobs", "topk_ids", "topk_logprobs")

_ID_BYTES, _GAP_BYTES, _REAL_BYTES = 3, 2, 4
_DICTIONARY = "topk_dictionary"
_ID, _GAP, _REAL = "topk_id", "topk_gap", "real"
_LARGEST_GAP = (1 << (8 * _GAP_BYTES)) - 1


class _Rows(NamedTuple):
    """How positions fall into rows: `ends_N` counts them up to and with row n; `usable_N` is False for null rows."""

    ends_N: np.ndarray
    usable_N: np.ndarray


def compact_topk(table: pa.Table) -> pa.Table:
    """Replace the plain columns of a distributions or fused shard by the compact ones, at the end of the table.

    Raises:
        NonFiniteError: A log-probability is NaN, positive, or infinite where it must not be.
    """
    real = table["real_logprobs"].combine_chunks()
    lengths_N = real.value_lengths().fill_null(0).to_numpy()
    real_T = real.flatten().to_numpy()
    ids = table["topk_ids"].combine_chunks().flatten().to_numpy()
    logprobs = table["topk_logprobs"].combine_chunks().flatten().to_numpy()
    width = len(ids) // len(real_T) if len(real_T) else 0
    topk = TopK(ids.reshape(len(real_T), width), logprobs.reshape(len(real_T), width), real_T)
    usable_N = real.is_valid().to_numpy(zero_copy_only=False)
    columns = encode_topk(topk, lengths_N, usable_N)
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table.drop_columns(list(PLAIN_COLUMNS))


def is_compact(columns: Sequence[str]) -> bool:
    """Whether these are the columns of a compact shard."""
    return _DICTIONARY in columns


def expand_topk(table: pa.Table) -> pa.Table:
    """Undo `compact_topk`; a table with plain columns comes back as it is.

    Raises:
        CorruptArtifactError: The columns do not fit together, or rows of the shard are missing.
    """
    if not is_compact(table.column_names):
        return table
    topk, rows = _decode(table)
    width = topk.ids_TK.shape[1]
    plain = {
        "real_logprobs": _lists(topk.real_logprobs_T, rows, 1),
        "topk_ids": _lists(topk.ids_TK.reshape(-1), rows, width),
        "topk_logprobs": _lists(topk.logprobs_TK.reshape(-1), rows, width),
    }
    for name, column in plain.items():
        table = table.append_column(name, column)
    return table.drop_columns([name for name in table.column_names if name in _compact_names()])


def encode_topk(topk: TopK, lengths_N: np.ndarray, usable_N: np.ndarray | None = None) -> dict[str, pa.Array]:
    """Encode the distributions of a whole shard as binary columns of one value a row.

    Args:
        topk: All positions of the shard, row after row, most probable first.
        lengths_N: Positions of each row.
        usable_N: False for the rows that are null; None where all are usable.

    Raises:
        NonFiniteError: A log-probability is NaN, above 1e-3, or the real token's is infinite.
    """
    topk.check("compact store")
    usable_N = np.ones(len(lengths_N), dtype=bool) if usable_N is None else usable_N
    rows = _Rows(np.cumsum(lengths_N), usable_N)
    codes_TK, dictionary = _number_ids(topk.ids_TK)
    steps_T = np.rint(np.maximum(-topk.real_logprobs_T.astype(np.float64), 0) / REAL_STEP_NATS).astype(np.uint32)
    columns = {_DICTIONARY: _dictionary_column(dictionary, len(lengths_N))}
    columns |= _planes(_ID, codes_TK, _ID_BYTES, rows)
    columns |= _planes(_GAP, _gaps(topk), _GAP_BYTES, rows)
    return columns | _planes(_REAL, steps_T[:, None], _REAL_BYTES, rows)


def decode_topk(columns: Mapping[str, pa.Array] | pa.Table) -> TopK:
    """Undo `encode_topk`: all positions of the shard as one TopK.

    Ids are exact; log-probabilities are within 0.01, do not rise along a row, and sum to at most 1; the real
    tokens' are within half of REAL_STEP_NATS.

    Raises:
        CorruptArtifactError: The columns do not fit together, or rows of the shard are missing.
    """
    return _decode(columns)[0]


def _number_ids(ids_TK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the ids from 1 in order of the power of two of their count, then of id; 0 stands for an unused place."""
    counts_V = np.bincount((ids_TK + 1).reshape(-1), minlength=1)[1:]
    seen = np.flatnonzero(counts_V)
    dictionary = seen[np.argsort(-np.frexp(counts_V[seen].astype(np.float64))[1], kind="stable")]
    code_of_V = np.zeros(len(counts_V) + 1, dtype=np.uint32)
    code_of_V[dictionary] = np.arange(1, len(dictionary) + 1)
    return code_of_V[ids_TK], dictionary  # The id -1 looks up the last place, which is 0.


def _gaps(topk: TopK) -> np.ndarray:
    """Steps from each log-probability to the next, uint32; of unused places 0."""
    unused_TK = topk.ids_TK < 0
    nats_TK = np.where(unused_TK, 0, np.maximum(-topk.logprobs_TK, 0))
    steps_TK = np.maximum.accumulate(np.rint(nats_TK / np.float32(STEP_NATS)).astype(np.int32), axis=1)
    gaps_TK = np.diff(steps_TK, axis=1, prepend=np.int32(0))
    gaps_TK[unused_TK] = 0
    if gaps_TK.size and int(gaps_TK.max()) > _LARGEST_GAP:
        raise NonFiniteError(
            f"compact store: a log-probability lies {int(gaps_TK.max()) * STEP_NATS:.0f} nats below the one before; "
            f"at most {_LARGEST_GAP * STEP_NATS:.0f} can be stored. Check the model's weights and dtype."
        )
    return gaps_TK.view(np.uint32)


def _decode(columns: Mapping[str, pa.Array] | pa.Table) -> tuple[TopK, _Rows]:
    steps_T, rows = _read_planes(columns, _REAL, _REAL_BYTES)
    codes, _ = _read_planes(columns, _ID, _ID_BYTES)
    gaps, _ = _read_planes(columns, _GAP, _GAP_BYTES)
    n_positions = len(steps_T)
    if len(codes) != len(gaps) or (n_positions and len(codes) % n_positions):
        raise CorruptArtifactError(
            f"compact store: {len(codes)} ids, {len(gaps)} gaps and {n_positions} positions do not fit together. "
            "Delete the shard and run again."
        )
    width = len(codes) // n_positions if n_positions else 0
    id_of = np.concatenate([[-1], _read_dictionary(columns)]).astype(np.int32)
    if len(codes) and int(codes.max()) >= len(id_of):
        raise CorruptArtifactError(
            f"compact store: an entry has number {int(codes.max())} and the dictionary {len(id_of) - 1} ids. The "
            "dictionary stands in the first row: read whole shards."
        )
    ids_TK = id_of[codes].reshape(n_positions, width)
    logprobs_TK = np.cumsum(gaps.reshape(n_positions, width), axis=1, dtype=np.int32).astype(np.float32)
    logprobs_TK *= np.float32(-STEP_NATS)
    if not codes.all():
        logprobs_TK[ids_TK < 0] = -np.inf
    _hold_mass(logprobs_TK)
    real_T = (steps_T.astype(np.float64) * -REAL_STEP_NATS).astype(np.float32)
    return TopK(ids_TK, logprobs_TK, real_T), rows


def _hold_mass(logprobs_TK: np.ndarray) -> None:
    """Where rounding has raised the mass above 1, divide by it: it rose by half a step at most."""
    mass_T = np.exp(logprobs_TK).sum(axis=1, dtype=np.float64)
    over = np.flatnonzero(mass_T > 1 - 1e-6)
    logprobs_TK[over] -= (np.log(mass_T[over]) + 2e-6).astype(np.float32)[:, None]


def _planes(name: str, numbers: np.ndarray, n_bytes: int, rows: _Rows) -> dict[str, pa.Array]:
    """Byte b of all numbers, row by row, as binary column `name_b`."""
    width = numbers.shape[1]
    offsets = np.concatenate([[0], rows.ends_N]).astype(np.int64) * width
    valid = None if rows.usable_N.all() else pa.py_buffer(np.packbits(rows.usable_N, bitorder="little"))
    planes = {}
    for b in range(n_bytes):
        data = np.ascontiguousarray(numbers.view(np.uint8).reshape(*numbers.shape, 4)[..., b])
        buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(data)]
        planes[f"{name}_{b}"] = pa.Array.from_buffers(pa.large_binary(), len(rows.usable_N), buffers)
    return planes


def _read_planes(columns: Mapping[str, pa.Array] | pa.Table, name: str, n_bytes: int) -> tuple[np.ndarray, _Rows]:
    """The numbers of all rows, uint32, and how they fall into rows."""
    numbers, rows = np.zeros(0, dtype=np.uint32), _Rows(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))
    for b in range(n_bytes):
        column = columns[f"{name}_{b}"]
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        column = column.cast(pa.large_binary())
        _, offsets_buffer, data = column.buffers()
        offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
        plane = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]] if data else np.zeros(0, dtype=np.uint8)
        if b == 0:
            numbers = plane.astype(np.uint32)
            rows = _Rows(offsets[1:] - offsets[0], column.is_valid().to_numpy(zero_copy_only=False))
        elif len(plane) != len(numbers):
            raise CorruptArtifactError(f"compact store: {name}_{b} has {len(plane)} bytes, expected {len(numbers)}.")
        elif plane.any():
            numbers |= plane.astype(np.uint32) << (8 * b)
    return numbers, rows


def _dictionary_column(dictionary: np.ndarray, n_rows: int) -> pa.Array:
    """In the first row: differences between the ids in order of their numbers, as four planes of bytes."""
    differences = np.diff(dictionary, prepend=0).astype(np.uint32)
    planes = differences.view(np.uint8).reshape(-1, 4).T.tobytes()
    return pa.array([planes, *[None] * (n_rows - 1)][:n_rows], type=pa.large_binary())


def _read_dictionary(columns: Mapping[str, pa.Array] | pa.Table) -> np.ndarray:
    column = columns[_DICTIONARY]
    planes = (column[0].as_py() if len(column) else None) or b""
    differences = np.frombuffer(planes, dtype=np.uint8).reshape(4, -1).T.copy().view(np.uint32)[:, 0]
    return np.cumsum(differences, dtype=np.uint32).astype(np.int64)


def _lists(values: np.ndarray, rows: _Rows, width: int) -> pa.Array:
    # Real columns are one byte a position, so row ends count positions.
    offsets = pa.array(np.concatenate([[0], rows.ends_N * width]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(values), mask=pa.array(~rows.usable_N))


def _compact_names() -> set[str]:
    planes = {_ID: _ID_BYTES, _GAP: _GAP_BYTES, _REAL: _REAL_BYTES}
    return {_DICTIONARY} | {f"{name}_{b}" for name, n_bytes in planes.items() for b in range(n_bytes)}
