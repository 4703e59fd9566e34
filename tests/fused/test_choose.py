"""Fusion functions against sums done by hand."""

import numpy as np
import pytest

from fusion_ray.distributions.mince import has_score, pick_mince
from fusion_ray.errors import NonFiniteError
from fusion_ray.fused.choose import average_topks, joint_groups, pick_mince_groups, take, weigh_avgce
from fusion_ray.storage.topk import TopK


def topk_of(rows: list[dict[int, float]], real: list[float], width: int) -> TopK:
    ids_TK = np.full((len(rows), width), -1, dtype=np.int32)
    logprobs_TK = np.full((len(rows), width), -np.inf, dtype=np.float32)
    for t, row in enumerate(rows):
        ordered = sorted(row.items(), key=lambda item: -item[1])
        ids_TK[t, : len(row)] = [token for token, _ in ordered]
        logprobs_TK[t, : len(row)] = np.log([probability for _, probability in ordered])
    return TopK(ids_TK, logprobs_TK, np.log(np.array(real)).astype(np.float32))


def test_the_pivot_wins_ties() -> None:
    assert pick_mince(np.array([[1.0], [1.0], [1.0]])).tolist() == [0]


def test_the_lowest_score_of_several_sources_wins() -> None:
    scores_MN = np.array([[3.0, 1.0, 2.0], [2.0, 2.0, 1.5], [2.5, 3.0, 1.0]], dtype=np.float32)
    assert pick_mince(scores_MN).tolist() == [1, 0, 2]


def test_scores_are_compared_as_float32() -> None:
    assert pick_mince(np.array([[1.0 + 1e-12], [1.0]])).tolist() == [0]


@pytest.mark.parametrize("worst", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_loses(worst: float) -> None:
    assert pick_mince(np.array([[worst, 9.0], [9.0, worst]])).tolist() == [1, 0]
    assert weigh_avgce(np.array([[worst], [9.0]]), tau=1.0).tolist() == [[0.0], [1.0]]


def test_an_example_that_nobody_scored_is_named() -> None:
    scores_MN = np.array([[1.0, np.nan], [1.0, np.inf]])
    assert has_score(scores_MN).tolist() == [True, False]
    for choose in (pick_mince, lambda scores: weigh_avgce(scores, 1.0)):
        with pytest.raises(NonFiniteError, match="example 1: no model has scored it"):
            choose(scores_MN)


def test_avgce_weights_are_a_softmax_of_bits_per_byte() -> None:
    weights_MN = weigh_avgce(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, np.inf]]), tau=0.5)
    expected = np.exp([-2.0, -4.0, -4.0]) / np.exp([-2.0, -4.0, -4.0]).sum()
    np.testing.assert_allclose(weights_MN[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(weights_MN.sum(axis=0), 1.0, rtol=1e-6)
    assert weights_MN[2, 1] == 0.0


def test_groups_of_several_sources_join_where_they_overlap() -> None:
    group_MT = np.array([[0, 0, 1, 2, 2, 3], [0, 1, 1, 2, 3, 4]])
    assert joint_groups(group_MT).tolist() == [0, 0, 0, 1, 1, 2]
    assert joint_groups(np.zeros((2, 0), dtype=np.int64)).tolist() == []


def test_each_group_of_tokens_is_taught_by_its_best_model() -> None:
    real_logprobs_MT = np.log(np.array([[0.5, 0.1, 0.9, 0.5], [0.1, 0.6, 0.8, np.nan]], dtype=np.float32))
    chosen_T = pick_mince_groups(real_logprobs_MT, np.array([0, 0, 1, 2]))
    assert chosen_T.tolist() == [1, 1, 0, 0]


def test_taking_keeps_the_chosen_distribution_of_each_position() -> None:
    pivot = topk_of([{1: 0.5}, {2: 0.5}], [0.5, 0.5], 1)
    source = topk_of([{3: 0.7}, {4: 0.7}], [0.1, 0.2], 1)
    taken = take(np.array([1, 0]), [pivot, source])
    assert taken.ids_TK.tolist() == [[3], [2]]
    np.testing.assert_allclose(np.exp(taken.real_logprobs_T), [0.1, 0.5], rtol=1e-6)


def test_mixing_adds_probability_on_the_same_token() -> None:
    pivot = topk_of([{1: 0.5, 2: 0.3}], [0.5], 2)
    source = topk_of([{2: 0.6, 3: 0.2}], [0.1], 2)
    mixed = average_topks(np.array([[0.25], [0.75]]), [pivot, source], 2)
    assert mixed.ids_TK.tolist() == [[2, 3]]
    np.testing.assert_allclose(np.exp(mixed.logprobs_TK[0]), [0.25 * 0.3 + 0.75 * 0.6, 0.75 * 0.2], rtol=1e-6)
    np.testing.assert_allclose(np.exp(mixed.real_logprobs_T), [0.25 * 0.5 + 0.75 * 0.1], rtol=1e-6)


def test_mixing_leaves_out_a_model_that_does_not_cover_the_position() -> None:
    pivot = topk_of([{1: 0.5}], [0.5], 1)
    uncovered = TopK(np.array([[-1]], np.int32), np.array([[-np.inf]], np.float32), np.array([np.nan], np.float32))
    mixed = average_topks(np.array([[0.25], [0.75]]), [pivot, uncovered], 1)
    np.testing.assert_allclose(np.exp(mixed.logprobs_TK), [[0.5]], rtol=1e-6)
    with pytest.raises(NonFiniteError, match="position 0"):
        average_topks(np.array([[0.0], [1.0]]), [pivot, uncovered], 1)


def test_mixing_one_model_with_itself_changes_nothing() -> None:
    pivot = topk_of([{1: 0.5, 2: 0.3}, {7: 0.2}], [0.5, 0.1], 2)
    mixed = average_topks(np.full((2, 2), 0.5), [pivot, pivot], 2)
    np.testing.assert_array_equal(mixed.ids_TK, pivot.ids_TK)
    np.testing.assert_allclose(mixed.logprobs_TK, pivot.logprobs_TK, rtol=1e-6)
