"""The oracle: who would answer best if someone always knew whom to ask, and how much of that fusion recovers."""

import numpy as np

# A gain below this share of the pivot's own rate is no gain: what is recovered of it would be noise over noise.
_NO_GAIN = 0.01


def pick_oracle(nll_MN: np.ndarray) -> np.ndarray:
    """Row of the model with the lowest nll of each document, int64 [N]; a tie goes to the lower row, the pivot's.

    >>> pick_oracle(np.array([[2.0, 1.0], [1.5, 1.0]])).tolist()
    [1, 0]
    """
    return np.argmin(nll_MN, axis=0)


def oracle_nll(nll_MN: np.ndarray) -> np.ndarray:
    """The nll of each document's best model, [N]."""
    best: np.ndarray = nll_MN.min(axis=0)
    return best


def recovered_share(pivot: float, model: float, oracle: float) -> float | None:
    """Which share of the way from the pivot to the oracle a model has come, in bits per byte.

    Above 1 it passes the oracle, below 0 it is worse than the pivot; None where the oracle gains less than 1 %.

    >>> recovered_share(3.0, 2.75, 2.5)
    0.5
    """
    gain = pivot - oracle
    return None if gain < _NO_GAIN * pivot else (pivot - model) / gain
