"""Judge models on the same bytes: the part of an answer that every model covers up to a boundary they share."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_TURN = 1 << 32  # A position in an answer is turn * _TURN + byte; no turn is 4 GiB long.


class Answer(NamedTuple):
    """One document as one model scored it.

    Attributes:
        turn_lengths: Answer tokens of every turn.
        boundaries_T: Byte of its turn at which every answer token ends, int32.
        logprobs_T: Natural-log probability of every answer token.
        n_bytes: Bytes that the tokens cover.
    """

    turn_lengths: Sequence[int]
    boundaries_T: np.ndarray
    logprobs_T: np.ndarray
    n_bytes: int


class CommonScore(NamedTuple):
    """nll of M models in nats over the same bytes, and how many bytes that is."""

    nll_M: np.ndarray
    n_bytes: int


def score_common_bytes(answers: Sequence[Answer]) -> CommonScore | None:
    """Sum each model's nll over the bytes that all of them cover.

    Models whose tokenizers differ are cut by max_length at different places; then only what lies before the last
    boundary that all share counts. An end-of-turn token counts where its turn's last byte does.

    Returns:
        None where the models share no boundary, so that nothing can be compared.
    """
    if len({answer.n_bytes for answer in answers}) == 1:
        nll = [-answer.logprobs_T.sum(dtype=np.float64) for answer in answers]
        return CommonScore(np.array(nll), answers[0].n_bytes) if answers[0].n_bytes else None
    ends = [_ends(answer) for answer in answers]
    shared = set(ends[0].tolist()).intersection(*(end_T.tolist() for end_T in ends[1:]))
    if not shared:
        return None
    last = max(shared)
    nll = [-a.logprobs_T[end_T <= last].sum(dtype=np.float64) for a, end_T in zip(answers, ends, strict=True)]
    n_bytes = _bytes_until(ends[0], last)
    return CommonScore(np.array(nll), n_bytes) if n_bytes else None


def _ends(answer: Answer) -> np.ndarray:
    turns_T = np.repeat(np.arange(len(answer.turn_lengths), dtype=np.int64), answer.turn_lengths)
    return turns_T * _TURN + answer.boundaries_T


def _bytes_until(ends_T: np.ndarray, last: int) -> int:
    """Bytes of the turns up to a position: the furthest boundary of each."""
    furthest: dict[int, int] = {}
    for end in ends_T[ends_T <= last].tolist():
        furthest[end // _TURN] = max(furthest.get(end // _TURN, 0), end % _TURN)
    return sum(furthest.values())
