"""Cut answers where a pivot token and a source token end together: the groups of exact alignment."""

from dataclasses import dataclass

import numpy as np

from fusion_ray.chat.answer_tokens import AnswerTokens
from fusion_ray.fused.compiled import compiled

FINE, DECREASING, NOT_COVERED = 0, 1, 2
INNER, FIRST, LAST, END = 0, 1, 2, 4


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of a shard, in the order of the text.

    Attributes:
        pivot_start, pivot_stop: The pivot positions of each group, int64.
        source_start, source_stop: Its source positions, int64.
        turn: The pivot turn that it belongs to, int64.
        place: Bits FIRST and LAST group of a turn's text, or END, its end-of-turn token, int8.
        problem: FINE, or why a turn has no groups (DECREASING boundaries, texts NOT_COVERED by both), int8 [turns].
    """

    pivot_start: np.ndarray
    pivot_stop: np.ndarray
    source_start: np.ndarray
    source_stop: np.ndarray
    turn: np.ndarray
    place: np.ndarray
    problem: np.ndarray

    def __len__(self) -> int:
        return len(self.turn)


def find_groups(pivot: AnswerTokens, source: AnswerTokens, partner: np.ndarray, same_vocabulary: bool) -> Groups:
    """Cut every turn into groups.

    The answer start is a cut, and so is its end where both sides have ended; tokens without bytes join the group
    before them. Where one side was cut off, what lies past the last common boundary is in no group.

    Args:
        pivot, source: Checked answers.
        partner: Source turn of each pivot turn, int64; -1 where the source has none.
        same_vocabulary: The models share a tokenizer: where a turn's ids agree, every token is a group of its own.
    """
    bounds = np.empty((len(pivot), 6), dtype=np.int64)
    problem = np.zeros(len(pivot.ended), dtype=np.int8)
    count = _cut_turns(
        pivot.ids_T, pivot.boundaries_T, pivot.turn_offsets, pivot.ended,
        source.ids_T, source.boundaries_T, source.turn_offsets, source.ended,
        partner, same_vocabulary, bounds, problem,
    )  # fmt: skip
    columns = [np.ascontiguousarray(column) for column in bounds[:count].T]
    return Groups(
        columns[0], columns[1], columns[2], columns[3], columns[4], columns[5].astype(np.int8), problem
    )  # fmt: skip


def pair_turns(pivot: AnswerTokens, source: AnswerTokens) -> np.ndarray:
    """Source turn of each pivot turn of the same row, -1 where the source was cut before it, int64."""
    partner = np.full(len(pivot.ended), -1, dtype=np.int64)
    for row in range(len(pivot.row_offsets) - 1):
        start, stop = pivot.row_offsets[row], pivot.row_offsets[row + 1]
        first, last = source.row_offsets[row], source.row_offsets[row + 1]
        both = min(stop - start, last - first)
        partner[start : start + both] = np.arange(first, first + both)
    return partner


@compiled
def _cut_turns(
    pivot_ids: np.ndarray,
    pivot_ends: np.ndarray,
    pivot_offsets: np.ndarray,
    pivot_ended: np.ndarray,
    source_ids: np.ndarray,
    source_ends: np.ndarray,
    source_offsets: np.ndarray,
    source_ended: np.ndarray,
    partner: np.ndarray,
    same_vocabulary: bool,
    bounds: np.ndarray,
    problem: np.ndarray,
) -> int:
    count = 0
    for turn in range(len(pivot_ended)):
        other = partner[turn]
        if other < 0:
            continue
        p, p_stop = pivot_offsets[turn], pivot_offsets[turn + 1]
        s, s_stop = source_offsets[other], source_offsets[other + 1]
        p_text = p_stop - 1 if pivot_ended[turn] and p_stop > p else p_stop
        s_text = s_stop - 1 if source_ended[other] and s_stop > s else s_stop
        if _decreases(pivot_ends[p:p_stop]) or _decreases(source_ends[s:s_stop]):
            problem[turn] = DECREASING
            continue
        if not _ends_fit(
            pivot_ends[p:p_stop], pivot_ended[turn], source_ends[s:s_stop], source_ended[other]
        ):  # fmt: skip
            problem[turn] = NOT_COVERED
            continue
        first = count
        if same_vocabulary and _agree(pivot_ids, pivot_ends, p, p_text, source_ids, source_ends, s, s_text):
            for step in range(min(p_text - p, s_text - s)):
                bounds[count, :] = (p + step, p + step + 1, s + step, s + step + 1, turn, INNER)
                count += 1
        else:
            count = _cut_text(pivot_ends, p, p_text, source_ends, s, s_text, turn, bounds, count)
        if count > first:
            bounds[first, 5] |= FIRST
            bounds[count - 1, 5] |= LAST
        if pivot_ended[turn] and source_ended[other]:
            bounds[count, :] = (p_stop - 1, p_stop, s_stop - 1, s_stop, turn, END)
            count += 1
    return count


@compiled
def _cut_text(
    pivot_ends: np.ndarray,
    p: int,
    p_stop: int,
    source_ends: np.ndarray,
    s: int,
    s_stop: int,
    turn: int,
    bounds: np.ndarray,
    count: int,
) -> int:
    p_end, s_end = p, s  # the last tokens of the group that is being grown
    while p_end < p_stop and s_end < s_stop:
        if pivot_ends[p_end] < source_ends[s_end]:
            p_end += 1
        elif pivot_ends[p_end] > source_ends[s_end]:
            s_end += 1
        else:
            boundary = pivot_ends[p_end]
            while p_end + 1 < p_stop and pivot_ends[p_end + 1] == boundary:
                p_end += 1
            while s_end + 1 < s_stop and source_ends[s_end + 1] == boundary:
                s_end += 1
            p_end, s_end = p_end + 1, s_end + 1
            bounds[count, :] = (p, p_end, s, s_end, turn, INNER)
            count += 1
            p, s = p_end, s_end
    return count


@compiled
def _agree(
    pivot_ids: np.ndarray,
    pivot_ends: np.ndarray,
    p: int,
    p_stop: int,
    source_ids: np.ndarray,
    source_ends: np.ndarray,
    s: int,
    s_stop: int,
) -> bool:
    for step in range(min(p_stop - p, s_stop - s)):
        if pivot_ids[p + step] != source_ids[s + step] or pivot_ends[p + step] != source_ends[s + step]:
            return False
    return True


@compiled
def _decreases(ends: np.ndarray) -> bool:
    last = 0
    for end in ends:
        if end < last:
            return True
        last = end
    return False


@compiled
def _ends_fit(pivot_ends: np.ndarray, pivot_ended: bool, source_ends: np.ndarray, source_ended: bool) -> bool:
    """Whether lengths agree: two whole texts are equally long, and a cut one is no longer than a whole one."""
    pivot_end = pivot_ends[-1] if len(pivot_ends) else 0
    source_end = source_ends[-1] if len(source_ends) else 0
    if pivot_ended and source_ended:
        return pivot_end == source_end
    if pivot_ended:
        return source_end <= pivot_end
    if source_ended:
        return pivot_end <= source_end
    return True
