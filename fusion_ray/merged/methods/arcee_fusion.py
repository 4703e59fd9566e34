"""Arcee fusion: take from the target the elements that changed much in rows whose distribution changed much.

An element's importance is its change times the divergence between the softmax of its row in target and base. The
target's value is taken where importance reaches median + 1.5 times the interquartile range. The quartiles are exact;
mergekit estimates them from a sample of a million elements in larger tensors.
"""

import math
from collections.abc import Iterator

import numpy as np

from fusion_ray.merged.methods.blocks import Block, BlockedTensor, MergedTensor, need_models
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.select import find_cuts
from fusion_ray.recipe.merge_methods import ArceeFusion

_EPS = 1e-8


@method(ArceeFusion)
def merge_arcee_fusion(tensor: BlockedTensor, _parameters: ArceeFusion, _context: Context) -> MergedTensor:
    """Merge model 1 into model 0, the base."""
    need_models(tensor, "arcee_fusion", 2)
    return MergedTensor(None, _fuse(tensor))


def _fuse(tensor: BlockedTensor) -> Iterator[np.ndarray]:
    size = math.prod(tensor.shape)
    if size == 0:
        return
    q1, median, q3 = (_value_at(tensor, share, size) for share in (0.25, 0.5, 0.75))
    threshold = median + np.float32(1.5) * (q3 - q1)
    for block in tensor.blocks():
        base_RC, other_RC = block.values_MRC
        yield np.where(_importance(block)[0] >= threshold, other_RC, base_RC)


def _value_at(tensor: BlockedTensor, share: float, size: int) -> np.float32:
    """The importance that this share of the elements does not exceed."""
    rank = int(np.float32(share) * np.float32(size - 1)) + 1
    (cut,) = find_cuts(lambda: map(_importance, tensor.blocks()), [rank], largest=False)
    return np.float32(cut.value)


def _importance(block: Block) -> np.ndarray:
    """Importance of each element, float32 [1, R, C]."""
    base_RC, other_RC = block.values_MRC.astype(np.float64)
    p_RC, q_RC = _softmax(other_RC) + _EPS, _softmax(base_RC) + _EPS
    divergence_R = np.maximum((p_RC * np.log(p_RC / q_RC)).sum(axis=1), 0.0)
    return (np.abs(other_RC - base_RC) * divergence_R[:, None]).astype(np.float32)[None]


def _softmax(values_RC: np.ndarray) -> np.ndarray:
    powers_RC = np.exp(values_RC - values_RC.max(axis=1, keepdims=True))
    return powers_RC / powers_RC.sum(axis=1, keepdims=True)
