"""Calibration: among the tokens a model gives 70 %, are 70 % right?"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

N_BINS = 15


class Bins(NamedTuple):
    """Answer tokens sorted by how sure the model was of its first choice; bins add up: see `sum_bins`.

    Attributes:
        tokens: How many there are in each bin.
        confidence: Sum of the first choice's probability.
        right: How often the first choice was the token that came.
    """

    tokens: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def bin_confidences(confidence_T: np.ndarray, right_T: np.ndarray) -> Bins:
    """Put tokens into bins of equal width.

    Args:
        confidence_T: Probability of the first choice, in [0, 1].
        right_T: Whether the first choice was the token that came.
    """
    bins_T = np.minimum((confidence_T * N_BINS).astype(np.int64), N_BINS - 1)
    return Bins(
        np.bincount(bins_T, minlength=N_BINS).astype(np.float64),
        np.bincount(bins_T, weights=confidence_T, minlength=N_BINS),
        np.bincount(bins_T, weights=right_T.astype(np.float64), minlength=N_BINS),
    )


def sum_bins(parts: Iterable[Bins]) -> Bins:
    """The bins of all parts together; empty ones where there are no parts."""
    total = np.zeros((3, N_BINS))
    for part in parts:
        total += np.array(part)
    return Bins(*total)


def calibration_error(bins: Bins) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over the bins, weighted by tokens.

    Source: Guo et al., arXiv 1706.04599, with 15 bins of equal width.

    >>> calibration_error(bin_confidences(np.array([0.8, 0.8]), np.array([True, False])))
    0.30000000000000004
    """
    return float(np.abs(bins.confidence - bins.right).sum() / bins.tokens.sum())
