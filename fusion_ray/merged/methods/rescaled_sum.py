"""Rescaled sum: add the deltas to the base and scale their sum (ours).

J deltas that point the same way are averaged: the factor on their sum is 1 / J. Of J deltas at right angles nobody can
tell whether the targets learned them or chance made them; their factor is 1 / sqrt(J) if the sum is to be as long as
`one` of them, and 1 if it is to reach as far as `each` of them. A target that did not move changes nothing.
"""

from typing import Literal

import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor, keep_base
from fusion_ray.merged.methods.gram import from_deltas, tensor_gram
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sums import combine
from fusion_ray.recipe.merge_methods import RescaledSum

Reach = Literal["one", "each"]


@method(RescaledSum)
def merge_rescaled_sum(tensor: BlockedTensor, parameters: RescaledSum, _: Context) -> MergedTensor:
    """Add the rescaled sum of the deltas to the base; where no target moved the base stays, bit for bit."""
    gram_JJ = tensor_gram(tensor, minus_first=True)[1:, 1:]
    factor = sum_factor(gram_JJ, parameters.reach or "one")
    return keep_base(tensor) if factor is None else combine(tensor, from_deltas(np.full(len(gram_JJ), factor)))


def sum_factor(gram_JJ: np.ndarray, reach: Reach = "one") -> float | None:
    """Factor on the sum of the deltas; None where none moved.

    `one`: the sum becomes as long as the deltas are in the root mean square. In that mean each delta counts by its
    squared length, as in VaRM, so a target that hardly moved does not shorten the sum. `each`: the inner products of
    the sum with the deltas add up to the squared lengths of the deltas. The factor is at most 1, so that deltas that
    cancel out are not blown up.

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
