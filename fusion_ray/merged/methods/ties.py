"""TIES: trim each delta to its largest elements, elect a sign for every element, merge what has it (2306.01708)."""

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.deltas import merge_deltas
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sparsify import keep_largest
from fusion_ray.recipe.merge_methods import Ties


@method(Ties)
def merge_ties(tensor: BlockedTensor, parameters: Ties, context: Context) -> MergedTensor:
    """Merge by TIES; `density` is the share of each delta that is kept."""
    kept = keep_largest(tensor, context.per_target(parameters.density))
    return merge_deltas(tensor, parameters, context, kept, elect=True)
