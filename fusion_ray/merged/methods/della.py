"""DELLA: drop elements of each delta at random, small ones more often (arXiv 2406.11617)."""

from collections.abc import Sequence

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.sparsify import keep_by_rank
from fusion_ray.merged.methods.task_arithmetic import Mixing, merge_deltas


def merge_della(
    tensor: BlockedTensor,
    mixing: Mixing,
    densities_J: Sequence[float],
    epsilons_J: Sequence[float],
    keys_J: Sequence[int],
    *,
    elect: bool,
) -> MergedTensor:
    """Merge by DELLA, with the election of TIES or without."""
    return merge_deltas(tensor, mixing, keep_by_rank(tensor, densities_J, epsilons_J, keys_J), elect=elect)
