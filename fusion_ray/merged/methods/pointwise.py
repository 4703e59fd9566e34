"""Methods whose every element depends on that element alone: RAM and RAM+ (2601.13572), NearSwap, passthrough."""

from collections.abc import Iterator

import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.linear import combine
from fusion_ray.merged.methods.slerp import need_models


def merge_ram(tensor: BlockedTensor, epsilon: float = 1e-5) -> MergedTensor:
    """Average the deltas above `epsilon` where several targets have one; keep it whole where one target has."""
    ones_J = np.ones(tensor.n_models - 1)
    return MergedTensor(None, _ram_blocks(tensor, epsilon, ones_J))


def merge_ramplus(tensor: BlockedTensor, r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5) -> MergedTensor:
    """As RAM; deltas of one target alone grow by 1 + r * min(alpha, shared / alone elements of that target)."""
    shared_J = np.zeros(tensor.n_models - 1)
    alone_J = np.zeros(tensor.n_models - 1)
    for block in tensor.blocks():
        moved_JRC = np.abs(block.values_MRC[1:] - block.values_MRC[0]) > np.float32(epsilon)
        several_RC = moved_JRC.sum(axis=0) > 1
        shared_J += (moved_JRC & several_RC).sum(axis=(1, 2))
        alone_J += (moved_JRC & ~several_RC).sum(axis=(1, 2))
    ratios_J = shared_J / np.maximum(alone_J, epsilon)
    return MergedTensor(None, _ram_blocks(tensor, epsilon, 1 + r * np.clip(ratios_J, 0, alpha)))


def _ram_blocks(tensor: BlockedTensor, epsilon: float, factors_J: np.ndarray) -> Iterator[np.ndarray]:
    for block in tensor.blocks():
        deltas_JRC = block.values_MRC[1:] - block.values_MRC[0]
        moved_JRC = np.abs(deltas_JRC) > np.float32(epsilon)
        count_RC = moved_JRC.sum(axis=0)
        scales_JRC = np.where(count_RC > 1, 1 / np.maximum(count_RC, 1), factors_J[:, None, None])
        yield (block.values_MRC[0] + (deltas_JRC * moved_JRC * scales_JRC).sum(axis=0)).astype(np.float32)


def merge_nearswap(tensor: BlockedTensor, t: float) -> MergedTensor:
    """Move model 0 towards model 1 by `t` at most; where they are nearer than that, model 1's value is taken."""
    need_models(tensor, "nearswap", 2)
    return MergedTensor(None, (_nearswap(block.values_MRC, t) for block in tensor.blocks()))


def _nearswap(values_MRC: np.ndarray, t: float) -> np.ndarray:
    base_RC, other_RC = values_MRC.astype(np.float64)
    share_RC = np.clip(t / np.maximum(np.abs(base_RC - other_RC), 1e-6), 0, 1)
    return (share_RC * other_RC + (1 - share_RC) * base_RC).astype(np.float32)


def merge_passthrough(tensor: BlockedTensor, scale: float | None = None) -> MergedTensor:
    """One model as it is, or times `scale`."""
    need_models(tensor, "passthrough", 1)
    return combine(tensor, np.array([1.0 if scale is None else scale]))
