"""Small numbers of the targets stage, worked out by hand: learning rates, divergences, soft targets, plans, arms."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from fusion_ray.errors import CorruptArtifactError, RecipeError
from fusion_ray.targets import packing
from fusion_ray.targets.control_arms import as_anchored, as_self, as_sft, as_shuffled
from fusion_ray.targets.divergences import diverge, diverge_within
from fusion_ray.targets.packing import Batch, Step
from fusion_ray.targets.schedule import learning_rate_share
from fusion_ray.targets.soft_target import SoftTarget, gold_target, soft_target


@pytest.mark.parametrize(
    ("kind", "total", "warmup", "shares"),
    [
        ("linear", 4, 0.0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 4, 0.0, [1, 0.853553, 0.5, 0.146447]),
        ("constant", 3, 0.0, [1, 1, 1]),
        ("linear", 6, 0.3, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", 4, 0.5, [0.5, 1, 1, 0.5]),
        ("constant", 3, 0.1, [1, 1, 1]),
        ("constant", 3, 0.5, [0.5, 1, 1]),
        ("linear", 2, 1.0, [0.5, 1, 1]),
        ("linear", 3, 0.7, [1 / 3, 2 / 3, 1, 1, 0]),
    ],
)
def test_learning_rates_of_every_update(kind: Any, total: int, warmup: float, shares: list[float]) -> None:
    found = [learning_rate_share(step, total, kind=kind, warmup=warmup) for step in range(len(shares))]
    assert found == pytest.approx(shares, abs=1e-6)


LN2 = math.log(2.0)
# P is 1/2, 1/4, 1/4 and Q is 1/4, 1/2, 1/4; the last outcome does not exist.
P_NO = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
LOGQ_NO = torch.tensor([[0.25, 0.5, 0.25, 0.125]]).log()
UNUSED_NO = torch.tensor([[False, False, False, True]])


@pytest.mark.parametrize(
    ("kind", "value", "gradient"),
    [
        ("ce", 1.75 * LN2, [-0.5, -0.25, -0.25, 0.0]),
        ("kl", 0.25 * LN2, [-0.5, -0.25, -0.25, 0.0]),
        ("rkl", 0.25 * LN2, [0.25 - 0.25 * LN2, 0.5 + 0.5 * LN2, 0.25, 0.0]),
        ("jsd", 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3),
         [0.125 * math.log(2 / 3), 0.25 * math.log(4 / 3), 0.0, 0.0]),
    ],
)  # fmt: skip
def test_divergences_of_halves_and_quarters(kind: Any, value: float, gradient: list[float]) -> None:
    found = diverge(kind, P_NO, LOGQ_NO, UNUSED_NO)
    assert found.value_N.tolist() == pytest.approx([value], abs=1e-6)
    assert found.gradient_NO[0].tolist() == pytest.approx(gradient, abs=1e-6)


def test_outcomes_that_one_side_rules_out_cost_what_they_should() -> None:
    p_NO, logq_NO, all_used = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]).log(), torch.zeros(1, 2).bool()
    assert diverge("kl", p_NO, logq_NO, all_used).value_N.item() == pytest.approx(LN2)
    found = diverge("rkl", p_NO, logq_NO, all_used)
    ratios = [-LN2, -LN2 + 8 * math.log(10)]
    assert found.value_N.item() == pytest.approx(sum(ratios) / 2, abs=1e-5)
    assert found.gradient_NO[0].tolist() == pytest.approx([(ratio + 1) / 2 for ratio in ratios], abs=1e-5)
    certain_NO = torch.tensor([[0.0, -torch.inf]])
    found = diverge("jsd", torch.tensor([[0.5, 0.5]]), certain_NO, all_used)
    assert found.value_N.item() == pytest.approx(0.5 * (0.5 * math.log(2 / 3) + 0.5 * LN2 + math.log(4 / 3)), abs=1e-6)
    assert found.gradient_NO[0].tolist() == pytest.approx([0.5 * math.log(4 / 3), 0.0], abs=1e-6)
    found = diverge("jsd", torch.tensor([[1.0, 0.0]]), certain_NO, all_used)
    assert (found.value_N.item(), found.gradient_NO.tolist()) == (0.0, [[0.0, 0.0]])


def test_reverse_kl_within_the_kept_tokens_does_not_see_the_rest() -> None:
    logq_NK = torch.tensor([[0.1, 0.3, 0.6]]).log()
    unused_NK = torch.tensor([[False, False, True]])
    found = diverge_within(torch.tensor([[0.5, 0.5, 0.0]]), logq_NK, unused_NK)
    ratios = [-LN2, math.log(1.5)]  # Q is 1/4 and 3/4 there.
    value = 0.25 * ratios[0] + 0.75 * ratios[1]
    assert found.value_N.tolist() == pytest.approx([value], abs=1e-6)
    expected = [0.25 * (ratios[0] - value), 0.75 * (ratios[1] - value), 0.0]
    assert found.gradient_NO[0].tolist() == pytest.approx(expected, abs=1e-6)
    found = diverge_within(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]).log(), torch.zeros(1, 2).bool())
    assert found.value_N.item() == pytest.approx(-LN2 + 4 * math.log(10), abs=1e-4)


def plain(target: SoftTarget) -> dict[str, Any]:
    return {name: value if isinstance(value, str) else value.tolist() for name, value in vars(target).items()}


IDS_NK = torch.tensor([[0, 3], [1, -1], [-1, -1], [2, 5], [4, 2]], dtype=torch.int32)
LOGPROBS_NK = torch.tensor([[0.5, 0.25], [0.5, 0.5], [0.5, 0.5], [0.5, 0.25], [0.6, 0.4]]).log()
CHOSEN_N = torch.tensor([0, 2, 1, -1, -2])
GOLD_N = torch.arange(5)


@pytest.mark.parametrize(
    ("tail", "temperature", "probs", "tails"),
    [
        ("bucket", 1.0, [[0.5, 0.25], [0.5, 0], [0, 0], [0, 0], [0.6, 0.4]], [0.25, 0.5, 0, 0, 0]),
        # Squares, made to sum to one.
        ("bucket", 0.5, [[4 / 6, 1 / 6], [0.5, 0], [0, 0], [0, 0], [9 / 13, 4 / 13]], [1 / 6, 0.5, 0, 0, 0]),
        ("renormalise", 1.0, [[2 / 3, 1 / 3], [1, 0], [0, 0], [0, 0], [0.6, 0.4]], [0] * 5),
        ("renormalise", 0.5, [[0.8, 0.2], [1, 0], [0, 0], [0, 0], [9 / 13, 4 / 13]], [0] * 5),
        ("sampled", 1.0, [[0.5, 0.25], [0.5, 0], [0, 0], [0, 0], [0.6, 0.4]], [0] * 5),
    ],
)
def test_a_soft_target_is_what_was_kept_in_its_place(
    tail: Any, temperature: float, probs: list[list[float]], tails: list[float]
) -> None:
    made = soft_target(GOLD_N, IDS_NK, LOGPROBS_NK, CHOSEN_N, lambda_=0.25, tail=tail, temperature=temperature)
    torch.testing.assert_close(made.probs_NK, torch.tensor(probs), atol=1e-6, rtol=0)
    torch.testing.assert_close(made.tail_N, torch.tensor(tails).float(), atol=1e-6, rtol=0)
    assert (made.ids_NK.tolist(), made.ids_NK.dtype) == (IDS_NK.tolist(), torch.int64)
    assert (made.lambda_N.tolist(), made.lambda_N.dtype) == ([0.25, 0.25, 1, 1, 0], torch.float32)
    assert (made.gold_N.tolist(), made.tail) == ([0, 1, 2, 3, 4], tail)
    assert plain(made[1:3])["lambda_N"] == [0.25, 1] and len(made[1:3]) == 2
    assert plain(made.to(torch.device("cpu"))) == plain(made)


def test_gold_alone_has_no_soft_part() -> None:
    made = gold_target(torch.tensor([7, 8]))
    assert plain(made) == {
        "gold_N": [7, 8], "ids_NK": [[], []], "probs_NK": [[], []], "tail_N": [0, 0], "lambda_N": [1, 1],
        "tail": "bucket",
    }  # fmt: skip
    assert (made.ids_NK.dtype, made.probs_NK.shape) == (torch.int64, (2, 0))


@pytest.mark.parametrize(("tokens", "steps"), [(0, 1), (1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_an_epoch_has_as_few_updates_as_hold_its_tokens(tokens: int, steps: int) -> None:
    assert packing.count_steps(np.array([tokens]), 10) == steps


def test_rows_go_into_the_lane_that_they_leave_the_least_room_in() -> None:
    lengths_N = np.array([3, 5, 2, 7, 5, 1])
    lanes = packing._fill_lanes(np.arange(6), lengths_N, 10)
    # 7 opens a lane, 5 one more, the other 5 fills that; 3 fills the first; 2 and 1 open a third.
    assert lanes == [(3, 0), (1, 4), (2, 5)]
    assert packing._fill_lanes(np.array([4, 1]), lengths_N, 9) == [(4,), (1,)]
    assert packing._fill_lanes(np.array([3, 5, 2]), lengths_N, 8) == [(3, 5), (2,)]
    assert packing._fill_lanes(np.array([3, 4, 0]), np.array([3, 0, 0, 4, 4]), 7) == [(3, 0), (4,)]


def test_the_fullest_lanes_are_batched_together() -> None:
    lengths_N = np.array([4, 10, 9, 5, 3])
    lanes = [(0,), (1,), (2,), (3,), (4,)]
    assert packing._group_lanes(lanes, lengths_N, 20) == [Batch(10, ((1,), (2,))), Batch(5, ((3,), (0,), (4,)))]
    assert packing._group_lanes(lanes, lengths_N, 19)[:2] == [Batch(10, ((1,),)), Batch(9, ((2,), (3,)))]
    assert packing._group_lanes([(0, 3), (2,)], lengths_N, 18) == [Batch(9, ((0, 3), (2,)))]


def test_padding_is_the_share_of_positions_without_a_token() -> None:
    lengths_N = np.array([4, 3, 2, 1])
    steps = [Step((Batch(4, ((0,), (1,))),)), Step((Batch(2, ((2,),)), Batch(2, ((3,),))))]
    assert packing.share_of_padding(steps, lengths_N) == pytest.approx(1 - 10 / 12)
    assert [step.rows for step in steps] == [[0, 1], [2, 3]] and steps[0].batches[0].rows == [0, 1]


def test_an_epoch_is_cut_where_half_of_a_row_lies_and_no_step_is_empty() -> None:
    def rows_of(lengths: list[int], tokens_per_step: int) -> list[list[int]]:
        steps = packing.plan_epoch(
            np.array(lengths), tokens_per_step=tokens_per_step, tokens_per_batch=64, seed=0, epoch=0
        )
        return [[lengths[row] for row in step.rows] for step in steps]

    assert rows_of([4] * 6, 8) == [[4, 4]] * 3
    assert rows_of([4] * 6, 24) == [[4] * 6]
    assert rows_of([4] * 6, 23) == [[4] * 3] * 2
    assert rows_of([5, 0, 5], 5) == [[5], [5]]
    assert rows_of([6], 6) == [[6]]
    for limits, name in (((9, 10), "tokens_per_step"), ((10, 9), "tokens_per_batch")):
        with pytest.raises(RecipeError, match=rf"row 2 has 10 tokens, more than targets\.{name} 9\. Raise {name}, or"):
            packing.plan_epoch(
                np.array([1, 2, 10]), tokens_per_step=limits[0], tokens_per_batch=limits[1], seed=0, epoch=0
            )
    fits = packing.plan_epoch(np.array([10]), tokens_per_step=10, tokens_per_batch=10, seed=0, epoch=0)
    assert fits == [Step((Batch(10, ((0,),)),))]


@pytest.mark.parametrize(
    ("lengths", "tokens_per_batch", "batches"),
    [
        ([5, 5], 10, [Batch(5, ((0,), (1,)))]),
        ([5, 3, 2], 10, [Batch(5, ((0,), (1, 2)))]),
        ([5, 4], 10, [Batch(9, ((0, 1),))]),  # One lane of all tokens wastes less than two of the longest.
        ([5, 4], 9, [Batch(5, ((0,),)), Batch(4, ((1,),))]),
        ([5, 4], 8, [Batch(5, ((0,),)), Batch(4, ((1,),))]),
        ([6, 3, 3, 3], 100, [Batch(15, ((0, 1, 2, 3),))]),
        ([6, 3, 3, 3], 14, [Batch(6, ((0,), (1, 2))), Batch(3, ((3,),))]),
        ([50, 50, 49], 150, [Batch(50, ((0,), (1,), (2,)))]),  # 1 % is little.
        # Lanes of half as much again as the longest waste least; then of twice and three times as much; then of all.
        ([4, 2, 10], 20, [Batch(14, ((2, 0),)), Batch(2, ((1,),))]),
        ([7, 2, 6], 21, [Batch(13, ((0, 2),)), Batch(2, ((1,),))]),
        ([11, 11, 4, 10], 44, [Batch(32, ((0, 1, 3),)), Batch(4, ((2,),))]),
        ([10, 10, 6, 11, 10, 10, 9], 66, [Batch(66, ((3, 0, 1, 4, 5, 6, 2),))]),
        ([10, 11, 2], 23, [Batch(12, ((0, 2),)), Batch(11, ((1,),))]),
        ([50, 50, 46], 150, [Batch(100, ((0, 1),)), Batch(46, ((2,),))]),
    ],
)
def test_lanes_are_the_narrowest_that_waste_almost_nothing(
    lengths: list[int], tokens_per_batch: int, batches: list[Batch]
) -> None:
    assert packing._cut_into_batches(np.arange(len(lengths)), np.array(lengths), tokens_per_batch) == batches


def test_a_batch_is_laid_out_token_by_token() -> None:
    lanes = packing.lay_out(
        Batch(5, ((4, 7), (2,))), {4: np.array([1, 2]), 7: np.array([3]), 2: np.array([4, 5, 6])}, 9
    )
    assert lanes.input_ids_BW.tolist() == [[1, 2, 3, 9, 9], [4, 5, 6, 9, 9]]
    assert lanes.position_ids_BW.tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 0, 1]]
    assert lanes.starts == {4: (0, 0), 7: (0, 2), 2: (1, 0)}


INTS, FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())


def fused(chosen: list[Any], ids: list[Any], logprobs: list[Any], reasons: list[Any]) -> pa.Table:
    columns = {
        "id": pa.array([str(n) for n in range(len(chosen))]), "chosen": pa.array(chosen, pa.list_(pa.int16())),
        "topk_ids": pa.array(ids, INTS), "topk_logprobs": pa.array(logprobs, FLOATS),
        "reason": pa.array(reasons, pa.string()),
    }  # fmt: skip
    return pa.table(columns)


FUSED = fused(
    [[1, -1, 0], None, [-1, 2]], [[1, 2, 3, 4, 5, 6], None, [7, 8, 9, 10]],
    [[-1, -2, -3, -4, -5, -6], None, [-7, -8, -9, -10]], [None, "no", None],
)  # fmt: skip
START = pa.table(
    {
        "id": ["0", "1", "2"], "real_logprobs": pa.array([[0, 0, 0], [0], [0, 0]], FLOATS),
        "topk_ids": pa.array([[11, 12, 13], [14], [15, 16]], INTS),
        "topk_logprobs": pa.array([[-0.5, -1.5, -2.5], [-1], [-3.5, -4.5]], FLOATS),
    }
)  # fmt: skip


def test_arms_change_who_teaches_and_nothing_else() -> None:
    assert as_sft(FUSED).to_pydict() == FUSED.to_pydict() | {"chosen": [[-1, -1, -1], None, [-1, -1]]}
    own = {name: START[name].to_pylist() for name in ("topk_ids", "topk_logprobs")}
    assert as_self(FUSED, START).to_pydict() == FUSED.to_pydict() | {"chosen": [[0, 0, 0], None, [0, 0]]} | own
    inf = float("inf")
    assert as_anchored(FUSED, START).to_pydict() == FUSED.to_pydict() | {
        "chosen": [[1, -2, 0], None, [-2, 2]],
        "topk_ids": [[1, 2, 12, -1, 5, 6], None, [15, -1, 9, 10]],
        "topk_logprobs": [[-1, -2, -1.5, -inf, -5, -6], None, [-3.5, -inf, -9, -10]],
    }
    two = pa.table({"id": ["0"], "real_logprobs": pa.array([[0]], FLOATS), "topk_ids": pa.array([[14, 15]], INTS),
                    "topk_logprobs": pa.array([[-1, -2]], FLOATS)})  # fmt: skip
    taught, untaught = (fused([[chosen]], [[1]], [[-1]], [None]) for chosen in (1, -1))
    assert as_anchored(taught, two).equals(taught), "nothing is filled up where nothing is held"
    assert as_anchored(untaught, two).to_pydict() == untaught.to_pydict() | {
        "chosen": [[-2]], "topk_ids": [[14, 15]], "topk_logprobs": [[-1, -2]]
    }  # fmt: skip
    assert as_sft(FUSED.slice(2)).to_pydict()["chosen"] == [[-1, -1]]


def test_two_rows_that_are_shuffled_swap_repeated_or_cut_to_their_length() -> None:
    for seed in range(3):
        assert as_shuffled(FUSED, seed, "x").to_pydict() == FUSED.to_pydict() | {
            "topk_ids": [[7, 8, 9, 10, 7, 8], None, [1, 2, 3, 4]],
            "topk_logprobs": [[-7, -8, -9, -10, -7, -8], None, [-1, -2, -3, -4]],
        }
    short = fused([[1], [1]], [[1, 2], [3, 4]], [[-1, -2], [-3, -4]], [None, None])
    assert as_shuffled(short, 0, "x")["topk_ids"].to_pylist() == [[3, 4], [1, 2]]
    alone = fused([[1], [], [1]], [[1, 2], [], [3, 4]], [[-1, -2], [], [-3, -4]], [None, None, "no"])
    assert as_shuffled(alone, 0, "x").to_pydict() == alone.to_pydict()


def test_other_ids_and_other_lengths_of_usable_rows_are_refused() -> None:
    renamed = START.set_column(0, "id", [["0", "1", "x"]])
    longer = START.set_column(1, "real_logprobs", pa.array([[0, 0, 0], [0], [0, 0, 0]], FLOATS))
    missing = START.set_column(1, "real_logprobs", pa.array([[0, 0, 0], [0], None], FLOATS))
    for other in (renamed, longer, missing):
        with pytest.raises(CorruptArtifactError, match="the fused set and the pivot's distributions do not hold"):
            as_self(FUSED, other)
        with pytest.raises(CorruptArtifactError, match="the fused set and the SFT control's distributions do not hold"):
            as_anchored(FUSED, other)
    nothing = FUSED.slice(1, 1)
    assert as_self(nothing, START.slice(1, 1))["chosen"].to_pylist() == [None], "no row is usable"
