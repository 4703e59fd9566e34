"""RAM: average what several targets moved, add what one target alone moved as it is (arXiv 2601.13572)."""

from collections.abc import Iterator

import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.recipe.merge_methods import Ram


@method(Ram)
def merge_ram(tensor: BlockedTensor, parameters: Ram, context: Context) -> MergedTensor:
    """Merge by RAM; a delta of at most `epsilon` does not count as moved."""
    return MergedTensor(None, add_moved(tensor, parameters.epsilon, np.ones(len(context.targets))))


def add_moved(tensor: BlockedTensor, epsilon: float, factors_J: np.ndarray) -> Iterator[np.ndarray]:
    """Add to the base the mean delta where several targets moved; where one did, its delta times its factor."""
    for block in tensor.blocks():
        deltas_JRC = block.values_MRC[1:] - block.values_MRC[0]
        moved_JRC = np.abs(deltas_JRC) > np.float32(epsilon)
        count_RC = moved_JRC.sum(axis=0)
        scales_JRC = np.where(count_RC > 1, 1 / np.maximum(count_RC, 1), factors_J[:, None, None])
        yield (block.values_MRC[0] + (deltas_JRC * moved_JRC * scales_JRC).sum(axis=0)).astype(np.float32)
