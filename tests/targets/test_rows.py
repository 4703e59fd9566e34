"""Rows of fused sets laid out as batches: what is taught where, and at which weight."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from toys.fused import SCHEMA, toy_fused
from toys.training import anchored_rows, settings

from fusion_ray.errors import CorruptArtifactError, RecipeError
from fusion_ray.targets.packing import Batch
from fusion_ray.targets.rows import TrainingRows, check_rows, empty_batch, make_batch


def test_gold_has_no_part_in_what_is_held_whatever_lambda() -> None:
    some = anchored_rows()
    assert 0 < some.n_anchored < some.answers_N.sum()
    batch = Batch(64, ((0,),))
    for lambda_ in (0.0, 0.3, 1.0):
        target = make_batch(some, batch, settings(), lambda_=lambda_, pad_id=0).target
        chosen_T = some[0].chosen_T
        assert target.lambda_N[chosen_T == -2].eq(0).all()
        assert target.lambda_N[chosen_T != -2].eq(torch.tensor(lambda_)).all()
        assert target.probs_NK[chosen_T == -2].sum() > 0


def test_rows_of_another_pivot_and_rows_without_answers_are_refused() -> None:
    some = TrainingRows([toy_fused(8, vocabulary=280)], max_length=64)
    largest = some.largest_id()
    assert 0 < largest < 280
    check_rows(some, largest + 1, "fused/math")
    with pytest.raises(CorruptArtifactError, match=f"fused/math: holds token id {largest}, .* has {largest} entries"):
        check_rows(some, largest, "fused/math")
    with pytest.raises(RecipeError, match="none of its 8 rows has an answer token"):
        check_rows(TrainingRows([toy_fused(8)], max_length=1), 300, "fused/math")


def test_the_state_before_an_answer_token_predicts_it() -> None:
    some = TrainingRows([toy_fused(6)], max_length=64)
    batch = Batch(64, ((0,), (1,)))
    made = make_batch(some, batch, settings(), lambda_=0.5, pad_id=0)
    ids_N = made.input_ids_BW.flatten()
    assert ids_N[made.before_N + 1].tolist() == made.target.gold_N.tolist()
    assert made.row_N.tolist() == [0] * int(some.answers_N[0]) + [1] * int(some.answers_N[1])


def test_a_worker_without_a_batch_takes_one_token_that_teaches_nothing() -> None:
    made = empty_batch(7)
    assert made.input_ids_BW.tolist() == [[7]] and made.position_ids_BW.tolist() == [[0]]
    assert len(made.target) == len(made.before_N) == len(made.row_N) == 0


def test_rows_are_cut_at_max_length_and_counted() -> None:
    table = toy_fused(10)
    lengths = [len(ids) if ids else 0 for ids in table["input_ids"].to_pylist()]
    some = TrainingRows([table], max_length=30)
    assert some.lengths_N.tolist() == [min(length, 30) for length in lengths]
    assert some.n_cut == sum(length > 30 for length in lengths)
    assert some.n_unusable == 1 and some.lengths_N[3] == 0
    assert [some.answer_bytes(n) > 0 for n in range(10)] == [0 < length <= 30 for length in lengths]
    assert all(row.answer_T.max() < 30 for row in (some[n] for n in range(10) if some.lengths_N[n]))


def shard(**changes: Any) -> pa.Table:
    """Two turns of which the first begins at the first token, a rejected row, and one longer than 6 tokens."""
    rows: list[dict[str, Any]] = [
        {"id": "a", "input_ids": [5, 6, 7, 8, 9], "turn_starts": [0, 3], "turn_lengths": [2, 1], "chosen": [1, -1, 2],
         "topk_ids": [1, 2, 3, -1, 5, 6], "topk_logprobs": [-1, -2, -3, -np.inf, -5, -6], "n_bytes": 9},
        {"id": "b", "reason": "no"},
        {"id": "c", "input_ids": [1, 2, 3, 4, 5, 6, 7], "turn_starts": [4], "turn_lengths": [3], "chosen": [0, -2, -2],
         "topk_ids": [11, 12, 13], "topk_logprobs": [-1, -2, -3], "n_bytes": 3},
        {"id": "d", "input_ids": [1, 2], "turn_starts": [0], "turn_lengths": [1], "chosen": [1], "topk_ids": [1],
         "topk_logprobs": [-1], "n_bytes": None},
    ]  # fmt: skip
    rows[0] |= changes
    return pa.Table.from_pylist([dict.fromkeys(SCHEMA.names) | row for row in rows], schema=SCHEMA)


def test_every_answer_token_that_has_one_before_it_is_taught() -> None:
    some = TrainingRows([shard(), shard()], max_length=6)
    assert (len(some), some.n_cut, some.n_unusable, some.n_anchored) == (8, 2, 4, 2)
    assert some.lengths_N.tolist() == [5, 0, 6, 0] * 2 and some.answers_N.tolist() == [2, 0, 2, 0] * 2
    assert [some.id_of(number) for number in (1, 4)] == ["b", "a"]
    assert [some.answer_bytes(number) for number in range(4)] == [9, 0, 0, 0]
    assert TrainingRows([shard()], max_length=7).answer_bytes(2) == 3 and some.largest_id() == 13
    assert TrainingRows([shard(input_ids=[20] * 5)], max_length=6).largest_id() == 20
    assert (
        TrainingRows([], max_length=6).largest_id() == TrainingRows([SCHEMA.empty_table()], max_length=6).largest_id()
    )
    assert TrainingRows([], max_length=6).largest_id() == -1
    first, cut = some[0], some[6]
    assert (first.id, first.input_ids.tolist(), first.answer_T.tolist()) == ("a", [5, 6, 7, 8, 9], [1, 3])
    assert (first.chosen_T.tolist(), first.ids_TK.tolist()) == ([-1, 2], [[3, -1], [5, 6]])
    assert first.logprobs_TK.tolist() == [[-3, -np.inf], [-5, -6]]
    assert (cut.id, cut.input_ids.tolist(), cut.answer_T.tolist()) == ("c", [1, 2, 3, 4, 5, 6], [4, 5])
    assert (cut.chosen_T.tolist(), cut.ids_TK.tolist()) == ([0, -2], [[11], [12]])


def test_one_answer_token_is_enough_and_rows_that_are_anchored_throughout_are_counted() -> None:
    one = {"turn_starts": [0], "turn_lengths": [2], "chosen": [1, -2], "topk_ids": [1, 2], "topk_logprobs": [-1, -1]}
    some = TrainingRows([shard(**one).slice(0, 2)], max_length=6)
    assert (some.answers_N.tolist(), some.lengths_N.tolist(), some.n_anchored) == ([1, 0], [5, 0], 1)
    anchored = TrainingRows([shard(chosen=[-2, -2, -2]).slice(0, 1)], max_length=6)
    assert (anchored.n_anchored, anchored.n_unusable) == (2, 0)
    assert TrainingRows([shard().slice(0, 1)], max_length=6).n_anchored == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"topk_ids": [1, 2, 3, 4, 5]},
        {"topk_ids": [1, 2, 3, 4], "topk_logprobs": [-1] * 4},
        {"topk_logprobs": [-1] * 5},
        {"topk_logprobs": [-1] * 3},
        {"chosen": [1, 1]},
        {"chosen": [1] * 4},
    ],
)
def test_a_row_whose_columns_do_not_fit_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(
        CorruptArtifactError, match=r"row a: . kept ids, . log-probabilities and . choices for 3 answer"
    ):
        TrainingRows([shard(**wrong)], max_length=6)[0]


def test_a_shard_that_lacks_a_column_is_refused_and_one_without_reasons_is_usable() -> None:
    with pytest.raises(CorruptArtifactError, match=r"lacks the columns \['chosen'\]"):
        TrainingRows([shard().drop_columns(["chosen", "reason"])], max_length=6)
    some = TrainingRows([shard().slice(2, 1).drop_columns(["reason", "n_bytes"])], max_length=9)
    assert (some.n_unusable, some.answer_bytes(0), some.lengths_N.tolist()) == (0, 0, [7])


def test_a_batch_holds_every_row_s_targets_at_their_places() -> None:
    some = TrainingRows([shard()], max_length=6)
    made = make_batch(some, Batch(12, ((2, 0), ())), settings(), lambda_=0.25, pad_id=99)
    assert made.input_ids_BW.tolist() == [[1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 99], [99] * 12]
    assert made.position_ids_BW.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0], list(range(12))]
    assert (made.before_N.tolist(), made.row_N.tolist()) == ([3, 4, 6, 8], [2, 2, 0, 0])
    assert made.target.gold_N.tolist() == [5, 6, 6, 8]
    assert made.target.ids_NK.tolist() == [[11, -1], [12, -1], [3, -1], [5, 6]]
    assert made.target.lambda_N.tolist() == [0.25, 0, 1, 0.25]
    below = make_batch(some, Batch(6, ((2,), (0,))), settings(), lambda_=0.25, pad_id=99)
    assert below.before_N.tolist() == [3, 4, 6, 8] and below.to(torch.device("cpu")).row_N.tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize(
    ("rows", "lambda_", "chosen", "kept"),
    [
        ((2, 0), 1.0, None, 2),  # Some are anchored.
        ((0,), 1.0, None, 0),
        ((0,), 0.5, None, 2),
        ((0,), 0.5, [-1, -1, -1], 0),
        ((0,), 0.5, [1, -1, -1], 0),  # The first of them has no token before it.
        ((0,), 1.0, [-1, -2, -1], 2),
        ((0,), 0.0, [0, 0, 0], 2),
    ],
)
def test_kept_tokens_are_handed_on_only_where_they_teach(
    rows: tuple[int, ...], lambda_: float, chosen: list[int] | None, kept: int
) -> None:
    some = TrainingRows([shard(**({"chosen": chosen} if chosen else {}))], max_length=6)
    target = make_batch(some, Batch(11, (rows,)), settings(), lambda_=lambda_, pad_id=0).target
    assert target.ids_NK.shape == (2 * len(rows), kept)
