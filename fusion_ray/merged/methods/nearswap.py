"""NearSwap: move every element of the base towards the target by at most `t`, so that near ones are swapped."""

import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor, need_models
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.recipe.merge_methods import Nearswap


@method(Nearswap)
def merge_nearswap(tensor: BlockedTensor, parameters: Nearswap, _: Context) -> MergedTensor:
    """Move model 0 towards model 1 by `t` at most; where they are nearer than that, model 1's value is taken."""
    need_models(tensor, "nearswap", 2)
    return MergedTensor(None, (_move(block.values_MRC, parameters.t) for block in tensor.blocks()))


def _move(values_MRC: np.ndarray, t: float) -> np.ndarray:
    base_RC, other_RC = values_MRC.astype(np.float64)
    share_RC = np.clip(t / np.maximum(np.abs(base_RC - other_RC), 1e-6), 0, 1)
    return (share_RC * other_RC + (1 - share_RC) * base_RC).astype(np.float32)
