"""Levenshtein distance, compiled."""

import numpy as np

from fusion_ray.fused.compiled import compiled


@compiled
def edit_distance(first: np.ndarray, second: np.ndarray, at_most: int) -> int:
    """Insertions, deletions and replacements that make one string of the other; at_most + 1 where there are more."""
    if len(first) > len(second):
        first, second = second, first
    if len(second) - len(first) > at_most:
        return at_most + 1
    row = np.arange(len(first) + 1)
    for j in range(len(second)):
        diagonal, row[0] = row[0], j + 1
        lowest = row[0]
        for i in range(len(first)):
            above = row[i + 1]
            best = min(above, row[i]) + 1
            best = min(best, diagonal + (first[i] != second[j]))
            row[i + 1] = best
            lowest = min(lowest, best)
            diagonal = above
        if lowest > at_most:
            return at_most + 1
    return min(row[len(first)], at_most + 1)


@compiled
def nearest(
    wanted: np.ndarray, wanted_offsets: np.ndarray, flat: np.ndarray, offsets: np.ndarray, chosen: np.ndarray
) -> None:
    """The string nearest to each wanted one, the first of equals; empty strings are no candidates."""
    for q in range(len(chosen)):
        string = wanted[wanted_offsets[q] : wanted_offsets[q + 1]]
        best = 1 << 30
        for v in range(len(offsets) - 1):
            if offsets[v + 1] > offsets[v]:
                distance = edit_distance(string, flat[offsets[v] : offsets[v + 1]], best - 1)
                if distance < best:
                    best = distance
                    chosen[q] = v
                    if best == 0:
                        break


@compiled
def distances(
    first: np.ndarray, first_offsets: np.ndarray, second: np.ndarray, second_offsets: np.ndarray,
    first_ids: np.ndarray, second_ids: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Distance of every pair of some strings, int32."""
    found = np.empty((len(first_ids), len(second_ids)), dtype=np.int32)
    for i in range(len(first_ids)):
        a = first[first_offsets[first_ids[i]] : first_offsets[first_ids[i] + 1]]
        for j in range(len(second_ids)):
            b = second[second_offsets[second_ids[j]] : second_offsets[second_ids[j] + 1]]
            found[i, j] = edit_distance(a, b, 1 << 30)
    return found
