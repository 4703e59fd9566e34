"""Task arithmetic: the pivot plus the weighted sum of the deltas (arXiv 2212.04089); the base of TIES and its kin.

Model 0 is the pivot. `merge_deltas` adds what the others need: masks that drop elements of each delta, rescaling of
what is left, and the election of one sign for every element.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from fusion_ray.algorithms.merge.blocks import BlockedTensor, MergedTensor
from fusion_ray.algorithms.merge.sparsify import Masks, keep_all

_TOO_SMALL = 1e-7  # A norm below this is not rescaled to, and a divisor below a tenth of it is taken as 1; mergekit's.


@dataclass(frozen=True)
class Mixing:
    """How deltas are put together.

    Attributes:
        weights_J: Weight of each delta.
        normalize: Divide by the weights that took part, element by element where signs are elected.
        rescale: Scale each masked delta so that its sum of magnitudes is what it was.
        lambda_: Factor on the merged delta.
    """

    weights_J: Sequence[float]
    normalize: bool = False
    rescale: bool = False
    lambda_: float = 1.0


def merge_task_arithmetic(tensor: BlockedTensor, mixing: Mixing) -> MergedTensor:
    """Add the weighted deltas to the pivot."""
    return merge_deltas(tensor, mixing, keep_all(tensor), elect=False)


def merge_deltas(tensor: BlockedTensor, mixing: Mixing, masks: Masks, *, elect: bool) -> MergedTensor:
    """Add the weighted, masked deltas to the pivot.

    Args:
        tensor: Model 0 is the pivot.
        mixing: See Mixing.
        masks: What is kept of each delta.
        elect: Keep only what has the sign of the weighted sum; a sum of 0 counts as positive.
    """
    weights_J = np.asarray(mixing.weights_J, dtype=np.float64)
    total = weights_J.sum() if abs(weights_J.sum()) >= _TOO_SMALL / 10 else 1.0

    def blocks() -> Iterator[np.ndarray]:
        scales_J = _measure_scales(tensor, masks) if mixing.rescale else np.ones(len(weights_J))
        for block, keep_JRC in zip(tensor.blocks(), masks(), strict=True):
            models, rows, columns = block.values_MRC.shape
            flat_MN = np.ascontiguousarray(block.values_MRC).reshape(models, rows * columns)
            keep_JN = keep_JRC.reshape(models - 1, rows * columns)
            factor = mixing.lambda_ if elect or not mixing.normalize else mixing.lambda_ / total
            merge = _merge_elected if elect else _merge_all
            yield merge(flat_MN, keep_JN, weights_J, scales_J, mixing.normalize, factor).reshape(rows, columns)

    return MergedTensor(tuple(float(weight) for weight in weights_J), blocks())


def _measure_scales(tensor: BlockedTensor, masks: Masks) -> np.ndarray:
    """Sum of magnitudes of each delta, by what its mask leaves of it; float64 [J]."""
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    for block, keep_JRC in zip(tensor.blocks(), masks(), strict=True):
        sizes_JRC = np.abs(block.values_MRC[1:] - block.values_MRC[0])
        before.append(sizes_JRC.sum(axis=2, dtype=np.float64))
        after.append((sizes_JRC * keep_JRC).sum(axis=2, dtype=np.float64))
    scales_J = np.ones(tensor.n_models - 1)
    for j in range(len(scales_J)):
        total, kept = (math.fsum(value for part in parts for value in part[j]) for parts in (before, after))
        if total >= _TOO_SMALL and kept >= _TOO_SMALL:
            scales_J[j] = total / kept
    return scales_J


@numba.njit(cache=True, nogil=True)
def _merge_all(
    values_MN: np.ndarray, keep_JN: np.ndarray, weights_J: np.ndarray, scales_J: np.ndarray, _: bool, factor: float
) -> np.ndarray:
    merged_N = np.empty(values_MN.shape[1], dtype=np.float32)
    for n in range(len(merged_N)):
        mixed = 0.0
        for j in range(len(weights_J)):
            if keep_JN[j, n]:
                mixed += np.float64(values_MN[j + 1, n] - values_MN[0, n]) * scales_J[j] * weights_J[j]
        merged_N[n] = values_MN[0, n] + mixed * factor
    return merged_N


@numba.njit(cache=True, nogil=True)
def _merge_elected(
    values_MN: np.ndarray,
    keep_JN: np.ndarray,
    weights_J: np.ndarray,
    scales_J: np.ndarray,
    normalize: bool,
    factor: float,
) -> np.ndarray:
    targets = len(weights_J)
    merged_N = np.empty(values_MN.shape[1], dtype=np.float32)
    deltas_J = np.empty(targets, dtype=np.float64)
    for n in range(len(merged_N)):
        total = 0.0
        for j in range(targets):
            delta = np.float64(values_MN[j + 1, n] - values_MN[0, n])
            deltas_J[j] = delta * scales_J[j] * weights_J[j] if keep_JN[j, n] else 0.0
            total += deltas_J[j]
        mixed = 0.0
        divisor = 0.0
        for j in range(targets):
            if deltas_J[j] != 0.0 and (deltas_J[j] > 0.0) == (total >= 0.0):
                mixed += deltas_J[j]
                divisor += weights_J[j]
        if normalize and divisor != 0.0:
            mixed /= divisor
        merged_N[n] = values_MN[0, n] + mixed * factor
    return merged_N
