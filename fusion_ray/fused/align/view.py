"""One aligned answer as plain data, for the terminal and the report: nothing here prints."""

from dataclasses import dataclass

import numpy as np

from fusion_ray.chat.answer_tokens import AnswerTokens
from fusion_ray.chat.vocabulary import Vocabulary
from fusion_ray.fused.align.groups import Groups
from fusion_ray.storage.topk import TopK


@dataclass(frozen=True)
class Entry:
    """A token and its probability."""

    token: str
    probability: float
    is_real: bool

    @property
    def shown(self) -> str:
        """Its text with white space made visible."""
        return _show_spaces(self.token)


@dataclass(frozen=True)
class TokenView:
    """A token where it stands in the answer.

    Attributes:
        token: Its text; bytes that are no UTF-8 are written `\\xNN`.
        start, stop: Its bytes in the answer's text.
        real: Probability of this token, None where none is known.
        top: The most probable tokens of the model's own distribution, or nothing.
        projected: The most probable tokens of the source's distribution over the pivot's tokens (pivot only).
    """

    token: str
    start: int
    stop: int
    real: float | None
    top: tuple[Entry, ...]
    projected: tuple[Entry, ...] = ()
    projected_real: float | None = None

    @property
    def shown(self) -> str:
        """Its text with white space made visible."""
        return _show_spaces(self.token)


@dataclass(frozen=True)
class GroupView:
    """Pivot and source tokens over the same bytes; one side is empty where a model's answer was cut off."""

    pivot: tuple[TokenView, ...]
    source: tuple[TokenView, ...]

    @property
    def is_aligned(self) -> bool:
        """Whether the group carries distributions across."""
        return bool(self.pivot and self.source)


@dataclass(frozen=True, eq=False)
class ViewSide:
    """One model of a view; `topk` is None where only its tokenizer is at hand."""

    answers: AnswerTokens
    vocabulary: Vocabulary
    topk: TopK | None = None


def view_turn(
    turn: int,
    partner: int,
    pivot: ViewSide,
    source: ViewSide,
    groups: Groups,
    projected: TopK | None = None,
    entries: int = 3,
) -> list[GroupView]:
    """Lay one turn out group by group, in the order of the text.

    Args:
        turn, partner: The turn in the pivot's and in the source's answers.
        pivot, source: Both models.
        groups: Where the answers are cut, from `find_groups` or a projection.
        projected: The source's distributions over the pivot's tokens, from a projection.
        entries: How many tokens of each distribution to list.
    """
    views = []
    p, p_stop = (int(offset) for offset in pivot.answers.turn_offsets[turn : turn + 2])
    s, s_stop = (int(offset) for offset in source.answers.turn_offsets[partner : partner + 2])
    for g in np.flatnonzero(groups.turn == turn):
        views += _gap(p, int(groups.pivot_start[g]), s, int(groups.source_start[g]), pivot, source, entries)
        p, s = int(groups.pivot_stop[g]), int(groups.source_stop[g])
        ours = [_view(t, pivot, entries, projected) for t in range(int(groups.pivot_start[g]), p)]
        theirs = [_view(t, source, entries) for t in range(int(groups.source_start[g]), s)]
        views.append(GroupView(tuple(ours), tuple(theirs)))
    return views + _gap(p, p_stop, s, s_stop, pivot, source, entries)


def show_bytes(piece: bytes) -> str:
    """The text of a token; bytes that are no UTF-8 as `\\xNN`.

    >>> show_bytes(b" the"), show_bytes("é".encode()[:1])
    (' the', '\\\\xc3')
    """
    return piece.decode(errors="backslashreplace")


def _gap(
    p: int, p_stop: int, s: int, s_stop: int, pivot: ViewSide, source: ViewSide, entries: int
) -> list[GroupView]:  # fmt: skip
    """Tokens that are in no group."""
    ours = tuple(_view(t, pivot, entries) for t in range(p, p_stop))
    theirs = tuple(_view(t, source, entries) for t in range(s, s_stop))
    return [GroupView(side, ()) for side in [ours] if side] + [GroupView((), side) for side in [theirs] if side]


def _view(position: int, side: ViewSide, entries: int, projected: TopK | None = None) -> TokenView:
    answers = side.answers
    turn = int(np.searchsorted(answers.turn_offsets, position, side="right")) - 1
    start = 0 if position == answers.turn_offsets[turn] else int(answers.boundaries_T[position - 1])
    real = int(answers.ids_T[position])
    return TokenView(
        token=show_bytes(side.vocabulary.token(real)),
        start=start,
        stop=int(answers.boundaries_T[position]),
        real=_real(side.topk, position),
        top=_entries(side.topk, position, side.vocabulary, real, entries),
        projected=_entries(projected, position, side.vocabulary, real, entries),
        projected_real=_real(projected, position),
    )


def _real(topk: TopK | None, position: int) -> float | None:
    if topk is None or np.isnan(topk.real_logprobs_T[position]):
        return None
    return float(np.exp(topk.real_logprobs_T[position]))


def _entries(topk: TopK | None, position: int, vocabulary: Vocabulary, real: int, entries: int) -> tuple[Entry, ...]:
    if topk is None:
        return ()
    pairs = zip(topk.ids_TK[position, :entries].tolist(), topk.logprobs_TK[position, :entries].tolist(), strict=True)
    return tuple(
        Entry(show_bytes(vocabulary.token(token)), float(np.exp(logprob)), token == real)
        for token, logprob in pairs
        if token >= 0
    )


def _show_spaces(text: str) -> str:
    """A token's text with its white space made visible.

    >>> _show_spaces(" a\\n"), _show_spaces("")
    ('·a⏎', '∅')
    """
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍") or "∅"
