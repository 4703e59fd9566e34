"""Dynamic time warping of two token sequences, and which source position a pivot position takes (FuseLLM)."""

import numpy as np

from fusion_ray.fused.align_published.edit_distance import distances
from fusion_ray.fused.align_published.spellings import Letters
from fusion_ray.fused.compiled import compiled

NO_MATCH = -1


def warp(pivot_ids: np.ndarray, source_ids: np.ndarray, pivot: Letters, source: Letters) -> np.ndarray:
    """Align two sequences by the edit distance of their tokens.

    Of equally short ways back, the diagonal is taken first, then a step along the source, then along the pivot.

    Args:
        pivot_ids, source_ids: Tokens of one text, neither empty.
        pivot, source: How the tokens are written, without markers.

    Returns:
        First and last source position (inclusive) that each pivot position is aligned with, int64 [T, 2].

    Source: sequence alignment of FuseLLM, arXiv 2401.10491, section 3.2. Differs: distances are computed once for each
    pair of distinct tokens.
    """
    rows, row_T = np.unique(pivot_ids, return_inverse=True)
    columns, column_S = np.unique(source_ids, return_inverse=True)
    cost = distances(pivot.flat, pivot.offsets, source.flat, source.offsets, rows, columns)
    return _trace(cost, row_T, column_S)


def match(
    pivot_ids: np.ndarray, source_ids: np.ndarray, spans_T2: np.ndarray, pivot: Letters, source: Letters
) -> np.ndarray:
    """The source position that is matched with each pivot position, or NO_MATCH; int64 [T].

    A position aligned with one source token matches it if one of the two tokens is a suffix of the other. One aligned
    with several matches the first of which that is true; else the last of those that together spell a prefix of the
    pivot token.
    """
    return _match(pivot_ids, source_ids, spans_T2, pivot.flat, pivot.offsets, source.flat, source.offsets)


@compiled
def _trace(cost: np.ndarray, row_T: np.ndarray, column_S: np.ndarray) -> np.ndarray:
    """Fill the table row by row, remembering the way, and walk back."""
    n, m = len(row_T), len(column_S)
    way = np.empty((n, m), dtype=np.uint8)
    last = np.empty(m, dtype=np.int64)
    for i in range(n):
        diagonal = np.int64(0)
        for j in range(m):
            above = last[j]
            if i == 0 and j == 0:
                best, step = np.int64(0), 0
            elif i == 0:
                best, step = last[j - 1], 1
            elif j == 0:
                best, step = above, 2
            else:
                best, step = diagonal, 0
                if last[j - 1] < best:
                    best, step = last[j - 1], 1
                if above < best:
                    best, step = above, 2
            last[j] = best + cost[row_T[i], column_S[j]]
            way[i, j] = step
            diagonal = above
    spans = np.empty((n, 2), dtype=np.int64)
    i, j = n - 1, m - 1
    spans[i, 1] = j
    while i > 0 or j > 0:
        step = way[i, j]
        spans[i, 0] = j
        if step != 1:
            i -= 1
        if step != 2:
            j -= 1
        if step != 1:
            spans[i, 1] = j
    spans[0, 0] = 0
    return spans


@compiled
def _match(
    pivot_ids: np.ndarray, source_ids: np.ndarray, spans: np.ndarray, p_flat: np.ndarray, p_offsets: np.ndarray,
    s_flat: np.ndarray, s_offsets: np.ndarray,
) -> np.ndarray:  # fmt: skip
    matches = np.full(len(pivot_ids), NO_MATCH, dtype=np.int64)
    for t in range(len(pivot_ids)):
        ours = p_flat[p_offsets[pivot_ids[t]] : p_offsets[pivot_ids[t] + 1]]
        for j in range(spans[t, 0], spans[t, 1] + 1):
            theirs = s_flat[s_offsets[source_ids[j]] : s_offsets[source_ids[j] + 1]]
            if _end_alike(ours, theirs):
                matches[t] = j
                break
        if matches[t] == NO_MATCH and spans[t, 1] > spans[t, 0]:
            begun = 0
            for j in range(spans[t, 0], spans[t, 1] + 1):
                theirs = s_flat[s_offsets[source_ids[j]] : s_offsets[source_ids[j] + 1]]
                rest = ours[begun:]
                if len(theirs) > len(rest) or not np.array_equal(rest[: len(theirs)], theirs):
                    break
                begun += len(theirs)
                matches[t] = j
    return matches


@compiled
def _end_alike(first: np.ndarray, second: np.ndarray) -> bool:
    length = min(len(first), len(second))
    return np.array_equal(first[len(first) - length :], second[len(second) - length :])
