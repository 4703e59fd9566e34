"""RAM+: as RAM, but what one target alone moved is scaled up (arXiv 2601.13572)."""

import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.ram import add_moved
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.recipe.merge_methods import RamplusTl


@method(RamplusTl)
def merge_ramplus_tl(tensor: BlockedTensor, parameters: RamplusTl, context: Context) -> MergedTensor:
    """Scale what a target alone moved by 1 + r * min(alpha, elements it shares / elements it moved alone)."""
    shared_J = np.zeros(len(context.targets))
    alone_J = np.zeros(len(context.targets))
    for block in tensor.blocks():
        moved_JRC = np.abs(block.values_MRC[1:] - block.values_MRC[0]) > np.float32(parameters.epsilon)
        several_RC = moved_JRC.sum(axis=0) > 1
        shared_J += (moved_JRC & several_RC).sum(axis=(1, 2))
        alone_J += (moved_JRC & ~several_RC).sum(axis=(1, 2))
    ratios_J = shared_J / np.maximum(alone_J, parameters.epsilon)
    factors_J = 1 + parameters.r * np.clip(ratios_J, 0, parameters.alpha)
    return MergedTensor(None, add_moved(tensor, parameters.epsilon, factors_J))
