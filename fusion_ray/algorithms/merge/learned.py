"""Learned weights: descend the loss of the merged model by the weight of each target in each part of the model.

A part's tensors are theta = theta_0 + sum_j a_j delta_j, so the loss has the slope <dloss/dtheta, delta_j> by a_j: one
backward pass through the model gives the slopes of all weights, and the merge itself need not be differentiated.
The pivot's weight is 1 - sum_j a_j. Ours; compare AdaMerging (arXiv 2310.02575), which descends entropy instead.
"""

import numpy as np

from fusion_ray.algorithms.merge.blocks import BlockedTensor, MergedTensor
from fusion_ray.algorithms.merge.linear import combine
from fusion_ray.algorithms.merge.varm import keep_pivot

_DECAYS = (0.5, 0.99)
_TINY = 1e-30


def merge_learned(tensor: BlockedTensor, weights_M: np.ndarray | None) -> MergedTensor:
    """Mix pivot and targets by learned weights, the pivot's first; None where no target moved keeps the pivot."""
    return keep_pivot(tensor) if weights_M is None else combine(tensor, weights_M)


def project(weights_GJ: np.ndarray) -> np.ndarray:
    """The nearest weights of targets that leave the pivot one too: none below 0, and a sum of at most 1 in each row.

    >>> project(np.array([[0.25, 0.5], [-1.0, 0.5], [1.0, 0.5]])).tolist()
    [[0.25, 0.5], [0.0, 0.5], [0.75, 0.25]]
    """
    clipped_GJ = np.maximum(weights_GJ, 0.0)
    over_G = clipped_GJ.sum(axis=1) > 1.0
    if over_G.any():
        clipped_GJ[over_G] = _project_to_sum_of_one(weights_GJ[over_G])
    return clipped_GJ


def _project_to_sum_of_one(weights_GJ: np.ndarray) -> np.ndarray:
    """Subtract from each row what makes its positive part sum to 1 (Held, Wolfe and Crowder 1974)."""
    falling_GJ = -np.sort(-weights_GJ, axis=1)
    excess_GJ = np.cumsum(falling_GJ, axis=1) - 1.0
    counts_J = np.arange(1, weights_GJ.shape[1] + 1)
    kept_G = (falling_GJ * counts_J > excess_GJ).sum(axis=1)
    level_G = excess_GJ[np.arange(len(kept_G)), kept_G - 1] / kept_G
    return np.maximum(weights_GJ - level_G[:, None], 0.0)


class Descent:
    """Adam over the weights of G parts and J targets, with one second moment for all targets of a part.

    With a second moment for each weight, the first step would be as long for every target whatever its slope; where
    the weights already sum to 1, that step leads nowhere. The step length falls on a straight line to 0.

    Attributes:
        weights_GJ: Where it stands, float64.
    """

    def __init__(self, start_GJ: np.ndarray, *, learning_rate: float, steps: int, simplex: bool) -> None:
        self.weights_GJ = start_GJ.astype(np.float64)
        self._learning_rate, self._steps, self._simplex = learning_rate, steps, simplex
        self._mean_GJ = np.zeros_like(self.weights_GJ)
        self._square_G1 = np.zeros((len(start_GJ), 1))
        self._done = 0

    def step(self, slopes_GJ: np.ndarray) -> None:
        """Go one step against the slopes; a part whose slopes have all been 0 stays."""
        share = 1.0 - self._done / self._steps
        self._done += 1
        first, second = _DECAYS
        self._mean_GJ = first * self._mean_GJ + (1.0 - first) * slopes_GJ
        largest_G1 = np.square(slopes_GJ).max(axis=1, keepdims=True)
        self._square_G1 = second * self._square_G1 + (1.0 - second) * largest_G1
        mean_GJ = self._mean_GJ / (1.0 - first**self._done)
        scale_G1 = np.sqrt(self._square_G1 / (1.0 - second**self._done)) + _TINY
        moved_GJ = self.weights_GJ - share * self._learning_rate * mean_GJ / scale_G1
        self.weights_GJ = project(moved_GJ) if self._simplex else moved_GJ


def with_pivot(weights_J: np.ndarray) -> np.ndarray:
    """Put the pivot's weight before those of the targets, so that all sum to 1; VaRM's leave it exactly nothing.

    >>> with_pivot(np.array([0.25, 0.5])).tolist()
    [0.25, 0.25, 0.5]
    """
    rest = 1.0 - weights_J.sum()
    return np.concatenate([[0.0 if abs(rest) < 1e-12 else rest], weights_J])
