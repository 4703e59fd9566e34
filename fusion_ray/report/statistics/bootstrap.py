"""Intervals of differences between models: a bootstrap over documents, with the same draws for all models."""

from typing import NamedTuple

import numpy as np

from fusion_ray.report.statistics.rates import OVERALL, Scores

_CHUNK_VALUES = 1 << 22  # Bound on the counts held at once, so that memory does not grow with the draws.


class Difference(NamedTuple):
    """Bits per byte of one model minus another's: below 0 the first is better.

    Attributes:
        value: As measured.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Two-sided, of "no difference".
    """

    value: float
    low: float
    high: float
    p_value: float


class Resamples(NamedTuple):
    """Rates over resampled documents: for every domain and `overall`, float64 of shape [draws, models]."""

    models: tuple[str, ...]
    rates: dict[str, np.ndarray]


def resample_rates(scores: Scores, draws: int, seed: int) -> Resamples:
    """Draw documents with replacement, domain by domain, and measure all models on every draw.

    Documents are drawn and not tokens, because the tokens of one document are not independent. All models get the same
    documents in a draw (paired), so how hard a document is cancels out of their differences.

    Args:
        scores: The documents.
        draws: How often.
        seed: Equal seeds give equal draws.
    """
    rng = np.random.default_rng(seed)
    bits_NM = scores.nll_MN.T / np.log(2.0)
    rates = {}
    for domain in sorted(set(scores.domains_N.tolist())):
        mask_N = scores.domains_N == domain
        rates[str(domain)] = _resample_domain(bits_NM[mask_N], scores.bytes_N[mask_N], draws, rng)
    rates[OVERALL] = np.mean(list(rates.values()), axis=0)
    return Resamples(scores.models, rates)


def _resample_domain(bits_NM: np.ndarray, bytes_N: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    n = len(bytes_N)
    step = max(1, _CHUNK_VALUES // n)
    parts = []
    for start in range(0, draws, step):
        counts_BN = rng.multinomial(n, np.full(n, 1.0 / n), size=min(step, draws - start)).astype(np.float64)
        parts.append((counts_BN @ bits_NM) / (counts_BN @ bytes_N)[:, None])
    return np.concatenate(parts)


def compare_models(resamples: Resamples, first: str, second: str, domain: str, value: float) -> Difference:
    """The interval (2.5 % to 97.5 % of the draws) and p-value of a measured difference.

    The p-value is twice the share of draws on the other side of 0, at least 2 / (draws + 1).
    """
    rates_BM = resamples.rates[domain]
    differences_B = rates_BM[:, resamples.models.index(first)] - rates_BM[:, resamples.models.index(second)]
    return _describe(value, differences_B)


def resample_mean(sums_N: np.ndarray, counts_N: np.ndarray, draws: int, seed: int) -> Difference:
    """The mean of values that come in N clusters, its interval and the p-value of "it is 0"; clusters are drawn."""
    means_B1 = _resample_domain(sums_N[:, None].astype(np.float64), counts_N, draws, np.random.default_rng(seed))
    return _describe(float(sums_N.sum() / counts_N.sum()), means_B1[:, 0])


def _describe(value: float, draws_B: np.ndarray) -> Difference:
    low, high = np.quantile(draws_B, [0.025, 0.975])
    fewer = min(int((draws_B <= 0).sum()), int((draws_B >= 0).sum()))
    p_value = min(1.0, 2.0 * (fewer + 1) / (len(draws_B) + 1))
    return Difference(float(value), float(low), float(high), float(p_value))
