"""NuSLERP: go along the arc between two deltas, with whole tensors, rows or columns as the vectors."""

import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor, need_models
from fusion_ray.merged.methods.gram import combine_by_column, combine_by_row, from_deltas, tensor_gram, weigh_arc
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sums import combine
from fusion_ray.recipe.merge_methods import Nuslerp


@method(Nuslerp)
def merge_nuslerp(tensor: BlockedTensor, parameters: Nuslerp, context: Context) -> MergedTensor:
    """Go along the arc between the deltas of two targets; without a base between the targets themselves.

    How far follows from the ratio of the weights. Under `nuslerp_flatten` a tensor is one vector. Otherwise the
    vectors lie along its last dimension, or under `nuslerp_row_wise` (the name is mergekit's) along its first.

    Raises:
        MergeError: There are not two targets, or the tensor has too many dimensions for `nuslerp_row_wise`.
    """
    has_base = context.has_base
    need_models(tensor, "nuslerp", 3 if has_base else 2)
    weights_J = context.per_target(parameters.weight)
    total = sum(weights_J)
    t = 0.5 if abs(total) < 1e-6 else weights_J[1] / total

    def weigh(gram_MM: np.ndarray) -> np.ndarray:
        return from_deltas(_weigh(gram_MM[1:, 1:], t)) if has_base else _weigh(gram_MM, t)

    by_column = parameters.nuslerp_row_wise
    if parameters.nuslerp_flatten or (by_column and len(tensor.shape) < 2):
        return combine(tensor, weigh(tensor_gram(tensor, minus_first=has_base)))
    if not by_column:
        return MergedTensor(None, combine_by_row(tensor, weigh, minus_first=has_base))
    if len(tensor.shape) > 2:
        raise MergeError(
            f"nuslerp: tensor {tensor.name} has {len(tensor.shape)} dimensions; nuslerp_row_wise takes two at most. "
            "Set nuslerp_flatten: true."
        )
    return MergedTensor(None, combine_by_column(tensor, weigh, minus_first=has_base))


def _weigh(gram_MM: np.ndarray, t: float) -> np.ndarray:
    norms_M = np.maximum(np.sqrt(np.diag(gram_MM)), 1e-7)
    cosine = float(np.clip(gram_MM[0, 1] / (norms_M[0] * norms_M[1]), -1, 1))
    if 1 - cosine * cosine <= 1e-16:
        return np.array([1 - t, t])
    return weigh_arc(cosine, t)
