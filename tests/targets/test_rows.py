"""Rows of fused sets laid out as batches: what is taught where, and at which weight."""

import pytest
import torch
from toys.fused import toy_fused
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
