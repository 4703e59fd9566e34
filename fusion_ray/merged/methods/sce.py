"""SCE: select the elements that differ most between targets, calculate weights from them, erase minority signs.

Source: FuseChat v2, arXiv 2408.07990, section 3.3. Model 0 is the pivot. `paper` (and mergekit) leave the elements
that were not selected at the pivot's value; `fuseai`, the released code, selects for the weights only and moves them
all. Unlike mergekit, small deltas are weighed like large ones, and no weight is clamped.
"""

import math
from collections.abc import Iterator
from typing import Literal

import numba
import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.select import Cut, Selection, find_cuts
from fusion_ray.merged.methods.sums import add_rows
from fusion_ray.merged.methods.varm import keep_pivot, weigh_by_variation

Dialect = Literal["paper", "fuseai"]
_KEPT_BYTES = 32 << 20


def merge_sce(tensor: BlockedTensor, select_topk: float = 1.0, dialect: Dialect = "paper") -> MergedTensor:
    """Merge by SCE.

    Args:
        tensor: Model 0 is the pivot, the others the targets.
        select_topk: Share tau of the elements of nonzero variance that is selected; 1 selects every element.
        dialect: See the module.

    Raises:
        MergeError: One target alone, of which nothing can be selected.
    """
    if select_topk < 1 and tensor.n_models < 3:
        raise MergeError(
            f"sce: tensor {tensor.name}: one target has no variance to select from. Give two targets or more, "
            "or select_topk: 1."
        )
    variances = _Variances(tensor)
    cut = _find_cut(variances, select_topk) if select_topk < 1 else None
    squares_J = add_rows(
        [np.zeros((tensor.n_models - 1, 0))]
        + [_squares(values_MRC, selected_RC) for values_MRC, selected_RC in _select(tensor, variances, cut)]
    )
    weights_J = weigh_by_variation(squares_J)
    if weights_J is None:
        return keep_pivot(tensor)
    moved = cut if dialect == "paper" else None
    blocks = (
        _erase_and_mix(values_MRC, selected_RC, weights_J)
        for values_MRC, selected_RC in _select(tensor, variances, moved)
    )
    return MergedTensor(tuple(float(weight) for weight in weights_J), blocks)


class _Variances:
    """The variance across targets, block by block, float32 [R, C]; of a tensor that is not large it is kept.

    Else a look at it reads all models again.
    """

    def __init__(self, tensor: BlockedTensor) -> None:
        self._tensor = tensor
        self._small = 4 * math.prod(tensor.shape) <= _KEPT_BYTES
        self._kept: list[np.ndarray] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._kept:
            yield from self._kept
            return
        computed = []
        for block in self._tensor.blocks():
            variance_RC = _variance(block.values_MRC)
            yield variance_RC
            if self._small:
                computed.append(variance_RC)
        self._kept = computed

    def of(self, number: int, values_MRC: np.ndarray) -> np.ndarray:
        """That of the block with this number and these values."""
        return self._kept[number] if self._kept else _variance(values_MRC)


def _find_cut(variances: _Variances, select_topk: float) -> Cut:
    def count(varied_J: np.ndarray) -> list[int]:
        return [int(varied * select_topk) for varied in varied_J]

    (cut,) = find_cuts(lambda: (variance_RC[None] for variance_RC in variances), count, largest=True)
    return cut


def _select(tensor: BlockedTensor, variances: _Variances, cut: Cut | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each block with what is selected of it, bool [R, C]."""
    selection = Selection([cut], largest=True) if cut else None
    for number, block in enumerate(tensor.blocks()):
        if selection is None:
            yield block.values_MRC, np.ones(block.values_MRC.shape[1:], dtype=np.bool_)
        else:
            yield block.values_MRC, selection.take(variances.of(number, block.values_MRC)[None])[0]


@numba.njit(cache=True, nogil=True)
def _variance(values_MRC: np.ndarray) -> np.ndarray:
    """Population variance of the deltas across targets, float32 [R, C]."""
    models, rows, columns = values_MRC.shape
    targets = models - 1
    variance_RC = np.empty((rows, columns), dtype=np.float32)
    mean_C = np.empty(columns, dtype=np.float64)
    total_C = np.empty(columns, dtype=np.float64)
    for r in range(rows):
        mean_C[:] = 0.0
        total_C[:] = 0.0
        for m in range(1, models):
            for c in range(columns):
                mean_C[c] += np.float64(values_MRC[m, r, c] - values_MRC[0, r, c])
        for c in range(columns):
            mean_C[c] /= targets
        for m in range(1, models):
            for c in range(columns):
                off = np.float64(values_MRC[m, r, c] - values_MRC[0, r, c]) - mean_C[c]
                total_C[c] += off * off
        for c in range(columns):
            variance_RC[r, c] = total_C[c] / targets
    return variance_RC


@numba.njit(cache=True, nogil=True)
def _squares(values_MRC: np.ndarray, selected_RC: np.ndarray) -> np.ndarray:
    """Sum of squared selected deltas of each row, float64 [J, R]."""
    models, rows, columns = values_MRC.shape
    sums_JR = np.zeros((models - 1, rows), dtype=np.float64)
    for r in range(rows):
        for c in range(columns):
            if selected_RC[r, c]:
                for j in range(models - 1):
                    delta = np.float64(values_MRC[j + 1, r, c] - values_MRC[0, r, c])
                    sums_JR[j, r] += delta * delta
    return sums_JR


@numba.njit(cache=True, nogil=True)
def _erase_and_mix(values_MRC: np.ndarray, selected_RC: np.ndarray, weights_J: np.ndarray) -> np.ndarray:
    """Mix the deltas that have the sign of their sum; where none is left, or nothing is selected, the pivot."""
    models, rows, columns = values_MRC.shape
    merged_RC = np.empty((rows, columns), dtype=np.float32)
    sum_C = np.empty(columns, dtype=np.float64)
    mixed_C = np.empty(columns, dtype=np.float64)
    weight_C = np.empty(columns, dtype=np.float64)
    for r in range(rows):
        sum_C[:] = 0.0
        mixed_C[:] = 0.0
        weight_C[:] = 0.0
        for m in range(1, models):
            for c in range(columns):
                sum_C[c] += np.float64(values_MRC[m, r, c] - values_MRC[0, r, c])
        for m in range(1, models):
            for c in range(columns):
                delta = np.float64(values_MRC[m, r, c] - values_MRC[0, r, c])
                agrees = delta > 0.0 if sum_C[c] >= 0.0 else delta < 0.0
                weight = weights_J[m - 1] if agrees else 0.0
                mixed_C[c] += weight * delta
                weight_C[c] += weight
        for c in range(columns):
            moves = selected_RC[r, c] and weight_C[c] > 0.0
            merged_RC[r, c] = values_MRC[0, r, c] + mixed_C[c] / weight_C[c] if moves else values_MRC[0, r, c]
    return merged_RC
