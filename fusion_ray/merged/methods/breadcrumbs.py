"""Model breadcrumbs: drop the largest and the smallest elements of each delta, add up the rest (arXiv 2312.06795)."""

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.deltas import merge_deltas
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sparsify import keep_without_outliers
from fusion_ray.recipe.merge_methods import Breadcrumbs


@method(Breadcrumbs)
def merge_breadcrumbs(tensor: BlockedTensor, parameters: Breadcrumbs, context: Context) -> MergedTensor:
    """Merge by breadcrumbs without an election."""
    densities_J, gammas_J = context.per_target(parameters.density), context.per_target(parameters.gamma)
    kept = keep_without_outliers(tensor, densities_J, gammas_J)
    return merge_deltas(tensor, parameters, context, kept, elect=False)
