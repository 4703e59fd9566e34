"""SLERP and NuSLERP: walk the arc between two models, whole tensors, rows or columns being the vectors."""

from collections.abc import Sequence

import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.gram import from_deltas, mix_by_column, mix_by_row, tensor_gram
from fusion_ray.merged.methods.linear import combine

_NEARLY_PARALLEL = 0.9995  # mergekit's and everyone's: beyond it SLERP goes straight.


def merge_slerp(tensor: BlockedTensor, t: float) -> MergedTensor:
    """Walk the share `t` of the arc from model 0 to model 1; nearly parallel tensors are mixed straight."""
    need_models(tensor, "slerp", 2)
    return combine(tensor, _weigh_slerp(tensor_gram(tensor, False), t))


def _weigh_slerp(gram_MM: np.ndarray, t: float) -> np.ndarray:
    norms_M = np.sqrt(np.diag(gram_MM))
    norms_M = np.where(norms_M > 1e-8, norms_M, 1.0)
    cosine = float(np.clip(gram_MM[0, 1] / (norms_M[0] * norms_M[1]), -1, 1))
    if abs(cosine) > _NEARLY_PARALLEL:
        return np.array([1 - t, t])
    return weigh_arc(cosine, t)


def weigh_arc(cosine: float, t: float) -> np.ndarray:
    """Weights of the two ends of an arc at the share `t` of it."""
    angle = np.arccos(cosine)
    return np.array([np.sin((1 - t) * angle), np.sin(t * angle)]) / np.sin(angle)


def merge_nuslerp(
    tensor: BlockedTensor, weights_J: Sequence[float], *, based: bool, flatten: bool = True, row_wise: bool = False
) -> MergedTensor:
    """Walk the arc between two targets or, where `based`, between their deltas from model 0.

    Args:
        tensor: The two targets, after the base where there is one.
        weights_J: Weights of the two; only their ratio counts.
        based: Whether model 0 is a base.
        flatten: Take whole tensors as vectors.
        row_wise: If not flat, take the vectors along the first dimension (the name is mergekit's), else along the last.
    """
    need_models(tensor, "nuslerp", 3 if based else 2)
    total = sum(weights_J)
    t = 0.5 if abs(total) < 1e-6 else weights_J[1] / total

    def weigh(gram_MM: np.ndarray) -> np.ndarray:
        return from_deltas(_weigh_nuslerp(gram_MM[1:, 1:], t)) if based else _weigh_nuslerp(gram_MM, t)

    if flatten or (row_wise and len(tensor.shape) < 2):
        return combine(tensor, weigh(tensor_gram(tensor, based)))
    if not row_wise:
        return MergedTensor(None, mix_by_row(tensor, weigh, based))
    if len(tensor.shape) > 2:
        raise MergeError(
            f"nuslerp: tensor {tensor.name} has {len(tensor.shape)} dimensions; nuslerp_row_wise takes two at most. "
            "Set nuslerp_flatten: true."
        )
    return MergedTensor(None, mix_by_column(tensor, weigh, based))


def _weigh_nuslerp(gram_MM: np.ndarray, t: float) -> np.ndarray:
    norms_M = np.maximum(np.sqrt(np.diag(gram_MM)), 1e-7)
    cosine = float(np.clip(gram_MM[0, 1] / (norms_M[0] * norms_M[1]), -1, 1))
    if 1 - cosine * cosine <= 1e-16:
        return np.array([1 - t, t])
    return weigh_arc(cosine, t)


def need_models(tensor: BlockedTensor, method: str, count: int) -> None:
    """Refuse another number of models than a method takes.

    Raises:
        MergeError: There are more or fewer.
    """
    if tensor.n_models != count:
        raise MergeError(
            f"{method}: tensor {tensor.name} comes from {tensor.n_models} models (a base counted); the method takes "
            f"exactly {count}. Choose two models, or a method for more."
        )
