"""DELLA without an election: drop elements of each delta at random, small ones more often, and add up the rest."""

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.deltas import merge_deltas
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sparsify import keep_by_rank
from fusion_ray.recipe.merge_methods import DellaLinear


@method(DellaLinear)
def merge_della_linear(tensor: BlockedTensor, parameters: DellaLinear, context: Context) -> MergedTensor:
    """Merge by DELLA without an election."""
    densities_J, epsilons_J = context.per_target(parameters.density), context.per_target(parameters.epsilon)
    kept = keep_by_rank(tensor, densities_J, epsilons_J, context.keys(tensor))
    return merge_deltas(tensor, parameters, context, kept, elect=False)
