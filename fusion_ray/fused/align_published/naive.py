"""The published alignments, literally: the oracle of `dtw.py`, in the quadratic Python that they are known for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moved:
    """A distribution over pivot tokens: probabilities by id, or a one-hot label where nothing could be moved."""

    probabilities: dict[int, float]
    is_one_hot: bool


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions and replacements that make one string of the other.

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(first) + 1))
    for j, letter in enumerate(second, start=1):
        diagonal, row[0] = row[0], j
        for i, other in enumerate(first, start=1):
            diagonal, row[i] = row[i], min(row[i] + 1, row[i - 1] + 1, diagonal + (letter != other))
    return row[-1]


def warp_naively(
    pivot: Sequence[str], source: Sequence[str], distance: Callable[[str, str], int] = edit_distance
) -> list[list[int]]:
    """Source positions aligned with each pivot position, in order."""
    aligned: list[list[int]] = [[] for _ in pivot]
    if not pivot or not source:
        return aligned
    table = np.full((len(pivot), len(source)), np.inf)
    for i, ours in enumerate(pivot):
        for j, theirs in enumerate(source):
            before = min((table[a, b] for a, b in _steps(i, j)), default=0)
            table[i, j] = distance(ours, theirs) + before
    i, j = len(pivot) - 1, len(source) - 1
    while True:
        aligned[i].insert(0, j)
        if i == j == 0:
            return aligned
        i, j = min(_steps(i, j), key=lambda step: table[step])


def match_naively(pivot: Sequence[str], source: Sequence[str], aligned: list[list[int]]) -> list[int | None]:
    """The source position that each pivot position is taken to end with, if any."""
    return [_match(ours, [(j, source[j]) for j in positions]) for ours, positions in zip(pivot, aligned, strict=True)]


def move_naively(
    row: dict[int, float] | None, mapping: Callable[[int], int | None], real: int, top_k: int
) -> Moved:  # fmt: skip
    """Move one distribution through a vocabulary map; `row` is None where no source position was matched."""
    kept: dict[int, float] = {}
    for token, probability in sorted((row or {}).items(), key=lambda entry: -entry[1]):
        target = mapping(token)
        if target is not None and target not in kept and len(kept) < top_k:
            kept[target] = probability
    if not kept:
        return Moved({real: 1.0}, is_one_hot=True)
    return Moved({token: probability / sum(kept.values()) for token, probability in kept.items()}, is_one_hot=False)


def map_exactly(token: str, vocabulary: Sequence[str]) -> int | None:
    """`em`: the pivot token of the same spelling."""
    return vocabulary.index(token) if token and token in vocabulary else None


def map_nearest(token: str, vocabulary: Sequence[str]) -> int:
    """`mined`: the pivot token of least edit distance, the first of equals."""
    candidates = [token_id for token_id, written in enumerate(vocabulary) if written]
    return min(candidates, key=lambda token_id: edit_distance(token, vocabulary[token_id]))


def map_by_counts(token: str, counts: dict[int, int], vocabulary: Sequence[str]) -> int | None:
    """`ms`: the aligned pivot token of least distance x containment x sigmoid(count)."""

    def score(token_id: int) -> float:
        written = vocabulary[token_id]
        contained = 0.1 if token in written or written in token else 1.0
        return edit_distance(token, written) * contained / (1.0 + np.exp(-counts[token_id]))

    return min(sorted(counts), key=score) if counts else map_exactly(token, vocabulary)


def _steps(i: int, j: int) -> list[tuple[int, int]]:
    """The cells before a cell: on the diagonal, along the source, along the pivot."""
    return [(a, b) for a, b in ((i - 1, j - 1), (i, j - 1), (i - 1, j)) if a >= 0 and b >= 0]


def _match(ours: str, aligned: list[tuple[int, str]]) -> int | None:
    for j, theirs in aligned:
        if ours.endswith(theirs) or theirs.endswith(ours):
            return j
    found = None
    if len(aligned) > 1:
        for j, theirs in aligned:
            if not ours.startswith(theirs):
                break
            ours, found = ours[len(theirs) :], j
    return found
