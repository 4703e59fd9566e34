"""The two loops that most methods are made of: weighted sums over models, and sums over elements in float64.

Sums over a tensor add up each row in float64 and the rows exactly (`math.fsum`), so they do not depend on how the
tensor is cut into blocks.
"""

import math

import numba
import numpy as np

from fusion_ray.algorithms.merge.blocks import BlockedTensor


@numba.njit(cache=True, nogil=True)
def weigh(values_MN: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    """Sum of weights times values over the models: float64 inside, rounded once to float32."""
    models, size = values_MN.shape
    merged_N = np.empty(size, dtype=np.float32)
    for n in range(size):
        total = 0.0
        for m in range(models):
            total += weights_M[m] * values_MN[m, n]
        merged_N[n] = total
    return merged_N


def mix(values_MRC: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    """`weigh` on a block."""
    models, rows, columns = values_MRC.shape
    flat_MN = np.ascontiguousarray(values_MRC).reshape(models, rows * columns)
    return weigh(flat_MN, np.asarray(weights_M, dtype=np.float64)).reshape(rows, columns)


@numba.njit(cache=True, nogil=True)
def row_squares(values_MRC: np.ndarray) -> np.ndarray:
    """Sum of (model - model 0) squared over each row, float64 [J, R] for the models after the first."""
    models, rows, columns = values_MRC.shape
    sums_JR = np.zeros((models - 1, rows), dtype=np.float64)
    for j in range(models - 1):
        for r in range(rows):
            total = 0.0
            for c in range(columns):
                delta = np.float64(values_MRC[j + 1, r, c] - values_MRC[0, r, c])
                total += delta * delta
            sums_JR[j, r] = total
    return sums_JR


def delta_squares(tensor: BlockedTensor) -> np.ndarray:
    """Sum over the tensor of each model's squared delta from model 0, float64 [J]."""
    nothing_JR = np.zeros((tensor.n_models - 1, 0))  # A tensor may have no elements.
    return add_rows([nothing_JR, *(row_squares(block.values_MRC) for block in tensor.blocks())])


def add_rows(parts_JR: list[np.ndarray]) -> np.ndarray:
    """Add row sums [J, R] of all blocks up exactly, so that the order and the cuts do not matter; float64 [J]."""
    return np.array([math.fsum(row) for row in np.concatenate(parts_JR, axis=1)], dtype=np.float64)
