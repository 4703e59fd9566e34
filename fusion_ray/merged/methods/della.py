"""DELLA: drop elements of each delta at random, small ones more often, and elect signs (arXiv 2406.11617)."""

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.deltas import merge_deltas
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sparsify import keep_by_rank
from fusion_ray.recipe.merge_methods import Della


@method(Della)
def merge_della(tensor: BlockedTensor, parameters: Della, context: Context) -> MergedTensor:
    """Merge by DELLA with the election of TIES."""
    densities_J, epsilons_J = context.per_target(parameters.density), context.per_target(parameters.epsilon)
    kept = keep_by_rank(tensor, densities_J, epsilons_J, context.keys(tensor))
    return merge_deltas(tensor, parameters, context, kept, elect=True)
