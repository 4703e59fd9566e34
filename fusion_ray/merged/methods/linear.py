"""Linear: the plain or weighted mean of the models (model soups, arXiv 2203.05482)."""

from collections.abc import Sequence

import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.sums import mix


def merge_linear(tensor: BlockedTensor, weights_M: Sequence[float], normalize: bool = True) -> MergedTensor:
    """Sum the models, each times its weight; weights are divided by their sum unless `normalize` is false.

    Raises:
        MergeError: The weights sum to 0 and are to be normalised.
    """
    scaled_M = np.asarray(weights_M, dtype=np.float64)
    if normalize:
        if scaled_M.sum() == 0:
            raise MergeError(
                f"linear: tensor {tensor.name}: the weights {list(weights_M)} sum to 0, so their mean does not exist. "
                "Give weights with another sum, or set normalize: false."
            )
        scaled_M = scaled_M / scaled_M.sum()
    return combine(tensor, scaled_M)


def combine(tensor: BlockedTensor, weights_M: np.ndarray) -> MergedTensor:
    """Sum the models, each times its weight, as it is."""
    weights_M = np.asarray(weights_M, dtype=np.float64)
    blocks = (mix(block.values_MRC, weights_M) for block in tensor.blocks())
    return MergedTensor(tuple(float(weight) for weight in weights_M), blocks)
