"""Which elements of each delta a method keeps: by magnitude, without outliers, at random, or at random by rank."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import Block, BlockedTensor, as_rows
from fusion_ray.merged.methods.draws import uniform
from fusion_ray.merged.methods.select import Selection, find_cuts

# Says what is kept of a block, bool [J, R, C] over the targets. It must be asked for all blocks of a tensor, in order.
Mask = Callable[[Block], np.ndarray]
# Gives the mask for one pass over a tensor; each pass needs a new one.
NewMask = Callable[[], Mask]


def keep_all() -> Mask:
    """Keep every element."""
    return lambda block: np.ones(block.values_MRC[1:].shape, dtype=np.bool_)


def magnitudes(block: Block) -> np.ndarray:
    """Absolute deltas from model 0, float32 [J, R, C]."""
    return np.abs(block.values_MRC[1:] - block.values_MRC[0])


def _all_magnitudes(tensor: BlockedTensor) -> Iterator[np.ndarray]:
    return (magnitudes(block) for block in tensor.blocks())


def keep_largest(tensor: BlockedTensor, densities_J: Sequence[float]) -> NewMask:
    """Keep of each delta the share `density` that is largest in magnitude: at least one element unless it is 0."""
    size = math.prod(tensor.shape)
    counts_J = [_count(density, size) for density in densities_J]
    if all(count == size for count in counts_J):
        return keep_all
    cuts = find_cuts(lambda: _all_magnitudes(tensor), counts_J, largest=True)

    def new_mask() -> Mask:
        selection = Selection(cuts, largest=True)
        return lambda block: selection.take(magnitudes(block))

    return new_mask


def _count(density: float, size: int) -> int:
    if density >= 1:
        return size
    return 0 if density <= 0 else min(size, max(1, int(density * size)))


def keep_without_outliers(tensor: BlockedTensor, densities_J: Sequence[float], gammas_J: Sequence[float]) -> NewMask:
    """Drop of each delta the share `gamma` that is largest, then the smallest, so that the share `density` is left.

    Fewer of the largest are dropped where dropping them all would leave less than `density`.
    """
    size = math.prod(tensor.shape)
    kept_J = [size if density >= 1 else int(density * size) for density in densities_J]
    small_J = [max(0, size - kept - int(gamma * size)) for kept, gamma in zip(kept_J, gammas_J, strict=True)]
    small_J = [0 if kept == size else small for kept, small in zip(kept_J, small_J, strict=True)]
    ends_J = [small + kept for small, kept in zip(small_J, kept_J, strict=True)]
    start_cuts = find_cuts(lambda: _all_magnitudes(tensor), small_J, largest=False)
    end_cuts = find_cuts(lambda: _all_magnitudes(tensor), ends_J, largest=False)

    def new_mask() -> Mask:
        dropped, dropped_and_kept = Selection(start_cuts, largest=False), Selection(end_cuts, largest=False)

        def mask(block: Block) -> np.ndarray:
            scores_JRC = magnitudes(block)
            return dropped_and_kept.take(scores_JRC) & ~dropped.take(scores_JRC)

        return mask

    return new_mask


def keep_at_random(tensor: BlockedTensor, densities_J: Sequence[float], keys_J: Sequence[int]) -> NewMask:
    """Keep each element with the probability `density` (DARE)."""
    columns = as_rows(tensor.shape).columns

    def mask(block: Block) -> np.ndarray:
        shape = block.values_MRC.shape[1:]
        draws = (uniform(key, block.start * columns, shape[0] * shape[1]) for key in keys_J)
        return np.stack([draw.reshape(shape) < p for draw, p in zip(draws, densities_J, strict=True)])

    return lambda: mask


def keep_by_rank(
    tensor: BlockedTensor, densities_J: Sequence[float], epsilons_J: Sequence[float], keys_J: Sequence[int]
) -> NewMask:
    """Keep each element with a probability that grows with its rank in the row (DELLA's MAGPRUNE).

    The smallest of a row has density - epsilon, the largest density + epsilon, the others lie evenly between.

    Raises:
        MergeError: A probability would leave (0, 1).
    """
    for density, epsilon in zip(densities_J, epsilons_J, strict=True):
        if 0 < density < 1 and not 0 < density - epsilon <= density + epsilon < 1:
            raise MergeError(
                f"della: density {density} and epsilon {epsilon} give probabilities outside (0, 1). "
                "Choose a smaller epsilon."
            )
    columns = as_rows(tensor.shape).columns

    def mask(block: Block) -> np.ndarray:
        scores_JRC = magnitudes(block)
        keep_JRC = np.empty(scores_JRC.shape, dtype=np.bool_)
        for j, (density, epsilon, key) in enumerate(zip(densities_J, epsilons_J, keys_J, strict=True)):
            draws_RC = uniform(key, block.start * columns, scores_JRC[j].size).reshape(scores_JRC[j].shape)
            spread = epsilon if 0 < density < 1 else 0.0
            keep_JRC[j] = draws_RC < density - spread + 2 * spread * _rank_in_row(scores_JRC[j])
        return keep_JRC

    return lambda: mask


def _rank_in_row(scores_RC: np.ndarray) -> np.ndarray:
    """Ascending rank within each row, scaled to 0..1, float64 [R, C]; a row of one element has rank 0.5."""
    rows, columns = scores_RC.shape
    if columns < 2:
        return np.full(scores_RC.shape, 0.5)
    order_RC = np.argsort(scores_RC, axis=1, kind="stable")
    ranks_RC = np.empty(scores_RC.shape)
    np.put_along_axis(ranks_RC, order_RC, np.broadcast_to(np.arange(columns) / (columns - 1), (rows, columns)), axis=1)
    return ranks_RC
