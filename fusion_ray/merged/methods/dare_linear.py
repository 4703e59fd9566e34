"""DARE: drop elements of each delta at random, rescale the rest, add them up (arXiv 2311.03099); see `dare_ties`."""

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.deltas import merge_deltas
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sparsify import keep_at_random
from fusion_ray.recipe.merge_methods import DareLinear


@method(DareLinear)
def merge_dare_linear(tensor: BlockedTensor, parameters: DareLinear, context: Context) -> MergedTensor:
    """Merge by DARE without an election."""
    kept = keep_at_random(tensor, context.per_target(parameters.density), context.keys(tensor))
    return merge_deltas(tensor, parameters, context, kept, elect=False)
