"""TIES: trim each delta to its largest elements, elect a sign for every element, merge what agrees (2306.01708)."""

from collections.abc import Sequence

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.sparsify import keep_largest
from fusion_ray.merged.methods.task_arithmetic import Mixing, merge_deltas


def merge_ties(tensor: BlockedTensor, mixing: Mixing, densities_J: Sequence[float]) -> MergedTensor:
    """Merge by TIES; `density` is the share of each delta that is kept."""
    return merge_deltas(tensor, mixing, keep_largest(tensor, densities_J), elect=True)
