"""Maps from source tokens to single pivot tokens: exact match, least edit distance, mapping statistics."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fusion_ray.errors import AlignmentError
from fusion_ray.fused.align_published.edit_distance import edit_distance, nearest
from fusion_ray.fused.align_published.spellings import Letters, Spellings, lay_out, read_spellings

MapKind = Literal["em", "mined", "ms"]
UNMAPPED, UNASKED = -1, -2


@dataclass(frozen=True, eq=False)
class PairCounts:
    """How often a pivot token was aligned with a source token; shards add up.

    Attributes:
        pivot_ids, source_ids: The pairs that occurred, sorted by source and then by pivot, int32.
        counts: How often, int64.
    """

    pivot_ids: np.ndarray
    source_ids: np.ndarray
    counts: np.ndarray

    def __add__(self, other: "PairCounts") -> "PairCounts":
        return sum_pairs(
            np.concatenate([self.pivot_ids, other.pivot_ids]),
            np.concatenate([self.source_ids, other.source_ids]),
            np.concatenate([self.counts, other.counts]),
        )


def sum_pairs(pivot_ids: np.ndarray, source_ids: np.ndarray, counts: np.ndarray) -> PairCounts:
    """Add up equal pairs."""
    keys, inverse = np.unique((source_ids.astype(np.int64) << 32) | pivot_ids, return_inverse=True)
    summed = np.zeros(len(keys), dtype=np.int64)
    np.add.at(summed, inverse, counts)
    return PairCounts((keys & 0xFFFFFFFF).astype(np.int32), (keys >> 32).astype(np.int32), summed)


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """A pivot token for each source token.

    Attributes:
        kind: `em` maps tokens of one spelling, after the word-start marker is swapped; `mined` maps the others to the
            pivot token of least edit distance, the first of equals; `ms` maps by counts of aligned pairs.
        pivot_letters, source_letters: Spellings without markers, for warping.
        map_U: Pivot token, UNMAPPED, or UNASKED: `mined` searches for a token when it is first asked for; int32.
    """

    kind: MapKind
    pivot_letters: Letters
    source_letters: Letters
    map_U: np.ndarray
    _pivot_written: Letters
    _source_written: Letters

    def resolve(self, source_ids: np.ndarray) -> np.ndarray:
        """Pivot tokens of source tokens, -1 where there is none or the id is -1; int32."""
        asked = np.unique(source_ids[source_ids >= 0])
        asked = asked[self.map_U[asked] == UNASKED]
        if len(asked):
            wanted, cuts = _select(self._source_written, asked)
            found = np.full(len(asked), UNMAPPED, dtype=np.int64)
            nearest(wanted, cuts, self._pivot_written.flat, self._pivot_written.offsets, found)
            self.map_U[asked] = found
        return np.where(source_ids >= 0, self.map_U[source_ids], UNMAPPED).astype(np.int32)


def build_map(
    pivot_tokenizer: Any,
    source_tokenizer: Any,
    kind: MapKind,
    *,
    pivot_end: int | None = None,
    source_ends: Collection[int] = (),
    counts: PairCounts | None = None,
) -> VocabularyMap:
    """Map the source's vocabulary to the pivot's.

    The end-of-turn tokens are mapped to each other. A token that `ms` has no counts for is mapped as by `em`.

    Args:
        pivot_tokenizer, source_tokenizer: Hugging Face fast tokenizers.
        kind: Which published map.
        pivot_end: The pivot's usual end-of-turn token.
        source_ends: All end-of-turn tokens of the source.
        counts: Aligned pairs over the whole corpus, for `ms`.

    Raises:
        AlignmentError: `ms` without counts.

    Source: FuseLLM, arXiv 2401.10491 (em, mined); FuseChat, arXiv 2402.16107 (ms). Differs: sparse counts; answer
    tokens only.
    """
    pivot, source = read_spellings(pivot_tokenizer), read_spellings(source_tokenizer)
    if kind == "ms" and counts is None:
        raise AlignmentError("align 'ms' needs the counts of aligned pairs over the corpus, and got none. Count first.")
    written = source.swapped(pivot.marker)
    map_U = _map_exactly(pivot, written, UNASKED if kind == "mined" else UNMAPPED)
    pivot_written, source_written = lay_out(pivot.written), lay_out(written)
    if kind == "ms" and counts is not None:
        _map_by_counts(map_U, counts, pivot.written, written, pivot_written, source_written)
    if pivot_end is not None:
        map_U[list(source_ends)] = pivot_end
    return VocabularyMap(
        kind, lay_out(pivot.stripped()), lay_out(source.stripped()), map_U, pivot_written, source_written
    )  # fmt: skip


def _map_exactly(pivot: Spellings, written: list[str], otherwise: int) -> np.ndarray:
    by_spelling = {token: token_id for token_id, token in reversed(list(enumerate(pivot.written))) if token}
    return np.array([by_spelling.get(token, otherwise) if token else UNMAPPED for token in written], dtype=np.int32)


def _map_by_counts(
    map_U: np.ndarray,
    counts: PairCounts,
    pivot_written: tuple[str, ...],
    source_written: list[str],
    pivot_letters: Letters,
    source_letters: Letters,
) -> None:
    """Take the pair of least distance x containment x sigmoid(count); the lowest pivot id of equals."""
    best = np.full(len(map_U), np.inf)
    for p, s, count in zip(counts.pivot_ids.tolist(), counts.source_ids.tolist(), counts.counts.tolist(), strict=True):
        ours, theirs = pivot_written[p], source_written[s]
        distance = edit_distance(_string(pivot_letters, p), _string(source_letters, s), 1 << 30)
        score = distance * (0.1 if ours in theirs or theirs in ours else 1.0) / (1.0 + np.exp(-float(count)))
        if score < best[s]:
            best[s] = score
            map_U[s] = p


def _string(letters: Letters, token_id: int) -> np.ndarray:
    return letters.flat[letters.offsets[token_id] : letters.offsets[token_id + 1]]


def _select(letters: Letters, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = [_string(letters, token_id) for token_id in ids]
    return np.concatenate([*parts, np.zeros(0, dtype=np.int32)]), np.cumsum([0, *map(len, parts)])
