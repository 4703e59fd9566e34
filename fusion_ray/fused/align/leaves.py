"""The byte strings of leaves that are more than one source token, or begin in the folded start of a turn."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fusion_ray.chat.answer_tokens import AnswerTokens
from fusion_ray.chat.vocabulary import Vocabulary
from fusion_ray.fused.align.groups import END, FIRST, INNER, LAST, Groups
from fusion_ray.fused.align.projector import ENDED, TEXT, Projector
from fusion_ray.fused.compiled import compiled

UNKNOWN = -1
WINDOW = 64  # bytes of a group before a leaf that its tokens are found from; see `find_leaves`
FARTHEST = 4 * WINDOW  # where both texts go apart, leaves up to here are still written out
_LIKELY_BYTES = 24  # of a string; longer ones only cost a second pass


@dataclass(frozen=True, eq=False)
class Leaves:
    """Where the tokens of each leaf are found.

    A leaf at source position s, kept entry k is entry `entries_XK[extra_S[s], k]` of the string table, or the source
    id itself where `extra_S[s]` is -1. The first `base_S[s]` pivot tokens of the group come before those of the entry.

    Attributes:
        extra_S: Row of `entries_XK` of each source position, int64.
        entries_XK: Entries of the string table, int64; UNKNOWN where the leaf's bytes are not known.
        base_S: Pivot tokens of the group that every leaf of a source position begins with, int64; 0 but in groups
            longer than WINDOW.
    """

    extra_S: np.ndarray
    entries_XK: np.ndarray
    base_S: np.ndarray


class Comparison(NamedTuple):
    """Both sides of every group.

    Attributes:
        fold_G: Leading whitespace bytes that the pivot has more (negative: fewer) than the source in a turn's first
            group, int64.
        differs_G: Whether the bytes are not the same otherwise, bool.
    """

    fold_G: np.ndarray
    differs_G: np.ndarray


def compare_groups(groups: Groups, pivot: AnswerTokens, source: AnswerTokens, projector: Projector) -> Comparison:
    """Find the space that only one template puts before a turn, and groups whose bytes differ.

    Whitespace at the end of a turn may be stripped on one side.
    """
    first, second = projector.pivot, projector.source
    fold_G, differs_G = _compare(
        groups.pivot_start, groups.pivot_stop, groups.source_start, groups.source_stop, groups.place,
        pivot.ids_T, first.flat_bytes, first.offsets, source.ids_T, second.flat_bytes, second.offsets,
    )  # fmt: skip
    return Comparison(fold_G, differs_G)


def find_leaves(
    groups: Groups,
    fold_G: np.ndarray,
    pivot: AnswerTokens,
    source: AnswerTokens,
    ids_SK: np.ndarray,
    projector: Projector,
) -> Leaves:
    """List the leaves that need more than a source id, and look their pivot tokens up.

    Written out from the start of their group, the leaves of n source tokens would have n^2 bytes. So a leaf
    that begins more than WINDOW bytes into its group begins, by definition, with the real path's pivot tokens up to
    WINDOW bytes before it, and only what follows is tokenised.
    """
    extra_S = np.full(len(source), -1, dtype=np.int64)
    extras = _number_extras(groups.source_start, groups.source_stop, fold_G, extra_S)
    entries_XK = np.full((extras, ids_SK.shape[1]), UNKNOWN, dtype=np.int64)
    base_S = np.zeros(len(source), dtype=np.int64)
    vocabulary: Vocabulary = projector.source
    fixed = (
        groups.pivot_start, groups.pivot_stop, groups.source_start, groups.source_stop, fold_G, extra_S, pivot.ids_T,
        projector.pivot.flat_bytes, projector.pivot.offsets, source.ids_T, ids_SK, vocabulary.flat_bytes,
        vocabulary.offsets, vocabulary.is_special_V, projector.is_source_end_U, entries_XK, base_S,
    )  # fmt: skip
    offsets = np.zeros(entries_XK.size + 1, dtype=np.int64)
    arena = np.empty(_LIKELY_BYTES * entries_XK.size, dtype=np.uint8)
    strings, n_bytes = _list_strings(*fixed, arena, offsets)
    if n_bytes > len(arena):
        arena = np.empty(n_bytes, dtype=np.uint8)
        strings, _ = _list_strings(*fixed, arena, offsets)
    found = projector.strings.look_up(arena, offsets[: strings + 1], projector.encode_keys)
    wanted = entries_XK >= 0
    entries_XK[wanted] = found[entries_XK[wanted]]
    return Leaves(extra_S, entries_XK, base_S)


@compiled
def _is_space(byte: int) -> bool:
    return byte == 32 or 9 <= byte <= 13


@compiled
def _joined(ids: np.ndarray, start: int, stop: int, flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    size = 0
    for t in range(start, stop):
        size += offsets[ids[t] + 1] - offsets[ids[t]]
    text = np.empty(size, dtype=np.uint8)
    size = 0
    for t in range(start, stop):
        for i in range(offsets[ids[t]], offsets[ids[t] + 1]):
            text[size] = flat[i]
            size += 1
    return text


@compiled
def _compare(
    p_start: np.ndarray,
    p_stop: np.ndarray,
    s_start: np.ndarray,
    s_stop: np.ndarray,
    place: np.ndarray,
    pivot_ids: np.ndarray,
    p_flat: np.ndarray,
    p_offsets: np.ndarray,
    source_ids: np.ndarray,
    s_flat: np.ndarray,
    s_offsets: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    fold = np.zeros(len(place), dtype=np.int64)
    differs = np.zeros(len(place), dtype=np.bool_)
    for g in range(len(place)):
        if place[g] & END:
            continue
        if place[g] == INNER and p_stop[g] - p_start[g] == 1 and s_stop[g] - s_start[g] == 1:
            ours, theirs = pivot_ids[p_start[g]], source_ids[s_start[g]]
            differs[g] = _differ(
                p_flat[p_offsets[ours] : p_offsets[ours + 1]], s_flat[s_offsets[theirs] : s_offsets[theirs + 1]]
            )
            continue
        our_text = _joined(pivot_ids, p_start[g], p_stop[g], p_flat, p_offsets)
        their_text = _joined(source_ids, s_start[g], s_stop[g], s_flat, s_offsets)
        a, b, a_stop, b_stop = 0, 0, len(our_text), len(their_text)
        if place[g] & FIRST:
            while a < a_stop and _is_space(our_text[a]):
                a += 1
            while b < b_stop and _is_space(their_text[b]):
                b += 1
            fold[g] = a - b
        if place[g] & LAST:
            while a_stop > a and _is_space(our_text[a_stop - 1]):
                a_stop -= 1
            while b_stop > b and _is_space(their_text[b_stop - 1]):
                b_stop -= 1
        differs[g] = _differ(our_text[a:a_stop], their_text[b:b_stop])
    return fold, differs


@compiled
def _differ(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return len(ours) != len(theirs) or not np.array_equal(ours, theirs)


@compiled
def _number_extras(s_start: np.ndarray, s_stop: np.ndarray, fold: np.ndarray, extra: np.ndarray) -> int:
    count = 0
    for g in range(len(fold)):
        for s in range(s_start[g] + (fold[g] == 0), s_stop[g]):
            extra[s] = count
            count += 1
    return count


@compiled
def _list_strings(
    p_start: np.ndarray,
    p_stop: np.ndarray,
    s_start: np.ndarray,
    s_stop: np.ndarray,
    fold: np.ndarray,
    extra: np.ndarray,
    pivot_ids: np.ndarray,
    p_flat: np.ndarray,
    p_offsets: np.ndarray,
    source_ids: np.ndarray,
    ids_SK: np.ndarray,
    flat: np.ndarray,
    offsets: np.ndarray,
    is_special: np.ndarray,
    is_end: np.ndarray,
    entries: np.ndarray,
    bases: np.ndarray,
    arena: np.ndarray,
    cuts: np.ndarray,
) -> tuple[int, int]:
    """Write the strings and number them in `entries`; past the end of the arena only count their bytes."""
    strings, used = 0, 0
    for g in range(len(fold)):
        if s_stop[g] - s_start[g] == 1 and fold[g] == 0:
            continue
        ours = _joined(pivot_ids, p_start[g], p_stop[g], p_flat, p_offsets)
        text = _joined(source_ids, s_start[g], s_stop[g], flat, offsets)
        theirs = np.concatenate((ours[: max(fold[g], 0)], text))
        folded = max(-fold[g], 0)  # bytes of the source before the pivot's first
        alike = _common_bytes(ours, theirs[folded:])
        prefix_stop, base, base_stop = max(fold[g], 0), 0, 0  # bytes before a token; pivot tokens in them; their bytes
        for s in range(s_start[g], s_stop[g]):
            limit = min(alike, prefix_stop - folded - WINDOW)
            base, base_stop = _advance(pivot_ids[p_start[g] : p_stop[g]], p_offsets, base, base_stop, limit)
            bases[s] = base
            prefix = theirs[base_stop + folded : prefix_stop] if base else theirs[:prefix_stop]
            if (s > s_start[g] or fold[g] != 0) and len(prefix) <= FARTHEST:
                for k in range(ids_SK.shape[1]):
                    token = ids_SK[s, k]
                    if token < 0 or token == source_ids[s]:
                        continue
                    kind = ENDED if is_end[token] else TEXT
                    piece = flat[:0] if kind == ENDED else flat[offsets[token] : offsets[token + 1]]
                    if kind == TEXT and (is_special[token] or len(piece) == 0):
                        continue
                    before = flat[:0] if kind == ENDED and s == s_start[g] else prefix
                    lead = 0 if base else _leading_spaces(before, piece, folded)
                    size = len(before) + len(piece) - lead
                    if size == 0 and kind == TEXT:
                        continue
                    if used + 1 + size <= len(arena):
                        entries[extra[s], k] = strings
                        _write_string(arena, used, kind, before, piece, lead)
                        cuts[strings + 1] = used + 1 + size
                    strings, used = strings + 1, used + 1 + size
            real = source_ids[s]
            if offsets[real + 1] == offsets[real]:
                break  # the bytes of the real token are unknown, so those of every later leaf are too
            prefix_stop += offsets[real + 1] - offsets[real]
    return strings, used


@compiled
def _advance(ids: np.ndarray, offsets: np.ndarray, count: int, stop: int, limit: int) -> tuple[int, int]:
    """From the first `count` tokens, which have `stop` bytes, to the most that have at most `limit`."""
    while count < len(ids):
        beyond = stop + offsets[ids[count] + 1] - offsets[ids[count]]
        if beyond > limit:
            break
        count, stop = count + 1, beyond
    return count, stop


@compiled
def _common_bytes(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many bytes two texts begin with alike."""
    count = 0
    while count < min(len(ours), len(theirs)) and ours[count] == theirs[count]:
        count += 1
    return count


@compiled
def _leading_spaces(prefix: np.ndarray, piece: np.ndarray, at_most: int) -> int:
    """How many of the spaces that only the source has before the turn this leaf begins with."""
    count = 0
    for part in (prefix, piece):
        for byte in part:
            if count >= at_most or not _is_space(byte):
                return count
            count += 1
    return count


@compiled
def _write_string(arena: np.ndarray, used: int, kind: int, prefix: np.ndarray, piece: np.ndarray, lead: int) -> None:
    arena[used] = kind
    at = used + 1
    skipped = 0
    for part in (prefix, piece):
        for byte in part:
            if skipped < lead:
                skipped += 1
            else:
                arena[at] = byte
                at += 1
