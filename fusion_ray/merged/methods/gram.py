"""Inner products between the models of a tensor, and what follows from them without touching the tensor again.

What SLERP, NuSLERP, multi-SLERP, the Karcher mean and model stock give is a weighted sum of the models, and the weights
depend on the models' inner products alone. So one pass over the tensor finds those M x M numbers (the Gram matrix G),
a small computation turns them into weights, and a second pass sums. In between, a vector is held by the weights c of
the models that it is a sum of; its length is sqrt(c' G c).
"""

from collections.abc import Callable, Iterator

import numba
import numpy as np

from fusion_ray.merged.methods.blocks import Block, BlockedTensor
from fusion_ray.merged.methods.sums import add_rows

# Turns the Gram matrix of one vector of each model, float64 [M, M], into the weight of each model, float64 [M].
Weigh = Callable[[np.ndarray], np.ndarray]


@numba.njit(cache=True, nogil=True)
def row_products(values_MRC: np.ndarray, minus_first: bool) -> np.ndarray:
    """Inner products of each row between all models, float64 [M * M, R]; under `minus_first` of the deltas."""
    models, rows, columns = values_MRC.shape
    products_PR = np.zeros((models * models, rows), dtype=np.float64)
    for a in range(models):
        for b in range(a, models):
            for r in range(rows):
                total = 0.0
                for c in range(columns):
                    base = values_MRC[0, r, c] if minus_first else np.float32(0.0)
                    total += np.float64(values_MRC[a, r, c] - base) * np.float64(values_MRC[b, r, c] - base)
                products_PR[a * models + b, r] = total
                products_PR[b * models + a, r] = total
    return products_PR


def tensor_gram(tensor: BlockedTensor, *, minus_first: bool) -> np.ndarray:
    """Inner products between the whole tensors of all models, float64 [M, M]."""
    models = tensor.n_models
    parts = (row_products(block.values_MRC, minus_first) for block in tensor.blocks())
    return add_rows([np.zeros((models * models, 0)), *parts]).reshape(models, models)


def column_grams(tensor: BlockedTensor, *, minus_first: bool) -> np.ndarray:
    """Inner products between the columns of all models, float64 [C, M, M]."""
    total_CMM: np.ndarray | float = 0.0
    for block in tensor.blocks():
        values_MRC = block.values_MRC - block.values_MRC[0] if minus_first else block.values_MRC
        total_CMM = total_CMM + np.einsum("arc,brc->cab", values_MRC, values_MRC, dtype=np.float64)
    return np.asarray(total_CMM)


def row_grams(block: Block, *, minus_first: bool) -> np.ndarray:
    """Inner products between the rows of one block, float64 [R, M, M]."""
    models, rows, _ = block.values_MRC.shape
    return row_products(block.values_MRC, minus_first).T.reshape(rows, models, models)


def combine_by_row(tensor: BlockedTensor, weigh: Weigh, *, minus_first: bool) -> Iterator[np.ndarray]:
    """Sum the models row by row, each row by the weights that follow from its own inner products."""
    for block in tensor.blocks():
        weights_RM = np.stack([weigh(gram_MM) for gram_MM in row_grams(block, minus_first=minus_first)])
        yield np.einsum("rm,mrc->rc", weights_RM, block.values_MRC.astype(np.float64)).astype(np.float32)


def combine_by_column(tensor: BlockedTensor, weigh: Weigh, *, minus_first: bool) -> Iterator[np.ndarray]:
    """Sum the models column by column, each column by the weights that follow from its own inner products."""
    weights_CM = np.stack([weigh(gram_MM) for gram_MM in column_grams(tensor, minus_first=minus_first)])
    for block in tensor.blocks():
        yield np.einsum("cm,mrc->rc", weights_CM, block.values_MRC.astype(np.float64)).astype(np.float32)


def length(coefficients_M: np.ndarray, gram_MM: np.ndarray) -> float:
    """Length of the sum of the models' vectors with these weights."""
    return float(np.sqrt(max(0.0, coefficients_M @ gram_MM @ coefficients_M)))


def from_deltas(weights_J: np.ndarray) -> np.ndarray:
    """Turn the weights of deltas that are added to model 0 into weights of the models, float64 [M]."""
    return np.concatenate([[1.0 - weights_J.sum()], weights_J])


def weigh_arc(cosine: float, t: float) -> np.ndarray:
    """Weights of the two ends of an arc that give the point at the share `t` of it, float64 [2]."""
    angle = np.arccos(cosine)
    return np.array([np.sin((1 - t) * angle), np.sin(t * angle)]) / np.sin(angle)
