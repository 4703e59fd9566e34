"""Packing: every row once, nothing wasted, the same plan for any number of workers."""

import itertools

import numpy as np
import pytest

from fusion_ray.errors import RecipeError
from fusion_ray.targets.packing import Batch, lay_out, plan_epoch, share_of_padding
from fusion_ray.targets.schedule import learning_rate_share

LENGTHS = np.random.default_rng(0).integers(20, 700, 400)


def plan(lengths_N: np.ndarray = LENGTHS, seed: int = 0, epoch: int = 0, **sizes: int) -> list:
    sizes = {"tokens_per_step": 16384, "tokens_per_batch": 4096} | sizes
    return plan_epoch(lengths_N, seed=seed, epoch=epoch, **sizes)


def test_every_row_is_trained_on_exactly_once_an_epoch() -> None:
    rows = [row for step in plan() for row in step.rows]
    assert sorted(rows) == list(range(len(LENGTHS)))


def test_rows_of_length_zero_are_left_out() -> None:
    lengths_N = LENGTHS.copy()
    lengths_N[7] = 0
    assert 7 not in [row for step in plan(lengths_N) for row in step.rows]


def test_at_least_95_percent_of_the_positions_carry_a_token() -> None:
    assert share_of_padding(plan(), LENGTHS) < 0.05


def test_steps_of_few_long_rows_are_packed_as_well() -> None:
    lengths_N = np.random.default_rng(1).integers(80, 420, 32)
    steps = plan(lengths_N, tokens_per_step=int(lengths_N.sum()) // 4 + 1)
    assert len(steps) == 4
    assert share_of_padding(steps, lengths_N) < 0.05


def test_few_rows_are_packed_as_well_as_they_can_be() -> None:
    lengths_N = np.array([10, 10, 20])
    assert share_of_padding(plan(lengths_N), lengths_N) == 0


def test_a_batch_never_holds_more_than_its_tokens() -> None:
    for step in plan():
        for batch in step.batches:
            assert batch.width * len(batch.lanes) <= 4096
            assert all(LENGTHS[list(lane)].sum() <= batch.width for lane in batch.lanes)


def test_steps_share_the_tokens_evenly() -> None:
    sizes = [LENGTHS[step.rows].sum() for step in plan()]
    assert max(sizes) - min(sizes) <= LENGTHS.max() * 2
    assert len(sizes) == int(np.ceil(LENGTHS.sum() / 16384))


def test_seed_and_epoch_decide_the_order() -> None:
    assert plan() == plan()
    assert plan() != plan(epoch=1)
    assert plan() != plan(seed=1)


def test_the_rows_of_a_step_do_not_depend_on_the_batch_size() -> None:
    small, large = plan(tokens_per_batch=1024), plan(tokens_per_batch=8192)
    assert [sorted(step.rows) for step in small] == [sorted(step.rows) for step in large]


def test_a_row_longer_than_a_batch_or_a_step_is_refused() -> None:
    for name in ("tokens_per_batch", "tokens_per_step"):
        with pytest.raises(RecipeError, match=f"{name} 512"):
            plan(**{name: 512})


def test_position_ids_restart_with_every_row_and_padding_is_apart() -> None:
    lengths_N = np.array([3, 2, 4])
    batch = Batch(5, ((0, 1), (2,)))
    ids = {row: np.arange(length) + 10 * row + 1 for row, length in enumerate(lengths_N)}
    lanes = lay_out(batch, ids, pad_id=0)
    assert lanes.input_ids_BW.shape == (2, 5)
    for row, (lane, column) in lanes.starts.items():
        part = slice(column, column + lengths_N[row])
        assert lanes.input_ids_BW[lane, part].tolist() == ids[row].tolist()
        assert lanes.position_ids_BW[lane, part].tolist() == list(range(lengths_N[row]))
    padding_BW = lanes.input_ids_BW == 0
    assert padding_BW.sum() == batch.width * len(batch.lanes) - lengths_N[batch.rows].sum()
    assert lanes.position_ids_BW[1].tolist() == [0, 1, 2, 3, 0]


def test_an_epoch_of_nothing_has_no_steps() -> None:
    assert plan(np.zeros(3, dtype=int)) == []


@pytest.mark.parametrize("kind, last", [("cosine", 0.0), ("linear", 0.0), ("constant", 1.0)])
def test_schedules_rise_to_one_and_end_where_they_should(kind: str, last: float) -> None:
    shares = [learning_rate_share(step, 1000, kind=kind, warmup=0.03) for step in range(1000)]
    assert shares[0] == pytest.approx(1 / 30)
    assert max(shares) == shares[30] == 1.0
    assert shares[-1] == pytest.approx(last, abs=2e-3)
    assert all(a >= b for a, b in itertools.pairwise(shares[30:]))


def test_without_warmup_the_first_step_is_full() -> None:
    assert learning_rate_share(0, 1, kind="cosine", warmup=0.0) == 1.0
