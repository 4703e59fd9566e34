"""Rescaled sum: add the deltas, and scale their sum (ours).

What targets have in common is averaged (deltas that point the same way: a factor of 1 / J), what each has alone is
added, and a target that did not move counts for nothing. Deltas at right angles, which may be what the targets learned
or chance, get a factor of 1 / sqrt(J) where the sum is to be as long as `one` of them, 1 where it is to reach as far
as `each` of them.
"""

from typing import Literal

import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.gram import from_deltas, tensor_gram
from fusion_ray.merged.methods.linear import combine
from fusion_ray.merged.methods.varm import keep_pivot

Reach = Literal["one", "each"]


def merge_rescaled_sum(tensor: BlockedTensor, reach: Reach = "one") -> MergedTensor:
    """Add the deltas of one tensor, rescaled. Model 0 is the base; where no target moved it stays, bit for bit."""
    gram_JJ = tensor_gram(tensor, minus_first=True)[1:, 1:]
    factor = sum_factor(gram_JJ, reach)
    return keep_pivot(tensor) if factor is None else combine(tensor, from_deltas(np.full(len(gram_JJ), factor)))


def sum_factor(gram_JJ: np.ndarray, reach: Reach = "one") -> float | None:
    """Factor on the sum of the deltas; None where none moved.

    `one`: the sum becomes as long as the deltas' root mean square length, in which each counts by its squared length,
    as in VaRM: one that hardly moved does not shorten it. `each`: the sum's inner products with the deltas add up to
    the deltas' own squares. It is at most 1, so that deltas that cancel out are not blown up.

    Args:
        gram_JJ: Inner products of the deltas.
        reach: How far the sum goes.

    >>> sum_factor(np.array([[2.0, 2.0], [2.0, 2.0]]))
    0.5
    >>> sum_factor(np.array([[2.0, 0.0], [0.0, 0.0]]))
    1.0
    >>> sum_factor(np.array([[2.0, 0.0], [0.0, 2.0]]), "each")
    1.0
    """
    squares_J = np.diag(gram_JJ)
    total, whole = squares_J.sum(), gram_JJ.sum()
    if total == 0:
        return None
    if reach == "each":
        return 1.0 if whole <= total else float(total / whole)
    wanted = np.square(squares_J).sum() / total
    return 1.0 if whole <= wanted else float(np.sqrt(wanted / whole))
