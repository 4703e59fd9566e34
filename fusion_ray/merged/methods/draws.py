"""Random draws that depend on a key and a place alone, so they do not change with the way a tensor is cut."""

import hashlib

import numba
import numpy as np


def key_of(seed: int, *names: str) -> int:
    """A 64-bit key for the draws of one tensor and model."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def uniform(key: int, start: int, count: int) -> np.ndarray:
    """Draws number start.. of a key's sequence, uniform in [0, 1), float64; any stretch without those before it."""
    return _uniform(np.uint64(key), np.uint64(start), count)


@numba.njit(cache=True, nogil=True)
def _uniform(key: np.uint64, start: np.uint64, count: int) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood 2014) at the places start.. of its sequence."""
    draws_N = np.empty(count, dtype=np.float64)
    for n in range(count):
        z = key + (start + np.uint64(n) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        draws_N[n] = np.float64((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return draws_N
