"""Rescaled sum: add the deltas, and scale their sum to the length of one of them (ours).

What targets have in common is then averaged (deltas that point the same way: a factor of 1 / J), what each has alone is
added (deltas at right angles: 1 / sqrt(J)), and a target that did not move counts for nothing. Nothing is to be chosen.
"""

import numpy as np

from fusion_ray.algorithms.merge.blocks import BlockedTensor, MergedTensor
from fusion_ray.algorithms.merge.gram import from_deltas, tensor_gram
from fusion_ray.algorithms.merge.linear import combine
from fusion_ray.algorithms.merge.varm import keep_pivot


def merge_rescaled_sum(tensor: BlockedTensor) -> MergedTensor:
    """Add the deltas of one tensor, rescaled. Model 0 is the base; where no target moved it stays, bit for bit."""
    gram_JJ = tensor_gram(tensor, minus_first=True)[1:, 1:]
    factor = sum_factor(gram_JJ)
    return keep_pivot(tensor) if factor is None else combine(tensor, from_deltas(np.full(len(gram_JJ), factor)))


def sum_factor(gram_JJ: np.ndarray) -> float | None:
    """Factor on the sum of the deltas; None where none moved.

    The sum becomes as long as the deltas' root mean square length, in which each counts by its squared length, as in
    VaRM: one that hardly moved does not shorten it. It is at most 1, so that deltas that cancel out are not blown up.

    Args:
        gram_JJ: Inner products of the deltas.

    >>> sum_factor(np.array([[2.0, 2.0], [2.0, 2.0]]))
    0.5
    >>> sum_factor(np.array([[2.0, 0.0], [0.0, 0.0]]))
    1.0
    """
    squares_J = np.diag(gram_JJ)
    total, whole = squares_J.sum(), gram_JJ.sum()
    if total == 0:
        return None
    wanted = np.square(squares_J).sum() / total
    return 1.0 if whole <= wanted else float(np.sqrt(wanted / whole))
