"""Model stock: between the base and the targets' mean, as far as the angle between the deltas says (2403.19522)."""

import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.gram import combine_by_row, from_deltas, tensor_gram
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sums import combine
from fusion_ray.recipe.merge_methods import ModelStock


@method(ModelStock)
def merge_model_stock(tensor: BlockedTensor, parameters: ModelStock, _: Context) -> MergedTensor:
    """Merge by one angle for the whole tensor, or under `filter_wise` by one for each row.

    Raises:
        MergeError: Fewer than two targets, between which there is no angle.
    """
    if tensor.n_models < 3:
        raise MergeError(
            f"model_stock: tensor {tensor.name}: there is no angle between fewer than two targets. Give two or more."
        )
    if parameters.filter_wise:
        return MergedTensor(None, combine_by_row(tensor, _weigh, minus_first=True))
    return combine(tensor, _weigh(tensor_gram(tensor, minus_first=True)))


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
