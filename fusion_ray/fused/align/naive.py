"""Exact alignment, word for word: the oracle of `exact.py`, and the place to read the method.

Everything is plain Python, one turn at a time, probabilities rather than logarithms, every leaf built as bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, takewhile

import numpy as np

from fusion_ray.chat.answer_tokens import AnswerTurn
from fusion_ray.chat.vocabulary import Vocabulary
from fusion_ray.fused.align.leaves import FARTHEST, WINDOW
from fusion_ray.storage.topk import TopK

SPACES = b" \t\n\x0b\x0c\r"


@dataclass(frozen=True)
class Pair:
    """A pivot and a source tokenizer.

    Attributes:
        pivot, source: What their ids stand for.
        tokenize: The pivot's tokenization of some bytes in the middle of a text, empty where it has none.
        pivot_end: The pivot's usual end-of-turn token, or None; a turn that ends with another goes by that one.
        source_ends: Every end-of-turn token of the source.
        weights_U: How often each source token occurs.
    """

    pivot: Vocabulary
    source: Vocabulary
    tokenize: Callable[[bytes], list[int]]
    pivot_end: int | None
    source_ends: frozenset[int]
    weights_U: Sequence[float]
    _shares: dict[bytes, float] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether they are one tokenizer."""
        return self.pivot.same_as(self.source)

    def tokens_of(self, token_id: int) -> list[int]:
        """Pivot tokens of one source token."""
        if self.same:
            return [token_id]
        if token_id in self.source_ends and self.pivot_end is not None:
            return [self.pivot_end]
        if self.source.is_special_V[token_id] or not self.source.token(token_id):
            return []
        return self.tokenize(self.source.token(token_id))

    def share_of(self, begins: bytes) -> float:
        """The share of the corpus's source tokens that begin with some bytes; looked up where asked before."""
        if begins not in self._shares:
            self._shares[begins] = self.share_where(lambda c: self.source.token(c).startswith(begins))
        return self._shares[begins]

    def share_where(self, fits: Callable[[int], bool]) -> float:
        """The share of the corpus's source tokens that fit, special ones apart."""
        plain = [c for c in range(len(self.weights_U)) if not self.source.is_special_V[c]]
        return sum(self.weights_U[c] for c in plain if fits(c)) / sum(self.weights_U[c] for c in plain)


@dataclass(frozen=True)
class Group:
    """Positions of pivot and source tokens over the same bytes."""

    pivot: range
    source: range
    is_first: bool = False
    is_end: bool = False


@dataclass(frozen=True)
class Leaf:
    """A way the group may go on: its pivot tokens, empty where its bytes are unknown, and its mass."""

    tokens: list[int]
    mass: float
    at: int = 0
    prefix: bytes | None = b""


@dataclass(frozen=True)
class Position:
    """The projected distribution at one pivot position; what is missing to 1 is the tail."""

    real: float
    probabilities: dict[int, float] = field(default_factory=dict)


def project_naively(
    pivot: AnswerTurn, source: AnswerTurn, topk: TopK, pair: Pair, inner_tail: str = "unigram"
) -> list[Position | None]:
    """Project one turn; None at the positions that no group covers."""
    positions: list[Position | None] = [None] * len(pivot.ids_T)
    if pivot.ended and pair.pivot_end is not None:
        pair = replace(pair, pivot_end=int(pivot.ids_T[-1]))
    for group in cut_into_groups(pivot, source, pair.same):
        fold = 0 if group.is_end or not group.is_first else _fold(group, pivot, source, pair)
        leaves = build_leaves(group, fold, pivot, source, topk, pair)
        path = [int(pivot.ids_T[t]) for t in group.pivot]
        real = float(np.prod([np.exp(np.float64(topk.real_logprobs_T[s])) for s in group.source]))
        for j, t in enumerate(group.pivot):
            shares = [_shares(leaf, path, here, fold, pair, inner_tail) for leaf in leaves for here in (j, j + 1)]
            positions[t] = _project_at(j, path, real, leaves, shares[0::2], shares[1::2])
    return positions


def cut_into_groups(pivot: AnswerTurn, source: AnswerTurn, same: bool) -> list[Group]:
    """Cut where a pivot token and a source token end together; end-of-turn to end-of-turn."""
    p_text = len(pivot.ids_T) - pivot.ended
    s_text = len(source.ids_T) - source.ended
    both = min(p_text, s_text)
    groups = []
    if same and _alike(pivot, source, both):
        groups = [Group(range(t, t + 1), range(t, t + 1)) for t in range(both)]
    else:
        p_ends, s_ends = list(pivot.boundaries_T[:p_text]), list(source.boundaries_T[:s_text])
        p, s = 0, 0
        for boundary in sorted(set(p_ends) & set(s_ends)):
            p_stop, s_stop = _after(p_ends, boundary), _after(s_ends, boundary)
            groups.append(Group(range(p, p_stop), range(s, s_stop)))
            p, s = p_stop, s_stop
    if groups:
        groups[0] = Group(groups[0].pivot, groups[0].source, is_first=True)
    if pivot.ended and source.ended:
        groups.append(Group(range(p_text, p_text + 1), range(s_text, s_text + 1), is_end=True))
    return groups


