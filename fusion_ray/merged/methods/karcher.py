"""Karcher mean: the point of the unit sphere nearest to all models by arc, at their mean length (2603.04972)."""

import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.gram import length, tensor_gram
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sums import combine
from fusion_ray.recipe.merge_methods import Karcher


@method(Karcher)
def merge_karcher(tensor: BlockedTensor, parameters: Karcher, _: Context) -> MergedTensor:
    """Average the models on the sphere, all alike; a model shorter than `tol` has no direction and is left out."""
    if tensor.n_models == 1:
        return combine(tensor, np.ones(1))
    return combine(tensor, _weigh(tensor_gram(tensor, minus_first=False), parameters.max_iter, parameters.tol))


def _weigh(gram_MM: np.ndarray, max_iter: int, tol: float) -> np.ndarray:
    norms_M = np.sqrt(np.diag(gram_MM))
    valid = np.flatnonzero(norms_M > tol)
    if not len(valid):
        return np.zeros(len(norms_M))
    units_VM = np.eye(len(norms_M))[valid] / norms_M[valid, None]
    mean_M = _normalise(units_VM.mean(axis=0), gram_MM, tol, units_VM[0])
    for _ in range(max_iter):
        tangent_M = np.zeros_like(mean_M)
        for unit_M in units_VM:
            dot = float(np.clip(mean_M @ gram_MM @ unit_M, -1, 1))
            angle = np.arccos(dot)
            if angle >= tol:
                tangent_M += angle / np.sin(angle) * (unit_M - dot * mean_M) / len(units_VM)
        step = length(tangent_M, gram_MM)
        if step < tol:
            break
        mean_M = np.cos(step) * mean_M + np.sin(step) / step * tangent_M
        mean_M = _normalise(mean_M, gram_MM, tol, mean_M)
    return mean_M * norms_M.mean()


def _normalise(vector_M: np.ndarray, gram_MM: np.ndarray, tol: float, otherwise_M: np.ndarray) -> np.ndarray:
    """The vector at length 1, or another in the place of one too short to have a direction."""
    size = length(vector_M, gram_MM)
    return otherwise_M if size < tol else vector_M / size
