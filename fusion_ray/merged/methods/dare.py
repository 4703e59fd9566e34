"""DARE: drop elements of each delta at random, rescale the rest (arXiv 2311.03099).

The rest is rescaled to the delta's former sum of magnitudes, as mergekit does; the paper multiplies by 1 / density,
which is the same in expectation.
"""

from collections.abc import Sequence

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.sparsify import keep_at_random
from fusion_ray.merged.methods.task_arithmetic import Mixing, merge_deltas


def merge_dare(
    tensor: BlockedTensor, mixing: Mixing, densities_J: Sequence[float], keys_J: Sequence[int], *, elect: bool
) -> MergedTensor:
    """Merge by DARE, with the election of TIES or without; draws come from `sparsify.key_of` keys."""
    return merge_deltas(tensor, mixing, keep_at_random(tensor, densities_J, keys_J), elect=elect)
