"""Exact selection by rank over a whole tensor in bounded memory: its k largest or k smallest elements.

float32 numbers that are not negative sort like their bits. One pass counts how often each value of the upper 16 bits
occurs, a second pass the lower 16 bits below the value found. That gives the exact number at a rank of a tensor of any
size, with half a megabyte of counts for each target. Of equal numbers the one that comes first in the tensor is taken
first, as in a stable sort.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numba
import numpy as np

# Gives, each time it is called, the scores of a tensor block by block: float32 [J, R, C], not negative.
Scores = Callable[[], Iterator[np.ndarray]]
Counts = Sequence[int] | Callable[[np.ndarray], Sequence[int]]
_BINS = 1 << 16


class Cut(NamedTuple):
    """Where a selection ends: it takes all elements beyond `value`, and of those equal to it the first `ties`."""

    value: float
    ties: int


def find_cuts(scores: Scores, counts: Counts, *, largest: bool) -> list[Cut]:
    """Find for each of J targets the cut that selects a given number of its largest (or smallest) elements.

    Args:
        scores: The scores, block by block; called twice.
        counts: How many elements to select of each target, from none to all; or a function that says so, given how
            many elements of each target are not 0.
        largest: Whether to select the largest.
    """
    high_JB, nonzero_J = np.zeros((1, _BINS), dtype=np.int64), np.zeros(1, dtype=np.int64)
    for number, scores_JRC in enumerate(scores()):
        if number == 0:
            high_JB, nonzero_J = (np.repeat(zeros, len(scores_JRC), axis=0) for zeros in (high_JB, nonzero_J))
        nonzero_J += _count_high(_as_bits(scores_JRC), high_JB)
    counts_J = counts(nonzero_J) if callable(counts) else counts
    if not high_JB.any():  # An empty tensor.
        return [Cut(0.0, 0)] * len(counts_J)
    bins_J = np.array([_find_bin(high_JB[j], count, largest) for j, count in enumerate(counts_J)])
    low_JB = np.zeros_like(high_JB)
    for scores_JRC in scores():
        _count_low(_as_bits(scores_JRC), bins_J, low_JB)
    return [_find_cut(high_JB[j], low_JB[j], int(bins_J[j]), count, largest) for j, count in enumerate(counts_J)]


def _find_cut(high_B: np.ndarray, low_B: np.ndarray, high: int, count: int, largest: bool) -> Cut:
    left = count - _beyond(high_B, high, largest)
    low = _find_bin(low_B, left, largest)
    value = np.uint32(high << 16 | low).view(np.float32)
    return Cut(float(value), left - _beyond(low_B, low, largest))


def _find_bin(counts_B: np.ndarray, count: int, largest: bool) -> int:
    """The bin that holds the last element to select; if none is to be selected, the outermost bin that is not empty."""
    ordered_B = counts_B[::-1] if largest else counts_B
    place = min(int(np.searchsorted(np.cumsum(ordered_B), max(count, 1))), _BINS - 1)
    return _BINS - 1 - place if largest else place


def _beyond(counts_B: np.ndarray, place: int, largest: bool) -> int:
    return int(counts_B[place + 1 :].sum() if largest else counts_B[:place].sum())


def _as_bits(scores_JRC: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(scores_JRC).view(np.uint32).reshape(len(scores_JRC), -1)


@numba.njit(cache=True, nogil=True)
def _count_high(bits_JN: np.ndarray, counts_JB: np.ndarray) -> np.ndarray:
    """Count into bins, and count what is not 0."""
    nonzero_J = np.zeros(bits_JN.shape[0], dtype=np.int64)
    for j in range(bits_JN.shape[0]):
        for n in range(bits_JN.shape[1]):
            counts_JB[j, bits_JN[j, n] >> 16] += 1
            nonzero_J[j] += bits_JN[j, n] != 0
    return nonzero_J


@numba.njit(cache=True, nogil=True)
def _count_low(bits_JN: np.ndarray, bins_J: np.ndarray, counts_JB: np.ndarray) -> None:
    for j in range(bits_JN.shape[0]):
        for n in range(bits_JN.shape[1]):
            if bits_JN[j, n] >> 16 == bins_J[j]:
                counts_JB[j, bits_JN[j, n] & 0xFFFF] += 1


class Selection:
    """The elements that cuts select, said block by block, in order; for one pass over the tensor."""

    def __init__(self, cuts: Sequence[Cut], *, largest: bool) -> None:
        self._values_J = np.array([cut.value for cut in cuts], dtype=np.float32)
        self._left_J = np.array([cut.ties for cut in cuts], dtype=np.int64)
        self._largest = largest

    def take(self, scores_JRC: np.ndarray) -> np.ndarray:
        """True for the selected elements of the next block, bool [J, R, C]."""
        flat_JN = np.ascontiguousarray(scores_JRC).reshape(len(scores_JRC), -1)
        return _take(flat_JN, self._values_J, self._left_J, self._largest).reshape(scores_JRC.shape)


@numba.njit(cache=True, nogil=True)
def _take(scores_JN: np.ndarray, values_J: np.ndarray, left_J: np.ndarray, largest: bool) -> np.ndarray:
    taken_JN = np.zeros(scores_JN.shape, dtype=np.bool_)
    for j in range(scores_JN.shape[0]):
        value = values_J[j]
        for n in range(scores_JN.shape[1]):
            score = scores_JN[j, n]
            if (score > value) if largest else (score < value):
                taken_JN[j, n] = True
            elif score == value and left_J[j] > 0:
                left_J[j] -= 1
                taken_JN[j, n] = True
    return taken_JN
