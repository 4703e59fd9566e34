"""SCE: select the elements that differ most between targets, calculate weights from them, erase minority signs.

Source: FuseChat v2, arXiv 2408.07990, section 3.3. Model 0 is the base. In the dialect `paper`, as in mergekit, an
element that was not selected keeps the base's value. In `fuseai`, the released code, the selection is for the weights
only, and all elements move. Unlike in mergekit, small deltas are weighed like large ones, and no weight is clamped.
"""

import math
from collections.abc import Iterator

import numba
import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor, keep_base
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.select import Cut, Selection, find_cuts
from fusion_ray.merged.methods.sums import add_rows
from fusion_ray.merged.methods.varm import weigh_by_variation
from fusion_ray.recipe.merge_methods import Sce

_KEPT_BYTES = 32 << 20


@method(Sce)
def merge_sce(tensor: BlockedTensor, parameters: Sce, _: Context) -> MergedTensor:
    """Merge by SCE.

    `select_topk` is the share tau of the elements of nonzero variance that is selected; 1 selects every element.

    Raises:
        MergeError: One target alone, which leaves no variance to select by.
    """
    select_topk = parameters.select_topk
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
    if not len(weights_J):
        return keep_base(tensor)
    moved = cut if parameters.dialect == "paper" else None
    blocks = (
        _erase_and_sum(values_MRC, selected_RC, weights_J)
        for values_MRC, selected_RC in _select(tensor, variances, moved)
    )
    return MergedTensor(tuple(float(weight) for weight in weights_J), blocks)


class _Variances:
    """The variance across targets, block by block, float32 [R, C].

    Of a tensor of at most _KEPT_BYTES it is kept; of a larger one, each look at it reads all models again.
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
        """The variance of the block with this number and these values."""
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
def _erase_and_sum(values_MRC: np.ndarray, selected_RC: np.ndarray, weights_J: np.ndarray) -> np.ndarray:
    """Add to the base the weighted mean of the deltas that have the sign of their sum.

    An element that is not selected, or of which no delta with a weight is left, keeps the base's value.
    """
    models, rows, columns = values_MRC.shape
    merged_RC = np.empty((rows, columns), dtype=np.float32)
    sum_C = np.empty(columns, dtype=np.float64)
    weighted_C = np.empty(columns, dtype=np.float64)
    weight_C = np.empty(columns, dtype=np.float64)
    for r in range(rows):
        sum_C[:] = 0.0
        weighted_C[:] = 0.0
        weight_C[:] = 0.0
        for m in range(1, models):
            for c in range(columns):
                sum_C[c] += np.float64(values_MRC[m, r, c] - values_MRC[0, r, c])
        for m in range(1, models):
            for c in range(columns):
                delta = np.float64(values_MRC[m, r, c] - values_MRC[0, r, c])
                agrees = delta > 0.0 if sum_C[c] >= 0.0 else delta < 0.0
                weight = weights_J[m - 1] if agrees else 0.0
                weighted_C[c] += weight * delta
                weight_C[c] += weight
        for c in range(columns):
            moves = selected_RC[r, c] and weight_C[c] > 0.0
            merged_RC[r, c] = values_MRC[0, r, c] + weighted_C[c] / weight_C[c] if moves else values_MRC[0, r, c]
    return merged_RC
