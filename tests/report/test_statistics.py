"""Rates, intervals, oracle, calibration and verdict against plain computations."""

import numpy as np
import pytest

from fusion_ray.report.statistics.bootstrap import Difference, compare_models, resample_mean, resample_rates
from fusion_ray.report.statistics.calibration import Bins, bin_confidences, calibration_error, sum_bins
from fusion_ray.report.statistics.common_bytes import Answer, score_common_bytes
from fusion_ray.report.statistics.oracle import oracle_nll, pick_oracle, recovered_share
from fusion_ray.report.statistics.rates import Scores, measure_micro_rates, measure_rates
from fusion_ray.report.statistics.verdict import judge

LN2 = np.log(2.0)


def _scores(n: int = 60, gap: float = 0.0, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    bytes_N = rng.integers(20, 400, n)
    hard_N = rng.uniform(1.0, 4.0, n)
    noise_MN = rng.normal(0.0, 0.05, (2, n))
    rates_MN = hard_N + noise_MN + np.array([[0.0], [gap]])
    domains_N = np.array(["a" if row % 3 else "b" for row in range(n)], dtype=object)
    return Scores(("first", "second"), rates_MN * bytes_N * LN2, bytes_N, domains_N)


# --- rates -----------------------------------------------------------------------------------------------------


def test_a_domain_is_bits_over_bytes_and_overall_is_the_mean_of_the_domains() -> None:
    nll_MN = np.array([[8.0, 4.0, 1.0]]) * LN2
    scores = Scores(("m",), nll_MN, np.array([4, 2, 10]), np.array(["a", "a", "b"], dtype=object))
    assert measure_rates(scores)["m"] == pytest.approx({"a": 2.0, "b": 0.1, "overall": 1.05})
    assert measure_micro_rates(scores)["m"] == pytest.approx(13 / 16)


# --- bootstrap -------------------------------------------------------------------------------------------------


def test_resampled_rates_equal_a_loop_over_drawn_documents() -> None:
    scores = _scores(12)
    resamples = resample_rates(scores, 3, seed=5)
    rng = np.random.default_rng(5)
    for domain in ("a", "b"):
        rows = np.flatnonzero(scores.domains_N == domain)
        counts_BN = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=3)
        for draw, counts_N in enumerate(counts_BN):
            drawn = [row for row, n in zip(rows, counts_N, strict=True) for _ in range(n)]
            bits = sum(scores.nll_MN[0, row] / LN2 for row in drawn)
            assert resamples.rates[domain][draw, 0] == pytest.approx(bits / sum(scores.bytes_N[row] for row in drawn))
    assert resamples.rates["overall"] == pytest.approx((resamples.rates["a"] + resamples.rates["b"]) / 2)


def test_pairing_makes_the_interval_of_a_difference_far_narrower_than_that_of_a_rate() -> None:
    resamples = resample_rates(_scores(gap=0.05), 500, seed=1)
    found = compare_models(resamples, "first", "second", "overall", -0.05)
    low, high = np.quantile(resamples.rates["overall"][:, 0], [0.025, 0.975])
    assert found.high < 0
    assert found.p_value < 0.02
    assert found.high - found.low < 0.2 * (high - low)


def test_where_nothing_differs_about_one_in_twenty_p_values_is_below_five_percent() -> None:
    p_values = []
    for seed in range(200):
        scores = _scores(60, gap=0.0, seed=seed)
        p_values.append(compare_models(resample_rates(scores, 199, seed), "first", "second", "overall", 0.0).p_value)
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.12


def test_equal_seeds_give_equal_intervals_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    once = resample_rates(_scores(), 50, seed=3)
    monkeypatch.setattr("fusion_ray.report.statistics.bootstrap._CHUNK_VALUES", 100)
    again = resample_rates(_scores(), 50, seed=3)
    assert np.allclose(once.rates["overall"], again.rates["overall"])


def test_a_model_does_not_differ_from_itself() -> None:
    found = compare_models(resample_rates(_scores(), 100, 0), "first", "first", "a", 0.0)
    assert found == Difference(0.0, 0.0, 0.0, 1.0)


# --- the same bytes --------------------------------------------------------------------------------------------


def _answer(turns: list[list[int]], n_bytes: int) -> Answer:
    boundaries_T = np.array([end for turn in turns for end in turn])
    return Answer([len(turn) for turn in turns], boundaries_T, np.full(len(boundaries_T), -1.0), n_bytes)


def test_whole_answers_count_whole() -> None:
    common = score_common_bytes([_answer([[2, 5, 5]], 5), _answer([[5, 5]], 5)])
    assert common is not None
    assert common.nll_M.tolist() == [3.0, 2.0]
    assert common.n_bytes == 5


def test_a_shorter_cut_counts_up_to_the_last_boundary_that_all_share() -> None:
    common = score_common_bytes([_answer([[2, 4, 7, 9, 9]], 9), _answer([[1, 2, 3, 4, 6]], 6)])
    assert common is not None
    assert common.nll_M.tolist() == [2.0, 4.0]
    assert common.n_bytes == 4


