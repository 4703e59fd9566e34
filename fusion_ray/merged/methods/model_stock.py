"""Model stock: between the pivot and the targets' mean, as far as the angle between the deltas says (2403.19522)."""

import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.gram import from_deltas, mix_by_row, tensor_gram
from fusion_ray.merged.methods.linear import combine


def merge_model_stock(tensor: BlockedTensor, filter_wise: bool = False) -> MergedTensor:
    """Merge by one angle for the tensor, or one for each row if `filter_wise`. Model 0 is the pivot.

    Raises:
        MergeError: Fewer than two targets, between which there is no angle.
    """
    if tensor.n_models < 3:
        raise MergeError(
            f"model_stock: tensor {tensor.name}: there is no angle between fewer than two targets. Give two or more."
        )
    if filter_wise:
        return MergedTensor(None, mix_by_row(tensor, _weigh, True))
    return combine(tensor, _weigh(tensor_gram(tensor, True)))


def _weigh(gram_MM: np.ndarray) -> np.ndarray:
    gram_JJ = gram_MM[1:, 1:]
    count = len(gram_JJ)
    norms_J = np.sqrt(np.diag(gram_JJ))
    rows, columns = np.triu_indices(count, 1)
    lengths_P = np.maximum(norms_J[rows] * norms_J[columns], 1e-6)
    cosine = float(np.clip(gram_JJ[rows, columns] / lengths_P, -1, 1).mean())
    denominator = 1 + (count - 1) * cosine
    share = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    return from_deltas(np.full(count, share / count))