def build_leaves(group: Group, fold: int, pivot: AnswerTurn, source: AnswerTurn, topk: TopK, pair: Pair) -> list[Leaf]:
    """All leaves of a group but the real path; those of unknown bytes have no tokens."""
    leaves = []
    before = 1.0
    path = [int(pivot.ids_T[t]) for t in group.pivot]
    ours = pair.pivot.text(path)
    theirs = ours[: max(fold, 0)] + pair.source.text(source.ids_T[s] for s in group.source)
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs[max(-fold, 0) :], strict=False)))
    prefix: bytes | None = ours[: max(fold, 0)]
    for i, s in enumerate(group.source):
        real_id = int(source.ids_T[s])
        kept = {
            int(c): float(np.exp(np.float64(logprob)))
            for c, logprob in zip(topk.ids_TK[s], topk.logprobs_TK[s], strict=True)
            if c >= 0
        }
        real = float(np.exp(np.float64(topk.real_logprobs_T[s])))
        for c, probability in kept.items():
            if c != real_id:
                tokens = _leaf_tokens(i, c, prefix, fold, pair, path, alike)
                leaves.append(Leaf(tokens, before * probability, i, prefix))
        outside = 1.0 - sum(kept.values()) - (0.0 if real_id in kept else real)
        leaves.append(Leaf([], before * max(outside, 0.0), i, prefix))
        piece = pair.source.token(real_id)
        prefix = None if prefix is None or not piece else prefix + piece
        before *= real
    return leaves


def _leaf_tokens(i: int, c: int, prefix: bytes | None, fold: int, pair: Pair, path: list[int], alike: int) -> list[int]:
    if i == 0 and (fold == 0 or c in pair.source_ends):
        return pair.tokens_of(c)
    if prefix is None:
        return []
    # Far into a group a leaf begins with the real path's tokens up to WINDOW bytes before it.
    stops = accumulate(len(pair.pivot.token(token)) for token in path)
    base = sum(stop <= min(alike, len(prefix) - max(-fold, 0) - WINDOW) for stop in stops)
    if base:
        prefix, fold = prefix[max(-fold, 0) + len(pair.pivot.text(path[:base])) :], 0
    if len(prefix) > FARTHEST:
        return []
    if c in pair.source_ends and pair.pivot_end is not None:
        text = _strip_lead(prefix, -fold)
        tokens = pair.tokenize(text)
        return [*path[:base], *tokens, pair.pivot_end] if tokens or not text else []
    piece = pair.source.token(c)
    if pair.source.is_special_V[c] or not piece:
        return []
    tokens = pair.tokenize(_strip_lead(prefix + piece, -fold))
    return [*path[:base], *tokens] if tokens else []


def _project_at(
    j: int, path: list[int], real: float, leaves: list[Leaf], here: list[float], beyond: list[float]
) -> Position:
    """The distribution over the pivot's token j of the group.

    `here` and `beyond` are the parts of each leaf of unknown bytes that begin with the first j and j + 1 tokens.
    """
    alive = [leaf for leaf in leaves if leaf.tokens and leaf.tokens[:j] == path[:j]]
    unknown = sum(leaf.mass * share for leaf, share in zip(leaves, here, strict=True) if not leaf.tokens)
    goes_on = sum(leaf.mass * share for leaf, share in zip(leaves, beyond, strict=True) if not leaf.tokens)
    whole = real + sum(leaf.mass for leaf in alive) + unknown
    masses = {path[j]: real + (goes_on if j + 1 < len(path) else 0.0)}
    for leaf in alive:
        if len(leaf.tokens) > j:
            masses[leaf.tokens[j]] = masses.get(leaf.tokens[j], 0.0) + leaf.mass
    probabilities = {token: mass / whole for token, mass in masses.items() if mass > 0.0}
    return Position(probabilities.get(path[j], 0.0), probabilities)


def _shares(leaf: Leaf, path: list[int], j: int, fold: int, pair: Pair, inner_tail: str) -> float:
    """How much of a leaf of unknown bytes is taken to begin with the first j pivot tokens of the real path."""
    if j == 0:
        return 1.0
    if leaf.tokens or leaf.prefix is None or inner_tail == "none" or fold != 0:
        return 0.0
    if leaf.at == 0:
        return pair.share_where(lambda c: pair.tokens_of(c)[:j] == path[:j])
    return pair.share_of(pair.pivot.text(path[:j])[len(leaf.prefix) :])


def _fold(group: Group, pivot: AnswerTurn, source: AnswerTurn, pair: Pair) -> int:
    """Spaces before the turn that only the pivot has (positive) or only the source (negative)."""
    ours = pair.pivot.text(pivot.ids_T[t] for t in group.pivot)
    theirs = pair.source.text(source.ids_T[s] for s in group.source)
    return (len(ours) - len(ours.lstrip(SPACES))) - (len(theirs) - len(theirs.lstrip(SPACES)))


def _strip_lead(text: bytes, at_most: int) -> bytes:
    spaces = len(text) - len(text.lstrip(SPACES))
    return text[min(spaces, max(at_most, 0)) :]


def _after(ends: list[int], boundary: int) -> int:
    return max(t for t, end in enumerate(ends) if end == boundary) + 1


def _alike(pivot: AnswerTurn, source: AnswerTurn, both: int) -> bool:
    return np.array_equal(pivot.ids_T[:both], source.ids_T[:both]) and np.array_equal(
        pivot.boundaries_T[:both], source.boundaries_T[:both]
    )
