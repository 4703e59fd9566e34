"""Fused shards turned into the training data of a control arm: same rows, same tokens, same steps, other teaching.

`sft` keeps the gold tokens only; `self` lets the pivot teach itself; `shuffled` teaches what a source said about
another document, which tells what soft targets do that carry no knowledge of the text.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusion_ray.errors import CorruptArtifactError

ARMS = ("sft", "self", "shuffled")


def as_sft(fused: pa.Table) -> pa.Table:
    """No position has a teacher."""
    return _replace(fused, "chosen", _same_lists(fused["chosen"], -1))


def as_self(fused: pa.Table, pivot: pa.Table) -> pa.Table:
    """The pivot's own distribution stands at every position.

    Raises:
        CorruptArtifactError: The two tables do not hold the same answer tokens.
    """
    ours, theirs = pc.list_value_length(fused["chosen"]), pc.list_value_length(pivot["real_logprobs"])
    usable = fused["reason"].is_null()
    if fused["id"] != pivot["id"] or not pc.all(pc.equal(ours, theirs).filter(usable), min_count=0).as_py():
        raise CorruptArtifactError(
            "the fused set and the pivot's distributions do not hold the same answer tokens; expected one row for one "
            "row. Delete both artifacts and run again."
        )
    table = _replace(fused, "chosen", _same_lists(fused["chosen"], 0))
    for name in ("topk_ids", "topk_logprobs"):
        table = _replace(table, name, pivot[name])
    return table


def as_shuffled(fused: pa.Table, seed: int, shard: str) -> pa.Table:
    """Every row is taught what was kept for another row of its shard, repeated or cut to its length."""
    ids, logprobs = fused["topk_ids"].to_pylist(), fused["topk_logprobs"].to_pylist()
    lengths = pc.fill_null(pc.list_value_length(fused["chosen"]), 0).to_numpy()
    usable = fused["reason"].is_null().to_numpy() & (lengths > 0)
    order = np.random.default_rng([seed, *shard.encode()]).permutation(np.flatnonzero(usable))
    taken_ids, taken_logprobs = list(ids), list(logprobs)
    # A step around a circle in random order: nobody gets its own, as long as there are two.
    for row, other in zip(order.tolist(), np.roll(order, 1).tolist(), strict=True):
        k, n = len(ids[other]) // int(lengths[other]), int(lengths[row])
        where = np.arange(n) % int(lengths[other])
        taken_ids[row] = np.reshape(ids[other], (-1, k))[where].ravel()
        taken_logprobs[row] = np.reshape(logprobs[other], (-1, k))[where].ravel()
    table = _replace(fused, "topk_ids", pa.array(taken_ids, type=fused["topk_ids"].type))
    return _replace(table, "topk_logprobs", pa.array(taken_logprobs, type=fused["topk_logprobs"].type))


def _same_lists(column: pa.ChunkedArray, value: int) -> pa.Array:
    lists = column.combine_chunks()
    lists = lists if isinstance(lists, pa.Array) else pa.concat_arrays(lists.chunks)
    values = pa.array(np.full(len(lists.values), value), type=lists.values.type)
    return pa.ListArray.from_arrays(lists.offsets, values, mask=lists.is_null())


def _replace(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)
