"""Linear: the plain or weighted mean of the models (model soups, arXiv 2203.05482)."""

import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sums import combine
from fusion_ray.recipe.merge_methods import Linear


@method(Linear)
def merge_linear(tensor: BlockedTensor, parameters: Linear, context: Context) -> MergedTensor:
    """Sum the models, each times its weight; weights are divided by their sum unless `normalize` is false.

    Raises:
        MergeError: The weights sum to 0 and are to be normalised.
    """
    weights = context.per_target(parameters.weight)
    weights_M = np.asarray(weights, dtype=np.float64)
    if parameters.normalize:
        if weights_M.sum() == 0:
            raise MergeError(
                f"linear: tensor {tensor.name}: the weights {list(weights)} sum to 0, so their mean does not exist. "
                "Give weights with another sum, or set normalize: false."
            )
        weights_M = weights_M / weights_M.sum()
    return combine(tensor, weights_M)
