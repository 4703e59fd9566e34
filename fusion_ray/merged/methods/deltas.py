"""The base plus a weighted sum of deltas: what task arithmetic, TIES, DARE, DELLA and breadcrumbs have in common.

They differ in which elements of each delta they keep (`sparsify.py`), and in whether the targets elect one sign for
every element.
"""

import math
from collections.abc import Iterator

import numba
import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.registry import Context
from fusion_ray.merged.methods.sparsify import Mask, NewMask, magnitudes
from fusion_ray.recipe.merge_methods import DeltaMethod

# mergekit's: sums of magnitudes below this are not rescaled, and a sum of weights below a tenth of it divides nothing.
_TOO_SMALL = 1e-7


def merge_deltas(
    tensor: BlockedTensor, parameters: DeltaMethod, context: Context, new_mask: NewMask, *, elect: bool
) -> MergedTensor:
    """Add the weighted sum of what is kept of the deltas to the base.

    Args:
        tensor: Model 0 is the base, the others are the targets.
        parameters: Weights, normalisation, rescaling and the factor on the sum; see DeltaMethod.
        context: See Context.
        new_mask: What is kept of each delta.
        elect: Take of each element only those deltas that have the sign of their weighted sum; a sum of 0 counts as
            positive.
    """
    weights_J = np.asarray(context.per_target(parameters.weight), dtype=np.float64)
    total = weights_J.sum() if abs(weights_J.sum()) >= _TOO_SMALL / 10 else 1.0

    def blocks() -> Iterator[np.ndarray]:
        scales_J = _measure_scales(tensor, new_mask()) if parameters.rescale else np.ones(len(weights_J))
        factor = parameters.lambda_ if elect or not parameters.normalize else parameters.lambda_ / total
        mask = new_mask()
        for block in tensor.blocks():
            yield _merge(block.values_MRC, mask(block), weights_J, scales_J, parameters.normalize, factor, elect)

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
    """The sum for one block, float32 [R, C], without and with an election."""
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
