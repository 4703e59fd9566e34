"""VaRM: weigh the targets of each part of the model by how far fine-tuning moved them from the pivot.

Source: FuseChat v1, arXiv 2402.16107, section 3.3. Model 0 of every tensor is the pivot, the others the targets.
Where no target moved, the pivot stays as it is, bit for bit.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numba
import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.linear import combine
from fusion_ray.merged.methods.sums import delta_squares

Granularity = Literal["model", "layer", "module", "matrix", "element"]

_LAYER = re.compile(r"^(.*?\.)?(layers|h|blocks|block|layer)\.\d+(?=\.)")


def group_of(name: str, granularity: Granularity) -> str:
    """The part of the model that shares its weights with this tensor.

    Tensors outside any layer (embeddings, the last norm, the output projection) are modules of their own; at
    `layer` granularity too, since there is no layer for them to share with.

    >>> group_of("model.layers.3.self_attn.q_proj.weight", "layer")
    'model.layers.3'
    >>> group_of("model.layers.3.self_attn.q_proj.weight", "module")
    'model.layers.3.self_attn'
    >>> group_of("model.norm.weight", "layer")
    'model.norm'
    """
    if granularity == "model":
        return ""
    if granularity in ("matrix", "element"):
        return name
    layer = _LAYER.match(name)
    if layer is None:
        return name.rpartition(".")[0] or name
    if granularity == "layer":
        return layer.group()
    return f"{layer.group()}.{name[layer.end() + 1 :].partition('.')[0]}"


def weigh_by_variation(squares_J: np.ndarray) -> np.ndarray | None:
    """Turn summed squared deltas into weights that sum to 1; None where no target moved.

    A target that did not move gets 0; the others share the rest. There is no softmax.

    >>> weigh_by_variation(np.array([1.0, 3.0])).tolist()
    [0.25, 0.75]
    """
    total = squares_J.sum()
    return None if total == 0 else squares_J / total


def weigh_groups(squares: Mapping[str, np.ndarray], granularity: Granularity) -> dict[str, np.ndarray | None]:
    """Weights of every tensor from the summed squared deltas of every tensor.

    The mean square of a group is the sum over its tensors by the number of its elements, which is the same for
    every target and cancels out.

    Args:
        squares: Summed squared deltas by tensor name, float64 [J].
        granularity: How tensors are grouped; see `group_of`.
    """
    sums: dict[str, np.ndarray] = {}
    for name in sorted(squares):
        group = group_of(name, granularity)
        sums[group] = sums.get(group, 0.0) + squares[name]
    return {name: weigh_by_variation(sums[group_of(name, granularity)]) for name in squares}


def merge_varm(tensor: BlockedTensor, weights_J: np.ndarray | None = None) -> MergedTensor:
    """Mix the targets by weights that were computed before, or by this tensor's own variation (matrix granularity).

    Args:
        tensor: Model 0 is the pivot, the others the targets.
        weights_J: From `weigh_groups`; None computes those of this tensor alone.
    """
    squares = None
    if weights_J is None:
        squares_J = delta_squares(tensor)
        squares, weights_J = tuple(squares_J.tolist()), weigh_by_variation(squares_J)
    if weights_J is None:
        return replace(keep_pivot(tensor), squares=squares)
    merged = combine(tensor, np.concatenate([[0.0], weights_J]))
    return MergedTensor(tuple(float(weight) for weight in weights_J), merged.blocks, squares)


def keep_pivot(tensor: BlockedTensor) -> MergedTensor:
    """The pivot's tensor as it is: nobody moved it, so nobody has a weight."""
    return MergedTensor(None, (block.values_MRC[0] for block in tensor.blocks()))


def merge_varm_elements(tensor: BlockedTensor) -> MergedTensor:
    """Weigh every element on its own; an element that no target moved keeps the pivot's value."""
    return MergedTensor(None, (_mix_elements(block.values_MRC) for block in tensor.blocks()))


@numba.njit(cache=True, nogil=True)
def _mix_elements(values_MRC: np.ndarray) -> np.ndarray:
    models, rows, columns = values_MRC.shape
    merged_RC = np.empty((rows, columns), dtype=np.float32)
    for r in range(rows):
        for c in range(columns):
            pivot = values_MRC[0, r, c]
            squares = 0.0
            mixed = 0.0
            for m in range(1, models):
                delta = np.float64(values_MRC[m, r, c] - pivot)
                squares += delta * delta
                mixed += delta * delta * values_MRC[m, r, c]
            merged_RC[r, c] = mixed / squares if squares > 0.0 else pivot
    return merged_RC
