"""Bits per byte of the validation rows, from each row's nll in nats."""

import math

import numpy as np
import pytest
import torch
from toys.fused import toy_fused
from toys.training import settings

from fusion_ray.targets.packing import plan_epoch
from fusion_ray.targets.rows import TrainingBatch, TrainingRows, make_batch
from fusion_ray.targets.validation import Validation


def rows(max_length: int = 64) -> TrainingRows:
    return TrainingRows([toy_fused(12)], max_length=max_length)


def test_one_bit_for_every_byte_is_one_bit_per_byte() -> None:
    judge = Validation(rows())
    nll_nats_N = judge.bytes_N * math.log(2.0)
    assert judge.summarise(nll_nats_N) == pytest.approx(1.0)
    assert judge.summarise(nll_nats_N / 4) == pytest.approx(0.25)


def test_rows_that_were_cut_or_rejected_have_no_say() -> None:
    judge = Validation(rows(max_length=40))
    left_out = judge.bytes_N == 0
    assert left_out[3] and 1 < left_out.sum() < len(judge.bytes_N)
    assert (judge.lengths_N == 0).tolist() == left_out.tolist()
    nll_nats_N = np.where(left_out, 1e6, judge.bytes_N * math.log(2.0))
    assert judge.summarise(nll_nats_N) == pytest.approx(1.0)


def test_without_known_bytes_there_is_no_number() -> None:
    table = toy_fused(4).drop_columns(["n_bytes"])
    judge = Validation(TrainingRows([table], max_length=64))
    assert judge.summarise(np.ones(4)) is None


def test_nll_is_summed_over_each_row_s_own_tokens_in_any_batch() -> None:
    judge, batches = Validation(rows()), []
    for step in plan_epoch(judge.lengths_N, tokens_per_step=256, tokens_per_batch=128, seed=0, epoch=0):
        batches += [make_batch(judge.rows, batch, settings(), lambda_=1.0, pad_id=0) for batch in step.batches]

    def student(batch: TrainingBatch, denominator: float) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Gives every token a nat for each of its id."""
        assert denominator == 1.0
        return 0.0, batch.target.gold_N.float(), torch.zeros(len(batch.target))

    found_N = judge.sum_nll(student, batches)
    expected = [
        int(row.input_ids[row.answer_T].sum()) if judge.lengths_N[n] else 0
        for n, row in ((n, judge.rows[n]) if judge.lengths_N[n] else (n, judge.rows[0]) for n in range(len(judge.rows)))
    ]
    assert found_N.tolist() == expected


def test_an_answer_of_one_byte_is_measured() -> None:
    table = toy_fused(2)
    place = table.column_names.index("n_bytes")
    judge = Validation(TrainingRows([table.set_column(place, "n_bytes", [[1, None]])], max_length=64))
    assert judge.bytes_N.tolist() == [1, 0] and (judge.lengths_N > 0).tolist() == [True, False]
    assert judge.summarise(np.array([3 * math.log(2.0), 7.0])) == pytest.approx(3.0)
