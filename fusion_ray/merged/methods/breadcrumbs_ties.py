"""Model breadcrumbs before TIES: drop the largest and the smallest elements of each delta, then elect signs."""

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.deltas import merge_deltas
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sparsify import keep_without_outliers
from fusion_ray.recipe.merge_methods import BreadcrumbsTies


@method(BreadcrumbsTies)
def merge_breadcrumbs_ties(tensor: BlockedTensor, parameters: BreadcrumbsTies, context: Context) -> MergedTensor:
    """Merge by breadcrumbs with the election of TIES."""
    densities_J, gammas_J = context.per_target(parameters.density), context.per_target(parameters.gamma)
    kept = keep_without_outliers(tensor, densities_J, gammas_J)
    return merge_deltas(tensor, parameters, context, kept, elect=True)
