"""DARE before TIES: drop elements of each delta at random, rescale the rest, elect signs (arXiv 2311.03099).

The rest is rescaled to the delta's former sum of magnitudes, as mergekit does. The paper multiplies by 1 / density,
which is the same on average.
"""

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.deltas import merge_deltas
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sparsify import keep_at_random
from fusion_ray.recipe.merge_methods import DareTies


@method(DareTies)
def merge_dare_ties(tensor: BlockedTensor, parameters: DareTies, context: Context) -> MergedTensor:
    """Merge by DARE with the election of TIES."""
    kept = keep_at_random(tensor, context.per_target(parameters.density), context.keys(tensor))
    return merge_deltas(tensor, parameters, context, kept, elect=True)
