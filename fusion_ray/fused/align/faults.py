"""Turns that alignment must not touch: broken numbers, foreign ids, texts that are not one text."""

import unicodedata

import numpy as np

from fusion_ray.chat.answer_tokens import AnswerTokens
from fusion_ray.chat.vocabulary import Vocabulary
from fusion_ray.fused.align.groups import DECREASING, END, FINE, NOT_COVERED, Groups
from fusion_ray.fused.align.projector import Projector
from fusion_ray.fused.compiled import compiled
from fusion_ray.storage.topk import TopK

UNKNOWN_ID, NOT_FINITE, OTHER_TEXT = 3, 4, 5

FAULTS = {
    DECREASING: "token boundaries decrease; expected byte offsets in the order of the text. "
    "Make the distributions again.",
    NOT_COVERED: "pivot and source tokens end at different bytes of the answer; expected the same text in both. "
    "Make both distributions from the same corpus.",
    UNKNOWN_ID: "a token id lies outside its vocabulary; expected ids of the tokenizer the tables were made from. "
    "Use the tokenizer in the model's own folder.",
    NOT_FINITE: "the source gave NaN, a positive or an infinite log-probability; expected finite ones. "
    "Check the source's weights and dtype.",
    OTHER_TEXT: "pivot and source tokens spell different bytes; expected one text, of which a tokenizer rewrites "
    "at most half (Unicode normalisation). Make both distributions from the same corpus.",
}


def find_faults(
    pivot: AnswerTokens, source: AnswerTokens, source_topk: TopK, partner: np.ndarray, projector: Projector
) -> np.ndarray:
    """Fault of each pivot turn and its partner, int8 [turns]; FINE where the numbers can be worked with."""
    faults_S = _fault_of_positions(
        source.ids_T, source_topk.ids_TK, source_topk.logprobs_TK, source_topk.real_logprobs_T, len(projector.source)
    )
    foreign_T = (pivot.ids_T < 0) | (pivot.ids_T >= len(projector.pivot))
    source_turns = _largest_of_turns(faults_S, source.turn_offsets)
    pivot_turns = _largest_of_turns(np.where(foreign_T, UNKNOWN_ID, FINE).astype(np.int8), pivot.turn_offsets)
    theirs = source_turns[partner] if len(source_turns) else np.zeros(len(partner), dtype=np.int8)
    return np.maximum(pivot_turns, np.where(partner >= 0, theirs, FINE)).astype(np.int8)


def find_other_texts(
    groups: Groups, differs_G: np.ndarray, pivot: AnswerTokens, source: AnswerTokens, projector: Projector
) -> np.ndarray:
    """Tell texts that differ from one text that a tokenizer has changed (Unicode normalisation, case, spaces).

    Where both tokenizers are lossless, one group with other letters makes it another text. Else more than half of the
    groups must differ, and the letters of the whole turn too: normalisation may move stacked marks across groups.

    Returns:
        OTHER_TEXT or FINE for each pivot turn, int8.
    """
    turns = len(pivot.ended)
    other_G = differs_G.copy()
    for g in np.flatnonzero(differs_G):
        ours = _letters(projector.pivot, pivot.ids_T[groups.pivot_start[g] : groups.pivot_stop[g]])
        theirs = _letters(projector.source, source.ids_T[groups.source_start[g] : groups.source_stop[g]])
        other_G[g] = ours is not None and theirs is not None and ours != theirs
    lossless = projector.pivot.lossless and projector.source.lossless
    texts = np.bincount(groups.turn[groups.place & END == 0], minlength=turns)
    allowed = np.zeros(turns) if lossless else 0.5 * texts
    is_other = np.bincount(groups.turn[other_G], minlength=turns) > allowed
    if not lossless:
        for turn in np.flatnonzero(is_other):
            is_other[turn] = not _same_letters(groups, int(turn), pivot, source, projector)
    return np.where(is_other, OTHER_TEXT, FINE).astype(np.int8)


def _same_letters(groups: Groups, turn: int, pivot: AnswerTokens, source: AnswerTokens, projector: Projector) -> bool:
    inside = np.flatnonzero((groups.turn == turn) & (groups.place & END == 0))
    first, last = inside[0], inside[-1]
    ours = _letters(projector.pivot, pivot.ids_T[groups.pivot_start[first] : groups.pivot_stop[last]])
    theirs = _letters(projector.source, source.ids_T[groups.source_start[first] : groups.source_stop[last]])
    return ours is not None and ours == theirs


def _letters(vocabulary: Vocabulary, ids: np.ndarray) -> str | None:
    """The letters that no normaliser changes; None where a token has no bytes, or only part of a character."""
    pieces = [vocabulary.token(int(token_id)) for token_id in ids]
    try:
        text = b"".join(pieces).decode()
    except UnicodeDecodeError:
        return None
    return "".join(unicodedata.normalize("NFKC", text).casefold().split()) if all(pieces) else None


@compiled
def _fault_of_positions(
    real_ids: np.ndarray, ids_SK: np.ndarray, logprobs_SK: np.ndarray, real_logprobs_S: np.ndarray, size: int
) -> np.ndarray:
    faults = np.zeros(len(real_ids), dtype=np.int8)
    for s in range(len(real_ids)):
        if real_ids[s] < 0 or real_ids[s] >= size:
            faults[s] = UNKNOWN_ID
        if not np.isfinite(real_logprobs_S[s]) or real_logprobs_S[s] > 1e-3:
            faults[s] = NOT_FINITE
        for k in range(ids_SK.shape[1]):
            if ids_SK[s, k] >= size or ids_SK[s, k] < -1:
                faults[s] = max(faults[s], UNKNOWN_ID)
            if np.isnan(logprobs_SK[s, k]) or logprobs_SK[s, k] > 1e-3:
                faults[s] = NOT_FINITE
    return faults


@compiled
def _largest_of_turns(values: np.ndarray, turn_offsets: np.ndarray) -> np.ndarray:
    largest = np.zeros(len(turn_offsets) - 1, dtype=np.int8)
    for turn in range(len(largest)):
        for t in range(turn_offsets[turn], turn_offsets[turn + 1]):
            largest[turn] = max(largest[turn], values[t])
    return largest
