"""Task arithmetic: the pivot plus the weighted sum of the deltas (arXiv 2212.04089); the base of TIES and its kin.

Model 0 is the pivot. `merge_deltas` adds what the others need: masks that drop elements of each delta, rescaling of
what is left, and the election of one sign for every element.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.sparsify import Mask, NewMask, keep_all, magnitudes

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
    return merge_deltas(tensor, mixing, keep_all, elect=False)


def merge_deltas(tensor: BlockedTensor, mixing: Mixing, new_mask: NewMask, *, elect: bool) -> MergedTensor:
    """Add the weighted, masked deltas to the pivot.

    Args:
        tensor: Model 0 is the pivot.
        mixing: See Mixing.
        new_mask: What is kept of each delta.
        elect: Keep only what has the sign of the weighted sum; a sum of 0 counts as positive.
    """
    weights_J = np.asarray(mixing.weights_J, dtype=np.float64)
    total = weights_J.sum() if abs(weights_J.sum()) >= _TOO_SMALL / 10 else 1.0

    def blocks() -> Iterator[np.ndarray]:
        scales_J = _measure_scales(tensor, new_mask()) if mixing.rescale else np.ones(len(weights_J))
        factor = mixing.lambda_ if elect or not mixing.normalize else mixing.lambda_ / total
        mask = new_mask()
        for block in tensor.blocks():
            yield _merge(block.values_MRC, mask(block), weights_J, scales_J, mixing.normalize, factor, elect)

    return MergedTensor(tuple(float(weight) for weight in weights_J), blocks())


def _measure_scales(tensor: BlockedTensor, mask: Mask) -> np.ndarray:
    """Sum of magnitudes of each delta, divided by the sum of those that the mask keeps; float64 [J]."""
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    for block in tensor.blocks():
        sizes_JRC = magnitudes(block)
        before.append(sizes_JRC.sum(axis=2, dtype=np.float64))
        after.append((sizes_JRC * mask(block)).sum(axis=2, dtype=np.float64))
    scales_J = np.ones(tensor.n_models - 1)
    for j in range(len(scales_J)):
        total, kept = (math.fsum(value for part in parts for value in part[j]) for parts in (before, after))
        if total >= _TOO_SMALL and kept >= _TOO_SMALL:
            scales_J[j] = total / kept
    return scales_J


@numba.njit(cache=True, nogil=True)
def _merge(
    values_MRC: np.ndarray,
    keep_JRC: np.ndarray,
    weights_J: np.ndarray,
    scales_J: np.ndarray,
    normalize: bool,
    factor: float,
    elect: bool,
) -> np.ndarray:
    models, rows, columns = values_MRC.shape
    merged_RC = np.empty((rows, columns), dtype=np.float32)
    sum_C = np.empty(columns, dtype=np.float64)
    mixed_C = np.empty(columns, dtype=np.float64)
    divisor_C = np.empty(columns, dtype=np.float64)
    for r in range(rows):
        sum_C[:] = 0.0
        mixed_C[:] = 0.0
        divisor_C[:] = 0.0
        for j in range(models - 1):
            scale = scales_J[j] * weights_J[j]
            for c in range(columns):
                delta = np.float64(values_MRC[j + 1, r, c] - values_MRC[0, r, c]) * scale
                sum_C[c] += delta if keep_JRC[j, r, c] else 0.0
        if elect:
            for j in range(models - 1):
                scale = scales_J[j] * weights_J[j]
                for c in range(columns):
                    delta = np.float64(values_MRC[j + 1, r, c] - values_MRC[0, r, c]) * scale
                    agrees = keep_JRC[j, r, c] and (delta > 0.0 if sum_C[c] >= 0.0 else delta < 0.0)
                    mixed_C[c] += delta if agrees else 0.0
                    divisor_C[c] += weights_J[j] if agrees else 0.0
        for c in range(columns):
            mixed = sum_C[c]
            if elect:
                mixed = mixed_C[c] / divisor_C[c] if normalize and divisor_C[c] != 0.0 else mixed_C[c]
            merged_RC[r, c] = values_MRC[0, r, c] + mixed * factor
    return merged_RC
