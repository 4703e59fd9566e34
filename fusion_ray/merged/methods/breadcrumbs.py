"""Model breadcrumbs: drop the largest and the smallest elements of each delta (arXiv 2312.06795)."""

from collections.abc import Sequence

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.sparsify import keep_without_outliers
from fusion_ray.merged.methods.task_arithmetic import Mixing, merge_deltas


def merge_breadcrumbs(
    tensor: BlockedTensor, mixing: Mixing, densities_J: Sequence[float], gammas_J: Sequence[float], *, elect: bool
) -> MergedTensor:
    """Merge by breadcrumbs, with the election of TIES or without."""
    return merge_deltas(tensor, mixing, keep_without_outliers(tensor, densities_J, gammas_J), elect=elect)
