"""Fused shards turned into the training data of a control arm: same rows, same tokens, same steps, other teaching.

`sft` and `longer` learn the gold tokens only; `self` learns the pivot's own distributions; `shuffled` learns what a
source said of another document, which shows the effect of soft targets that know nothing of the text. Targets that
start from the SFT control are anchored to it where nobody teaches.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusion_ray.errors import CorruptArtifactError
from fusion_ray.storage.topk import ANCHORED, NO_TEACHER


def as_sft(fused: pa.Table) -> pa.Table:
    """No position has a teacher."""
    return _replace(fused, "chosen", _same_lists(fused["chosen"], NO_TEACHER))


def as_self(fused: pa.Table, pivot: pa.Table) -> pa.Table:
    """The pivot's own distribution stands at every position.

    Raises:
        CorruptArtifactError: The two tables do not hold the same answer tokens.
    """
    _check_tokens(fused, pivot, "the pivot's")
    table = _replace(fused, "chosen", _same_lists(fused["chosen"], 0))
    for name in ("topk_ids", "topk_logprobs"):
        table = _replace(table, name, pivot[name])
    return table


def as_shuffled(fused: pa.Table, seed: int, shard: str) -> pa.Table:
    """Every row learns the distributions of another row of its shard, repeated or cut to its length."""
    ids, logprobs = fused["topk_ids"].to_pylist(), fused["topk_logprobs"].to_pylist()
    lengths = pc.fill_null(pc.list_value_length(fused["chosen"]), 0).to_numpy()
    usable = fused["reason"].is_null().to_numpy() & (lengths > 0)
    order = np.random.default_rng([seed, *shard.encode()]).permutation(np.flatnonzero(usable))
    taken_ids, taken_logprobs = list(ids), list(logprobs)
    # Rows in random order, shifted by one: with two rows or more none gets its own.
    for row, other in zip(order.tolist(), np.roll(order, 1).tolist(), strict=True):
        k, n = len(ids[other]) // int(lengths[other]), int(lengths[row])
        where = np.arange(n) % int(lengths[other])
        taken_ids[row] = np.reshape(ids[other], (-1, k))[where].ravel()
        taken_logprobs[row] = np.reshape(logprobs[other], (-1, k))[where].ravel()
    table = _replace(fused, "topk_ids", pa.array(taken_ids, type=fused["topk_ids"].type))
    return _replace(table, "topk_logprobs", pa.array(taken_logprobs, type=fused["topk_logprobs"].type))


def as_anchored(fused: pa.Table, start: pa.Table) -> pa.Table:
    """Positions without a teacher learn the distribution of the model that training starts from, and nothing else.

    A row whose two kinds of positions keep different numbers of entries is filled up with unused ones.

    Raises:
        CorruptArtifactError: The two tables do not hold the same answer tokens.
    """
    _check_tokens(fused, start, "the SFT control's")
    columns = ("topk_ids", "topk_logprobs", "chosen")
    rows = zip(
        *(_rows_of(fused[name]) for name in columns), *(_rows_of(start[name]) for name in columns[:2]), strict=True
    )
    held = [_anchor(*row) if row[2] is not None and (row[2] == NO_TEACHER).any() else row[:3] for row in rows]
    for place, name in enumerate(columns):
        fused = _replace(fused, name, pa.array([row[place] for row in held], type=fused[name].type))
    return fused


def _anchor(
    ids: np.ndarray, logprobs: np.ndarray, chosen_T: np.ndarray, start_ids: np.ndarray, start_logprobs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row; distributions come and go as flat lists, T times K."""
    untaught_T1 = (chosen_T == NO_TEACHER)[:, None]
    found = []
    for taught, of_start, unused in ((ids, start_ids, -1), (logprobs, start_logprobs, -np.inf)):
        both = [values.reshape(len(chosen_T), -1) for values in (taught, of_start)]
        k = max(values_TK.shape[1] for values_TK in both)
        taught_TK, start_TK = (
            np.pad(values_TK, ((0, 0), (0, k - values_TK.shape[1])), constant_values=unused) for values_TK in both
        )
        found.append(np.where(untaught_T1, start_TK, taught_TK).ravel())
    return found[0], found[1], np.where(chosen_T == NO_TEACHER, ANCHORED, chosen_T).astype(chosen_T.dtype)


def _rows_of(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    return [None if not row.is_valid else row.values.to_numpy(zero_copy_only=False) for row in column]


def _check_tokens(fused: pa.Table, scored: pa.Table, whose: str) -> None:
    ours, theirs = pc.list_value_length(fused["chosen"]), pc.list_value_length(scored["real_logprobs"])
    same = pc.fill_null(pc.equal(ours, theirs), False).filter(fused["reason"].is_null())
    if fused["id"] != scored["id"] or not pc.all(same, min_count=0).as_py():
        raise CorruptArtifactError(
            f"the fused set and {whose} distributions do not hold the same answer tokens; expected one row for one "
            "row. Delete both artifacts and run again."
        )


def _same_lists(column: pa.ChunkedArray, value: int) -> pa.Array:
    lists = column.combine_chunks()
    lists = lists if isinstance(lists, pa.Array) else pa.concat_arrays(lists.chunks)
    values = pa.array(np.full(len(lists.values), value), type=lists.values.type)
    return pa.ListArray.from_arrays(lists.offsets, values, mask=lists.is_null())


def _replace(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)
