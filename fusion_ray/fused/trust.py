"""Trust in a source: how far its distribution at a position is believed.

A source that fits a chat better than the pivot may still be confidently wrong at some tokens, and a pivot that learns
this confidence unlearns what it knew. So each token is taken as drawn from the source with probability `trust`, else
from the pivot. Given the token that came, Bayes' rule says how likely it was drawn from the source. All
distributions are over the pivot's tokens, log-probabilities in nats.
"""

import numpy as np

# Ratios of two models' probabilities are counted in bins, so that counts of shards add up.
BIN_NATS = 0.01
_MOST_NATS = 40.0
_RATIOS = np.exp(np.arange(-_MOST_NATS, _MOST_NATS + BIN_NATS / 2, BIN_NATS))


def believe(pivot_logprobs_T: np.ndarray, source_logprobs_T: np.ndarray, trust_T: np.ndarray) -> np.ndarray:
    """How likely the source, and not the pivot, is right about each real token; float64 [T] in [0, 1].

    Args:
        pivot_logprobs_T: What the pivot gives the real tokens.
        source_logprobs_T: What the source, projected, gives them.
        trust_T: Prior probability that the source is right; in (0, 1].

    >>> believe(np.array([-1.0, -1.0, -1.0]), np.array([-1.0, -9.0, -9.0]), np.array([0.9, 0.9, 1.0])).round(4).tolist()
    [0.9, 0.003, 1.0]
    """
    lead_T = source_logprobs_T.astype(np.float64) - pivot_logprobs_T
    against_T = (1 - trust_T) / trust_T * np.exp(np.clip(-lead_T, -_MOST_NATS, 700.0))
    return 1.0 / (1.0 + against_T)


def count_ratios(pivot_logprobs_T: np.ndarray, source_logprobs_T: np.ndarray) -> np.ndarray:
    """Count positions by how much more the source gives the real token than the pivot; counts add up over shards.

    Returns:
        int64, a bin for every 0.01 nat between -40 and 40; what lies beyond is counted at the ends.
    """
    lead_T = np.clip(source_logprobs_T.astype(np.float64) - pivot_logprobs_T, -_MOST_NATS, _MOST_NATS)
    bins_T = np.rint((lead_T + _MOST_NATS) / BIN_NATS).astype(np.int64)
    return np.bincount(bins_T, minlength=len(_RATIOS))


def fit_trust(counts_H: np.ndarray) -> float:
    """The trust under which real tokens are likeliest, from `count_ratios`; 1 where there are none.

    The log-likelihood of the mixture trust * source + (1 - trust) * pivot is concave in trust, so halving the interval
    finds its peak.

    >>> fit_trust(count_ratios(np.full(100, -3.0), np.full(100, -1.0)))
    1.0
    >>> round(fit_trust(count_ratios(np.full(100, -3.0), np.where(np.arange(100) < 20, -12.0, -1.0))), 2)
    0.77
    """
    if not counts_H.any():
        return 1.0
    low, high = 0.0, 1.0
    if _slope(counts_H, high) >= 0:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(counts_H, middle) > 0 else (low, middle)
    return high


def _slope(counts_H: np.ndarray, trust: float) -> float:
    """Derivative of the log-likelihood."""
    used = counts_H > 0
    gains = _RATIOS[used] - 1.0
    return float((counts_H[used] * gains / (1.0 + trust * gains)).sum())
