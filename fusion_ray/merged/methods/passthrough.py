"""Passthrough: one model as it is; with mergekit's slices, layers of several models on top of each other."""

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor, need_models
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sums import combine
from fusion_ray.recipe.merge_methods import Passthrough


@method(Passthrough)
def merge_passthrough(tensor: BlockedTensor, parameters: Passthrough, context: Context) -> MergedTensor:
    """Take one model as it is, or times `scale`."""
    need_models(tensor, "passthrough", 1)
    return combine(tensor, context.per_target(parameters.scale))
