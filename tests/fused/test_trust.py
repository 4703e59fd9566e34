"""Trust: which part of a source's distributions is believed, and how often it is right."""

import numpy as np
import pytest

from fusion_ray.fused.trust import BIN_NATS, believe, count_ratios, fit_trust


def models(n: int, wrong: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What a pivot and a source give tokens of which the source is surely wrong about some."""
    numbers = np.random.default_rng(seed)
    pivot_T = -numbers.exponential(3.0, n)
    source_T = np.where(numbers.random(n) < wrong, -numbers.uniform(8.0, 30.0, n), -numbers.exponential(0.7, n))
    return pivot_T.astype(np.float32), source_T.astype(np.float32)


def log_likelihood(pivot_T: np.ndarray, source_T: np.ndarray, trust: float) -> float:
    mixed_T = trust * np.exp(source_T.astype(np.float64)) + (1 - trust) * np.exp(pivot_T.astype(np.float64))
    return float(np.log(mixed_T).sum())


@pytest.mark.parametrize("wrong", [0.05, 0.2, 0.6])
def test_the_fitted_trust_explains_the_tokens_best(wrong: float) -> None:
    pivot_T, source_T = models(4000, wrong)
    grid = np.linspace(0.001, 1.0, 1000)
    best = grid[np.argmax([log_likelihood(pivot_T, source_T, trust) for trust in grid])]
    assert 0.1 < best < 0.99
    assert fit_trust(count_ratios(pivot_T, source_T)) == pytest.approx(best, abs=0.002)


def test_expectation_maximisation_stands_still_at_the_fitted_trust() -> None:
    pivot_T, source_T = models(20_000, 0.1)
    fitted = fit_trust(count_ratios(pivot_T, source_T))
    believed_T = believe(pivot_T, source_T, np.full(len(pivot_T), fitted))
    assert believed_T.mean() == pytest.approx(fitted, abs=1e-3)


def test_a_source_that_is_never_behind_is_trusted_wholly_and_one_always_behind_hardly() -> None:
    pivot_T, source_T = models(500, 0.0)
    ahead_T = np.maximum(pivot_T, source_T)
    assert fit_trust(count_ratios(pivot_T, ahead_T)) == 1.0
    assert 0 < fit_trust(count_ratios(ahead_T + 1.0, ahead_T)) < 1e-6
    assert fit_trust(count_ratios(pivot_T[:0], source_T[:0])) == 1.0


def test_counts_of_shards_add_up_and_lose_less_than_a_bin() -> None:
    pivot_T, source_T = models(3000, 0.2)
    parts = [count_ratios(pivot_T[part], source_T[part]) for part in (slice(0, 700), slice(700, None))]
    np.testing.assert_array_equal(parts[0] + parts[1], count_ratios(pivot_T, source_T))
    finer = fit_trust(count_ratios(pivot_T + BIN_NATS / 2, source_T))
    assert finer == pytest.approx(fit_trust(count_ratios(pivot_T, source_T)), abs=2e-3)


def test_belief_is_the_posterior_of_the_source_by_bayes_rule() -> None:
    pivot_T, source_T = models(1000, 0.3)
    for trust in (0.05, 0.5, 0.99):
        ours = trust * np.exp(source_T.astype(np.float64))
        expected = ours / (ours + (1 - trust) * np.exp(pivot_T.astype(np.float64)))
        np.testing.assert_allclose(believe(pivot_T, source_T, np.full(1000, trust)), expected, rtol=1e-6)
    assert (believe(pivot_T, source_T, np.ones(1000)) == 1.0).all()


def test_a_token_that_one_of_them_holds_impossible_is_the_other_s() -> None:
    nothing = np.float32(-np.inf)
    believed = believe(np.array([-1.0, nothing]), np.array([nothing, -1.0]), np.array([0.9, 0.9]))
    assert believed[0] < 1e-15 and believed[1] == 1.0
    assert count_ratios(np.array([-1.0, nothing]), np.array([nothing, -1.0])).sum() == 2
