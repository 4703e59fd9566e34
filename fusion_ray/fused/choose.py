"""Fusion functions: which model's distribution an example, or a group of tokens, is taught with (MinCE, AvgCE).

Models are rows, the pivot is row 0. All distributions are over the pivot's tokens. Scores are compared in float32; a
score that is NaN or infinite loses.
"""

from collections.abc import Sequence

import numpy as np

from fusion_ray.distributions.mince import finite_or_worst, pick_mince
from fusion_ray.errors import NonFiniteError
from fusion_ray.fused.compiled import compiled
from fusion_ray.storage.topk import TopK


def pick_mince_groups(real_logprobs_MT: np.ndarray, group_T: np.ndarray) -> np.ndarray:
    """Choose for each group of positions the model that gives its real tokens the most (MinCE at token level).

    Args:
        real_logprobs_MT: What each model, projected, gives the pivot's real tokens; NaN where it covers none.
        group_T: Group of each position, from 0; see `joint_groups`.

    Returns:
        Row of the chosen model for each position, int64 [T].

    Raises:
        NonFiniteError: A group that no model has scored.
    """
    count = int(group_T.max(initial=-1)) + 1
    nll_MG = np.array([np.bincount(group_T, -logprobs_T, count) for logprobs_T in real_logprobs_MT.astype(np.float64)])
    return pick_mince(nll_MG)[group_T]


def joint_groups(group_MT: np.ndarray) -> np.ndarray:
    """The smallest spans that no source's group crosses, numbered from 0, int64 [T].

    Args:
        group_MT: Group of each pivot position by source, -1 where the source covers none.

    >>> joint_groups(np.array([[0, 1, 1, 2, 3], [0, 1, 2, 2, -1]])).tolist()
    [0, 1, 1, 1, 2]
    """
    before_MT, after_MT = group_MT[:, :-1], group_MT[:, 1:]
    cut_T = ((before_MT != after_MT) | (after_MT < 0)).all(axis=0)
    return np.concatenate([[0], np.cumsum(cut_T)])[: group_MT.shape[1]]


def weigh_avgce(bits_per_byte_MN: np.ndarray, tau: float) -> np.ndarray:
    """Weigh the models of each example by softmax(-bits_per_byte / tau) (AvgCE); float32 [M, N], columns sum to 1.

    Raises:
        NonFiniteError: An example that no model has scored.

    Source: AvgCE, FuseLLM, arXiv 2401.10491. Differs: bits per byte, as in `pick_mince`.

    >>> weigh_avgce(np.array([[1.0, 2.0], [1.0, np.inf]]), tau=1.0).tolist()
    [[0.5, 1.0], [0.5, 0.0]]
    """
    scores_MN = -finite_or_worst(bits_per_byte_MN).astype(np.float64) / tau
    weights_MN = np.exp(scores_MN - scores_MN.max(axis=0))
    return (weights_MN / weights_MN.sum(axis=0)).astype(np.float32)


def take(chosen_T: np.ndarray, topks: Sequence[TopK]) -> TopK:
    """Take each position's distribution from its chosen model."""
    positions = np.arange(len(chosen_T))
    return TopK(
        np.stack([topk.ids_TK for topk in topks])[chosen_T, positions],
        np.stack([topk.logprobs_TK for topk in topks])[chosen_T, positions],
        np.stack([topk.real_logprobs_T for topk in topks])[chosen_T, positions],
    )


def average_topks(weights_MT: np.ndarray, topks: Sequence[TopK], top_k: int) -> TopK:
    """Average distributions; the `top_k` largest entries are kept, ties to the lower id, the others go to the tail.

    A model that does not cover a position (NaN for its real token) has weight 0 there.

    Args:
        weights_MT: Weight of each model at each position.
        top_k: Entries to keep.

    Raises:
        NonFiniteError: A position that no model with a weight above 0 covers.
    """
    real_MT = np.stack([topk.real_logprobs_T for topk in topks]).astype(np.float64)
    weights_MT = np.where(np.isnan(real_MT), 0.0, weights_MT)
    total_T = weights_MT.sum(axis=0)
    if not (total_T > 0).all():
        position = int(np.argmin(total_T > 0))
        raise NonFiniteError(
            f"position {position}: every model with a distribution there has weight 0; expected at least one weight "
            "above 0. Leave the position to gold labels."
        )
    weights_MT = weights_MT / total_T
    real_T = np.log((weights_MT * np.exp(np.nan_to_num(real_MT, nan=-np.inf))).sum(axis=0))
    ids_TL = np.concatenate([topk.ids_TK for topk in topks], axis=1)
    masses_TL = np.concatenate(
        [weight_T[:, None] * np.exp(topk.logprobs_TK) for weight_T, topk in zip(weights_MT, topks, strict=True)], axis=1
    )
    ids_TK, masses_TK = _add_up(ids_TL, masses_TL, top_k)
    logprobs_TK = np.log(masses_TK, where=ids_TK >= 0, out=np.full(masses_TK.shape, -np.inf))
    return TopK(ids_TK, logprobs_TK.astype(np.float32), real_T.astype(np.float32))


def _add_up(ids_TL: np.ndarray, masses_TL: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Join entries with the same id, and keep the `top_k` largest."""
    by_id = np.argsort(ids_TL, axis=1, kind="stable")
    ids_TL, masses_TL = np.take_along_axis(ids_TL, by_id, 1), np.take_along_axis(masses_TL, by_id, 1)
    _join_neighbours(ids_TL, masses_TL)
    largest = np.argsort(-masses_TL, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(ids_TL, largest, 1), np.take_along_axis(masses_TL, largest, 1)


@compiled
def _join_neighbours(ids_TL: np.ndarray, masses_TL: np.ndarray) -> None:
    for t in range(ids_TL.shape[0]):
        for i in range(1, ids_TL.shape[1]):
            if ids_TL[t, i] == ids_TL[t, i - 1] and ids_TL[t, i] >= 0:
                masses_TL[t, i] += masses_TL[t, i - 1]
                masses_TL[t, i - 1], ids_TL[t, i - 1] = 0.0, -1
            elif ids_TL[t, i] < 0:
                masses_TL[t, i] = 0.0
        for i in range(ids_TL.shape[1]):
            if masses_TL[t, i] <= 0.0:
                ids_TL[t, i], masses_TL[t, i] = -1, 0.0