def test_a_later_turn_that_one_model_lost_does_not_count() -> None:
    common = score_common_bytes([_answer([[3, 3], [0, 2, 4, 4]], 7), _answer([[1, 3, 3]], 3)])
    assert common is not None
    assert common.nll_M.tolist() == [2.0, 3.0]
    assert common.n_bytes == 3


def test_without_a_shared_boundary_nothing_compares() -> None:
    assert score_common_bytes([_answer([[3]], 3), _answer([[2]], 2)]) is None


# --- oracle and calibration ------------------------------------------------------------------------------------


def test_the_oracle_takes_the_best_model_and_the_pivot_on_a_tie() -> None:
    nll_MN = np.array([[3.0, 1.0, 2.0], [2.0, 1.0, 5.0], [9.0, 9.0, 9.0]])
    assert pick_oracle(nll_MN).tolist() == [1, 0, 0]
    assert oracle_nll(nll_MN).tolist() == [2.0, 1.0, 2.0]


def test_no_share_is_recovered_of_no_gain() -> None:
    assert recovered_share(2.0, 1.5, 2.0) is None
    assert recovered_share(2.0, 1.5, 1.99) is None
    assert recovered_share(2.0, 2.1, 1.8) == pytest.approx(-0.5)


def test_calibration_error_equals_a_loop_over_bins() -> None:
    rng = np.random.default_rng(0)
    confidence_T = rng.uniform(0, 1, 500)
    right_T = rng.uniform(0, 1, 500) < confidence_T**2
    expected = 0.0
    for index in range(15):
        inside = (confidence_T >= index / 15) & (confidence_T < (index + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence_T[inside].mean() - right_T[inside].mean())
    bins = sum_bins(
        [bin_confidences(confidence_T[:200], right_T[:200]), bin_confidences(confidence_T[200:], right_T[200:])]
    )
    assert isinstance(bins, Bins)
    assert calibration_error(bins) == pytest.approx(expected)
    assert bin_confidences(np.array([1.0]), np.array([True])).tokens[-1] == 1


# --- verdict ---------------------------------------------------------------------------------------------------

RATES = {"pivot": 2.7, "sft": 2.5, "merged": 2.4, "shuffled": 2.45}
BETTER, SAME, WORSE = (
    Difference(-0.1, -0.2, -0.05, 0.0005),
    Difference(-0.01, -0.05, 0.03, 0.4),
    Difference(0.1, 0.02, 0.2, 0.01),
)


def _judge(documents: int = 100, **arms: Difference) -> tuple[bool | None, str, tuple[str, ...]]:
    return judge(RATES, {f"merged - {arm}": {"overall": found, "a": found} for arm, found in arms.items()}, documents)


def test_better_than_every_arm_means_fusion_helped() -> None:
    helped, text, notes = _judge(pivot=BETTER, sft=BETTER, shuffled=BETTER)
    assert helped is True
    assert text.startswith("Fusion helped: ")
    assert "-0.1000 [-0.2000, -0.0500], p < 0.001" in text
    assert notes == ()


@pytest.mark.parametrize(
    ("arms", "reason"),
    [
        ({"pivot": BETTER, "sft": SAME}, "cannot be told apart from plain fine-tuning"),
        ({"pivot": BETTER, "sft": WORSE}, "is worse than plain fine-tuning"),
        ({"pivot": WORSE, "sft": BETTER}, "is worse than the pivot"),
        ({"pivot": BETTER, "sft": BETTER, "shuffled": SAME}, "not the sources' knowledge"),
    ],
)
def test_one_arm_that_is_not_beaten_means_fusion_did_not_help(arms: dict[str, Difference], reason: str) -> None:
    helped, text, _ = _judge(**arms)
    assert helped is False
    assert text.startswith("Fusion did not help: ")
    assert reason in text


def test_without_plain_fine_tuning_beside_it_a_run_cannot_tell() -> None:
    helped, text, _ = _judge(pivot=BETTER)
    assert helped is None
    assert "no control arm" in text


def test_few_documents_and_lost_domains_are_said() -> None:
    _, _, notes = _judge(documents=12, pivot=BETTER, sft=WORSE)
    assert any("worse in: a" in note for note in notes)
    assert any("Only 12" in note for note in notes)


def test_the_smallest_p_value_is_two_of_all_draws_and_one_more() -> None:
    sums_N, counts_N = np.full(50, 3.0), np.ones(50)
    sure = resample_mean(sums_N, counts_N, draws=199, seed=0)
    assert (sure.value, sure.low, sure.high) == (3.0, 3.0, 3.0)
    assert sure.p_value == pytest.approx(2 / 200)
    assert resample_mean(-sums_N, counts_N, draws=199, seed=0).p_value == pytest.approx(2 / 200)
    assert resample_mean(np.zeros(50), counts_N, draws=199, seed=0).p_value == 1.0
