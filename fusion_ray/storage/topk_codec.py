"""The compact store of distributions: exact ids, log-probabilities to 0.01 nat, two thirds of the bytes of lists.

    ids        numbered by how often they occur in the shard, the commonest first
    top-k      log-probabilities as steps of 0.0098 nat down from the one before, most probable first
    real       the real token's log-probability as steps of 1/4096 nat
    bytes      byte 0 of all numbers in one column, byte 1 in the next: Parquet's zstd packs columns of one kind well

docs/formats.md describes the columns for readers in other languages.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from fusion_ray.errors import CorruptArtifactError, NonFiniteError
from fusion_ray.storage.planes import (
    ID_BYTES,
    REAL_BYTES,
    REAL_STEP_NATS,
    Columns,
    Rows,
    dictionary_column,
    ids_of,
    number_ids,
    plane_names,
    put_columns,
    put_plain,
    read_dictionary,
    read_planes,
    read_real,
    take_plain,
    write_planes,
    write_real,
)
from fusion_ray.storage.topk import TopK

__all__ = ["REAL_STEP_NATS", "compact_topk", "decode_topk", "encode_topk", "expand_topk", "is_compact"]

# Half a step is lost by rounding, and half a step more where the mass must be brought back to 1: below 0.01 together.
STEP_NATS = 0.0098

_GAP_BYTES = 2
_DICTIONARY = "topk_dictionary"
_ID, _GAP = "topk_id", "topk_gap"
_LARGEST_GAP = (1 << (8 * _GAP_BYTES)) - 1
_COLUMNS = (
    _DICTIONARY,
    *plane_names(_ID, ID_BYTES),
    *plane_names(_GAP, _GAP_BYTES),
    *plane_names("real", REAL_BYTES),
)


def compact_topk(table: pa.Table) -> pa.Table:
    """Replace the plain columns of a distributions or fused shard by the compact ones, at the end of the table.

    Raises:
        NonFiniteError: A log-probability is NaN, positive, or infinite where it must not be.
    """
    others, topk, rows = take_plain(table)
    return put_columns(others, _encode(topk, rows))


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
    return put_plain(table.drop_columns([name for name in table.column_names if name in _COLUMNS]), topk, rows)


def encode_topk(topk: TopK, lengths_N: np.ndarray, usable_N: np.ndarray | None = None) -> dict[str, pa.Array]:
    """Encode the distributions of a whole shard as binary columns of one value a row.

    Args:
        topk: All positions of the shard, row after row, most probable first.
        lengths_N: Positions of each row.
        usable_N: False for the rows that are null; None where all are usable.

    Raises:
        NonFiniteError: A log-probability is NaN, above 1e-3, or the real token's is infinite.
    """
    usable_N = np.ones(len(lengths_N), dtype=bool) if usable_N is None else usable_N
    return _encode(topk, Rows(np.cumsum(lengths_N), usable_N))


def decode_topk(columns: Columns) -> TopK:
    """Undo `encode_topk`: all positions of the shard as one TopK.

    Ids are exact; log-probabilities are within 0.01, do not rise along a row, and sum to at most 1; the real
    tokens' are within half of REAL_STEP_NATS.

    Raises:
        CorruptArtifactError: The columns do not fit together, or rows of the shard are missing.
    """
    return _decode(columns)[0]


def _encode(topk: TopK, rows: Rows) -> dict[str, pa.Array]:
    topk.check("compact store")
    codes_TK, dictionary = number_ids(topk.ids_TK)
    entries = rows.times(topk.ids_TK.shape[1])
    columns = {_DICTIONARY: dictionary_column(dictionary, len(rows.ends_N))}
    columns |= write_planes(_ID, codes_TK, ID_BYTES, entries)
    columns |= write_planes(_GAP, _gaps(topk), _GAP_BYTES, entries)
    return columns | write_real(topk.real_logprobs_T, rows)


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


def _decode(columns: Columns) -> tuple[TopK, Rows]:
    real_T, rows = read_real(columns)
    codes, _ = read_planes(columns, _ID, ID_BYTES)
    gaps, _ = read_planes(columns, _GAP, _GAP_BYTES)
    n_positions = len(real_T)
    if len(codes) != len(gaps) or (n_positions and len(codes) % n_positions):
        raise CorruptArtifactError(
            f"compact store: {len(codes)} ids, {len(gaps)} gaps and {n_positions} positions do not fit together. "
            "Delete the shard and run again."
        )
    width = len(codes) // n_positions if n_positions else 0
    ids_TK = ids_of(codes, read_dictionary(columns, _DICTIONARY)).reshape(n_positions, width)
    logprobs_TK = np.cumsum(gaps.reshape(n_positions, width), axis=1, dtype=np.int32).astype(np.float32)
    logprobs_TK *= np.float32(-STEP_NATS)
    if not codes.all():
        logprobs_TK[ids_TK < 0] = -np.inf
    _hold_mass(logprobs_TK)
    return TopK(ids_TK, logprobs_TK, real_T), rows


def _hold_mass(logprobs_TK: np.ndarray) -> None:
    """Where rounding has raised the mass above 1, divide by it: it rose by half a step at most."""
    mass_T = np.exp(logprobs_TK).sum(axis=1, dtype=np.float64)
    over = np.flatnonzero(mass_T > 1 - 1e-6)
    logprobs_TK[over] -= (np.log(mass_T[over]) + 2e-6).astype(np.float32)[:, None]
