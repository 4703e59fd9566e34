"""The sampled store of distributions: the ids that were drawn at each position, and how often each was.

    ids        numbered as in the compact store, for each position those drawn most often first
    counts     how many of the position's draws fell on each id; their shares are what is read back
    real       the real token's log-probability, which is measured and not drawn

docs/formats.md describes the columns for readers in other languages.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from fusion_ray.algorithms.topk import TopK
from fusion_ray.errors import CorruptArtifactError
from fusion_ray.storage.planes import (
    ID_BYTES,
    REAL_BYTES,
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

_COUNT_BYTES = 2
_DICTIONARY, _DRAWS = "drawn_dictionary", "draws"
_ID, _COUNT, _DISTINCT = "drawn_id", "drawn_count", "drawn_distinct"
_COLUMNS = (
    _DICTIONARY,
    _DRAWS,
    *plane_names(_ID, ID_BYTES),
    *plane_names(_COUNT, _COUNT_BYTES),
    *plane_names(_DISTINCT, _COUNT_BYTES),
    *plane_names("real", REAL_BYTES),
)


def store_draws(table: pa.Table, draws: int) -> pa.Table:
    """Replace the plain columns of a distributions shard by counts, at the end of the table.

    Args:
        table: Its log-probabilities are ln(count / draws), as a sampling scorer gives them.
        draws: Of each position.
    """
    others, topk, rows = take_plain(table)
    used_TK = topk.ids_TK >= 0
    counts_TK = np.rint(np.exp(topk.logprobs_TK.astype(np.float64)) * draws).astype(np.uint32)
    distinct_T = used_TK.sum(axis=1).astype(np.uint32)
    codes_TK, dictionary = number_ids(topk.ids_TK)
    entries = Rows(np.concatenate([[0], np.cumsum(distinct_T)])[rows.ends_N], rows.usable_N)
    columns = {_DICTIONARY: dictionary_column(dictionary, len(table))}
    columns |= {_DRAWS: pa.array(np.full(len(table), draws, dtype=np.int32))}
    columns |= write_planes(_ID, codes_TK[used_TK], ID_BYTES, entries)
    columns |= write_planes(_COUNT, counts_TK[used_TK], _COUNT_BYTES, entries)
    columns |= write_planes(_DISTINCT, distinct_T, _COUNT_BYTES, rows)
    return put_columns(others, columns | write_real(topk.real_logprobs_T, rows))


def is_drawn(columns: Sequence[str]) -> bool:
    """Whether these are the columns of a sampled shard."""
    return _DICTIONARY in columns


def read_draws(table: pa.Table) -> pa.Table:
    """Undo `store_draws`: as many places at each position as the most diverse one needs, at least one.

    Raises:
        CorruptArtifactError: The columns do not fit together, or rows of the shard are missing.
    """
    topk, rows = _decode(table)
    return put_plain(table.drop_columns([name for name in table.column_names if name in _COLUMNS]), topk, rows)


def _decode(columns: Columns) -> tuple[TopK, Rows]:
    real_T, rows = read_real(columns)
    codes, _ = read_planes(columns, _ID, ID_BYTES)
    counts, _ = read_planes(columns, _COUNT, _COUNT_BYTES)
    distinct_T, _ = read_planes(columns, _DISTINCT, _COUNT_BYTES)
    if not len(codes) == len(counts) == int(distinct_T.sum()) or len(distinct_T) != len(real_T):
        raise CorruptArtifactError(
            f"sampled store: {len(codes)} ids, {len(counts)} counts, {int(distinct_T.sum())} expected ids and "
            f"{len(real_T)} positions do not fit together. Delete the shard and run again."
        )
    used_TK = np.arange(max(1, int(distinct_T.max(initial=0)))) < distinct_T[:, None]
    ids_TK = np.full(used_TK.shape, -1, dtype=np.int32)
    ids_TK[used_TK] = ids_of(codes, read_dictionary(columns, _DICTIONARY))
    logprobs_TK = np.full(used_TK.shape, -np.inf, dtype=np.float32)
    draws = columns[_DRAWS][0].as_py() if len(columns[_DRAWS]) else 1
    logprobs_TK[used_TK] = np.log(counts / draws)
    return TopK(ids_TK, logprobs_TK, real_T), rows
