"""Control arms keep rows, tokens and positions, and change only who teaches."""

import numpy as np
import pyarrow as pa
import pytest
from toys.fused import toy_fused

from fusion_ray.errors import CorruptArtifactError
from fusion_ray.targets.control_arms import as_anchored, as_self, as_sft, as_shuffled
from fusion_ray.targets.rows import TrainingRows

FUSED = toy_fused(12)


def pivot_distributions(seed: int = 0) -> pa.Table:
    """The pivot's own distributions of the same tokens, with other kept ids."""
    table = toy_fused(12, seed=seed).drop_columns(["chosen", "bits_per_byte", "domain"])
    shifted = [None if row is None else [max(id_ - 1, -1) for id_ in row] for row in table["topk_ids"].to_pylist()]
    place = table.column_names.index("topk_ids")
    return table.set_column(place, "topk_ids", pa.array(shifted, type=table["topk_ids"].type))


def wider(table: pa.Table, k: int) -> pa.Table:
    """The same distributions with more kept entries, k in place of 4."""
    for name, value in (("topk_ids", 250), ("topk_logprobs", -9.0)):
        rows = [
            row and np.pad(np.reshape(row, (-1, 4)), ((0, 0), (0, k - 4)), constant_values=value).ravel()
            for row in table[name].to_pylist()
        ]
        table = table.set_column(table.column_names.index(name), name, pa.array(rows, type=table[name].type))
    return table


def same_but(one: pa.Table, other: pa.Table, changed: set[str]) -> bool:
    return all((one[name] == other[name]) != (name in changed) for name in one.column_names)


def test_sft_has_no_teacher_anywhere() -> None:
    table = as_sft(FUSED)
    assert same_but(FUSED, table, {"chosen"})
    assert {choice for row in table["chosen"].to_pylist() if row for choice in row} == {-1}


def test_self_is_taught_by_the_pivot_everywhere() -> None:
    pivot = pivot_distributions()
    table = as_self(FUSED, pivot)
    assert same_but(FUSED, table, {"chosen", "topk_ids"})
    assert table["topk_ids"] == pivot["topk_ids"]
    assert {choice for row in table["chosen"].to_pylist() if row for choice in row} == {0}


@pytest.mark.parametrize("k", [4, 7])
def test_where_nobody_teaches_stands_what_the_start_says_and_elsewhere_all_stays(k: int) -> None:
    start = wider(pivot_distributions(), k)
    table = as_anchored(FUSED, start)
    assert same_but(FUSED, table, {"chosen", "topk_ids"} | ({"topk_logprobs"} if k > 4 else set()))
    rows = zip(*(each.to_pylist() for each in (FUSED, start, table)), strict=True)
    for before, own, after in rows:
        if before["reason"]:
            assert after["chosen"] is None
            continue
        n = len(before["chosen"])
        for position, (taught, now) in enumerate(zip(before["chosen"], after["chosen"], strict=True)):
            ids, logprobs = (np.reshape(after[name], (n, -1))[position] for name in ("topk_ids", "topk_logprobs"))
            expected = own if taught == -1 else before
            width = len(expected["topk_ids"]) // n
            assert now == (-2 if taught == -1 else taught)
            assert ids[:width].tolist() == expected["topk_ids"][position * width : (position + 1) * width]
            assert logprobs[:width].tolist() == expected["topk_logprobs"][position * width : (position + 1) * width]
            assert (ids[width:] == -1).all() and np.isneginf(logprobs[width:]).all()


def test_nothing_is_held_to_distributions_of_other_tokens() -> None:
    with pytest.raises(CorruptArtifactError, match="SFT control's distributions do not hold the same answer tokens"):
        as_anchored(FUSED, toy_fused(12, seed=5))
    lost = toy_fused(12)
    gone = [None if number == 5 else row for number, row in enumerate(lost["real_logprobs"].to_pylist())]
    place = lost.column_names.index("real_logprobs")
    with pytest.raises(CorruptArtifactError, match="same answer tokens"):
        as_anchored(FUSED, lost.set_column(place, "real_logprobs", pa.array(gone, type=lost["real_logprobs"].type)))


def test_self_refuses_distributions_of_other_tokens() -> None:
    with pytest.raises(CorruptArtifactError, match="same answer tokens"):
        as_self(FUSED, pivot_distributions(seed=5))


def test_shuffled_gives_every_row_the_kept_tokens_of_another() -> None:
    table = as_shuffled(FUSED, seed=0, shard="train/00000.parquet")
    assert same_but(FUSED, table, {"topk_ids", "topk_logprobs"})
    for before, after in zip(FUSED["topk_ids"].to_pylist(), table["topk_ids"].to_pylist(), strict=True):
        assert (before is None) == (after is None)
        assert before is None or (before != after and len(before) == len(after))


def test_shuffling_depends_on_seed_and_shard_only() -> None:
    first = as_shuffled(FUSED, seed=0, shard="a")
    assert first == as_shuffled(FUSED, seed=0, shard="a")
    assert first != as_shuffled(FUSED, seed=1, shard="a")
    assert first != as_shuffled(FUSED, seed=0, shard="b")


@pytest.mark.parametrize("arm", [as_sft(FUSED), as_shuffled(FUSED, 0, "a"), as_self(FUSED, pivot_distributions())])
def test_every_arm_can_be_trained_on(arm: pa.Table) -> None:
    rows, plain = TrainingRows([arm], max_length=64), TrainingRows([FUSED], max_length=64)
    assert rows.lengths_N.tolist() == plain.lengths_N.tolist()
    assert rows.answers_N.tolist() == plain.answers_N.tolist()
    assert [len(rows[number].ids_TK) for number in (0, 5)] == [plain.answers_N[0], plain.answers_N[5]]


def test_a_usable_row_without_answer_tokens_gives_and_takes_nothing_when_rows_are_shuffled() -> None:
    table = toy_fused(6)
    rows = table.to_pylist()
    empty = {name: [] for name in ("turn_starts", "turn_lengths", "chosen", "topk_ids", "topk_logprobs")}
    rows[1] |= empty
    shuffled = as_shuffled(pa.Table.from_pylist(rows, schema=table.schema), 0, "train/00000.parquet").to_pylist()
    assert shuffled[1] == rows[1] and shuffled[3] == rows[3]
    assert all(shuffled[n]["topk_ids"] != rows[n]["topk_ids"] for n in (0, 2, 4, 5))
    assert all(len(shuffled[n]["topk_ids"]) == len(rows[n]["topk_ids"]) for n in range(6) if n != 3)
