"""The loops that most methods are made of: weighted sums of the models, and sums over elements, in float64.

A sum over a tensor adds up each row in float64, then the rows exactly (`math.fsum`), so it does not depend on how the
tensor is cut into blocks. The loops run along rows, one model after the other, so that they compile to vector
instructions. For the same reason a row is added up in eight lanes; their number is fixed, so every machine gives the
same bits.
"""

import math
from collections.abc import Sequence

import numba
import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor

_LANES = 8


def combine(tensor: BlockedTensor, weights_M: np.ndarray | Sequence[float]) -> MergedTensor:
    """Sum the models, each times its weight."""
    weights_M = np.asarray(weights_M, dtype=np.float64)
    blocks = (weighted_sum(block.values_MRC, weights_M) for block in tensor.blocks())
    return MergedTensor(tuple(float(weight) for weight in weights_M), blocks)


@numba.njit(cache=True, nogil=True)
def weighted_sum(values_MRC: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    """Sum the models of a block, each times its weight: in float64, then rounded to float32 [R, C]."""
    models, rows, columns = values_MRC.shape
    merged_RC = np.empty((rows, columns), dtype=np.float32)
    total_C = np.empty(columns, dtype=np.float64)
    for r in range(rows):
        total_C[:] = 0.0
        for m in range(models):
            weight = weights_M[m]
            for c in range(columns):
                total_C[c] += weight * np.float64(values_MRC[m, r, c])
        for c in range(columns):
            merged_RC[r, c] = total_C[c]
    return merged_RC


@numba.njit(cache=True, nogil=True)
def row_squares(values_MRC: np.ndarray) -> np.ndarray:
    """Sum of squares over each row of each model's delta from model 0, float64 [J, R]."""
    models, rows, columns = values_MRC.shape
    sums_JR = np.zeros((models - 1, rows), dtype=np.float64)
    whole = columns - columns % _LANES
    for j in range(models - 1):
        for r in range(rows):
            lanes = np.zeros(_LANES, dtype=np.float64)
            for c in range(0, whole, _LANES):
                for lane in range(_LANES):
                    delta = np.float64(values_MRC[j + 1, r, c + lane] - values_MRC[0, r, c + lane])
                    lanes[lane] += delta * delta
            for c in range(whole, columns):
                delta = np.float64(values_MRC[j + 1, r, c] - values_MRC[0, r, c])
                lanes[0] += delta * delta
            sums_JR[j, r] = lanes.sum()
    return sums_JR


def delta_squares(tensor: BlockedTensor) -> np.ndarray:
    """Sum of squares over the tensor of each model's delta from model 0, float64 [J]."""
    nothing_JR = np.zeros((tensor.n_models - 1, 0))  # A tensor may have no elements.
    return add_rows([nothing_JR, *(row_squares(block.values_MRC) for block in tensor.blocks())])


def add_rows(parts_JR: list[np.ndarray]) -> np.ndarray:
    """Add up exactly the row sums [J, R] of all blocks, so that cuts and order do not matter; float64 [J]."""
    return np.array([math.fsum(row) for row in np.concatenate(parts_JR, axis=1)], dtype=np.float64)
