"""VaRM: weigh the targets by how far fine-tuning moved them from the base, each part of the model on its own.

Source: FuseChat v1, arXiv 2402.16107, section 3.3, where the base is the pivot. Model 0 of every tensor is the base,
the others are the targets. Where no target moved, the base stays as it is, bit for bit.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import numba
import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor, keep_base
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sums import combine, delta_squares
from fusion_ray.recipe.merge_methods import Granularity, Varm

_LAYER = re.compile(r"^(.*?\.)?(layers|h|blocks|block|layer)\.\d+(?=\.)")


@method(Varm)
def merge_varm(tensor: BlockedTensor, parameters: Varm, context: Context) -> MergedTensor:
    """Sum the targets by weights found in an earlier pass over the whole model, else by this tensor's own variation.

    Its own variation suffices at `matrix` granularity; at `element` every element has weights of its own.
    """
    if parameters.granularity == "element":
        return MergedTensor(None, (_merge_elements(block.values_MRC) for block in tensor.blocks()))
    weights, squares = context.weights, None
    if weights is None:
        squares_J = delta_squares(tensor)
        weights, squares = weigh_by_variation(squares_J).tolist(), tuple(squares_J.tolist())
    if not weights:
        return replace(keep_base(tensor), squares=squares)
    return MergedTensor(tuple(weights), combine(tensor, [0.0, *weights]).blocks, squares)


@numba.njit(cache=True, nogil=True)
def _merge_elements(values_MRC: np.ndarray) -> np.ndarray:
    """Weigh each element on its own; one that no target moved keeps the base's value."""
    models, rows, columns = values_MRC.shape
    merged_RC = np.empty((rows, columns), dtype=np.float32)
    for r in range(rows):
        for c in range(columns):
            base = values_MRC[0, r, c]
            squares = 0.0
            weighted = 0.0
            for m in range(1, models):
                delta = np.float64(values_MRC[m, r, c] - base)
                squares += delta * delta
                weighted += delta * delta * values_MRC[m, r, c]
            merged_RC[r, c] = weighted / squares if squares > 0.0 else base
    return merged_RC


def group_of(name: str, granularity: Granularity) -> str:
    """The part of the model whose tensors have the same weights as this tensor.

    A tensor outside the layers (embeddings, the last norm, the output projection) is a module of its own. At `layer`
    granularity it is one too, since it belongs to no layer.

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


def weigh_by_variation(squares_J: np.ndarray) -> np.ndarray:
    """Turn the sum of squares of each target's delta into weights that sum to 1; into none where no target moved.

    Each target's weight is its share of all squares. There is no softmax.

    >>> weigh_by_variation(np.array([1.0, 3.0])).tolist()
    [0.25, 0.75]
    """
    total = squares_J.sum()
    return np.zeros(0) if total == 0 else squares_J / total


def weigh_groups(squares: Mapping[str, np.ndarray], granularity: Granularity) -> dict[str, np.ndarray]:
    """The weights of the targets for every tensor, equal for tensors of one group.

    The paper divides a group's sum of squares by the number of its elements. That number is the same for every target
    and cancels out.

    Args:
        squares: By tensor name, the sum of squares of each target's delta, float64 [J].
        granularity: How tensors are grouped; see `group_of`.
    """
    sums: dict[str, np.ndarray] = {}
    for name in sorted(squares):
        group = group_of(name, granularity)
        sums[group] = sums.get(group, 0.0) + squares[name]
    return {name: weigh_by_variation(sums[group_of(name, granularity)]) for name in squares}
