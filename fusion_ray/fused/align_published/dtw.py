"""The published alignments `em`, `mined` and `ms`: dynamic time warping and a one-to-one vocabulary map.

The literal version is in `naive.py`. These are here for comparison: where they cannot match a boundary they teach a
one-hot label, and they drop every source token that is not a single pivot token.
"""

from dataclasses import replace

import numpy as np

from fusion_ray.chat.answer_tokens import AnswerTokens
from fusion_ray.fused.align.exact import Projection, project
from fusion_ray.fused.align.groups import find_groups, pair_turns
from fusion_ray.fused.align.projector import Projector
from fusion_ray.fused.align_published.vocabulary_map import UNMAPPED, PairCounts, VocabularyMap, sum_pairs
from fusion_ray.fused.align_published.warping import NO_MATCH, match, warp
from fusion_ray.fused.compiled import compiled
from fusion_ray.storage.topk import TopK

ONE_HOT = -1


def project_dtw(
    pivot: AnswerTokens,
    source: AnswerTokens,
    source_topk: TopK,
    projector: Projector,
    vocabulary_map: VocabularyMap,
    *,
    top_k: int | None = None,
) -> Projection:
    """Move the source's distributions to the pivot's tokens as FuseLLM and FuseChat do; see `exact.project`.

    It refuses the same turns, covers the same positions and keeps the same groups and nll as exact alignment, so that
    models are chosen alike and only the distributions differ. These have no tail: kept entries are renormalised. The
    real token's log-probability is -inf where the map lost it. `counts` has besides: transferred and one_hot
    (positions), wrong_boundary (transferred from another byte), mass_moved, mass_unmapped and mass_collided (sums of
    source probability at transferred positions), and no projected_nll and kept_mass.

    Raises:
        AlignmentError: Columns that do not belong together.
    """
    exact = project(pivot, source, source_topk, projector, top_k=top_k, inner_tail="none")
    row_T = np.full(len(pivot), ONE_HOT, dtype=np.int64)
    for turn, other in enumerate(pair_turns(pivot, source)):
        if other >= 0 and turn not in exact.problems:
            _place_turn(pivot, turn, source, int(other), vocabulary_map, row_T)
    mapped_SK = vocabulary_map.resolve(source_topk.ids_TK)
    width = top_k or source_topk.ids_TK.shape[1]
    topk, moved = _transfer(row_T, exact.covered_T, pivot.ids_T, mapped_SK, source_topk, width)
    transferred_T = (row_T >= 0) & exact.covered_T
    counts = {key: value for key, value in exact.counts.items() if key not in ("projected_nll", "kept_mass")} | {
        "transferred": int(transferred_T.sum()),
        "one_hot": int((exact.covered_T & ~transferred_T).sum()),
        "wrong_boundary": _count_wrong(pivot, source, row_T, transferred_T),
        "mass_moved": float(moved[0]),
        "mass_unmapped": float(moved[1]),
        "mass_collided": float(moved[2]),
    }
    return replace(exact, topk=topk, counts=counts, violation_nats=0.0)


def count_pairs(
    pivot: AnswerTokens, source: AnswerTokens, vocabulary_map: VocabularyMap, projector: Projector
) -> PairCounts:  # fmt: skip
    """Count which tokens are aligned in a shard, for `ms`; any map of the two vocabularies serves."""
    problems = find_groups(pivot, source, pair_turns(pivot, source), projector.same_vocabulary).problem
    pairs: list[np.ndarray] = [np.zeros((2, 0), dtype=np.int64)]
    for turn, other in enumerate(pair_turns(pivot, source)):
        ours, theirs = _text_of(pivot, turn), _text_of(source, int(other)) if other >= 0 else slice(0, 0)
        if problems[turn] or ours.stop == ours.start or theirs.stop == theirs.start:
            continue
        p, s = pivot.ids_T[ours], source.ids_T[theirs]
        spans_T2 = warp(p, s, vocabulary_map.pivot_letters, vocabulary_map.source_letters)
        lengths = spans_T2[:, 1] - spans_T2[:, 0] + 1
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        pairs.append(np.stack([np.repeat(p, lengths), s[np.repeat(spans_T2[:, 0], lengths) + within]]))
    joined = np.concatenate(pairs, axis=1)
    return sum_pairs(joined[0], joined[1], np.ones(joined.shape[1], dtype=np.int64))


def _text_of(answers: AnswerTokens, turn: int) -> slice:
    """The tokens of a turn without its end-of-turn token."""
    start, stop = int(answers.turn_offsets[turn]), int(answers.turn_offsets[turn + 1])
    return slice(start, max(start, stop - int(answers.ended[turn])))


def _place_turn(
    pivot: AnswerTokens, turn: int, source: AnswerTokens, other: int, vocabulary_map: VocabularyMap, row_T: np.ndarray
) -> None:
    """Find the source row for every row of a turn: rows are over the token after the matched one."""
    ours, theirs = _text_of(pivot, turn), _text_of(source, other)
    first, last = int(source.turn_offsets[other]), int(source.turn_offsets[other + 1])
    if last > first and pivot.turn_offsets[turn + 1] > ours.start:
        row_T[ours.start] = first
    if ours.stop == ours.start or theirs.stop == theirs.start:
        return
    p, s = pivot.ids_T[ours], source.ids_T[theirs]
    letters = (vocabulary_map.pivot_letters, vocabulary_map.source_letters)
    matches = match(p, s, warp(p, s, *letters), *letters)
    rows = np.where((matches == NO_MATCH) | (first + matches + 1 >= last), ONE_HOT, first + matches + 1)
    following = min(len(rows), int(pivot.turn_offsets[turn + 1]) - ours.start - 1)
    row_T[ours.start + 1 : ours.start + 1 + following] = rows[:following]


def _transfer(
    row_T: np.ndarray, covered_T: np.ndarray, ids_T: np.ndarray, mapped_SK: np.ndarray, source: TopK, width: int
) -> tuple[TopK, np.ndarray]:
    topk = TopK(
        np.full((len(row_T), width), -1, dtype=np.int32),
        np.full((len(row_T), width), -np.inf, dtype=np.float32),
        np.full(len(row_T), np.nan, dtype=np.float32),
    )
    moved = np.zeros(3)
    logprobs_SK = np.require(source.logprobs_TK, np.float32, ["C", "W"])
    _move(
        row_T, covered_T, ids_T, mapped_SK, logprobs_SK, topk.ids_TK, topk.logprobs_TK, topk.real_logprobs_T, moved
    )  # fmt: skip
    return topk, moved


@compiled
def _move(
    row_T: np.ndarray, covered_T: np.ndarray, ids_T: np.ndarray, mapped_SK: np.ndarray, logprobs_SK: np.ndarray,
    out_ids: np.ndarray, out_logprobs: np.ndarray, out_real: np.ndarray, moved: np.ndarray,
) -> None:  # fmt: skip
    """Rows are sorted, so the larger of two entries that meet comes first and wins."""
    for t in range(len(row_T)):
        if not covered_T[t]:
            continue
        kept = 0
        total = 0.0
        for k in range(mapped_SK.shape[1]):
            row = row_T[t]
            if row < 0 or logprobs_SK[row, k] == -np.inf:
                continue
            mass = np.exp(np.float64(logprobs_SK[row, k]))
            token = mapped_SK[row, k]
            if token == UNMAPPED:
                moved[1] += mass
                continue
            collides = False
            for i in range(kept):
                collides = collides or out_ids[t, i] == token
            if collides:
                moved[2] += mass
            elif kept < out_ids.shape[1]:
                out_ids[t, kept] = token
                out_logprobs[t, kept] = logprobs_SK[row, k]
                kept += 1
                total += mass
                moved[0] += mass
        if kept == 0:  # nothing was transferred, or nothing of it has a pivot token
            out_ids[t, 0], out_logprobs[t, 0], out_real[t] = ids_T[t], 0.0, 0.0
            row_T[t] = ONE_HOT
            continue
        out_real[t] = -np.inf
        for i in range(kept):
            out_logprobs[t, i] -= np.log(total)
            if out_ids[t, i] == ids_T[t]:
                out_real[t] = out_logprobs[t, i]


def _count_wrong(pivot: AnswerTokens, source: AnswerTokens, row_T: np.ndarray, transferred_T: np.ndarray) -> int:
    """Distributions that stand at another byte of the answer than the token that they are to teach."""
    ours, theirs = _starts(pivot), _starts(source)
    return int((ours[transferred_T] != theirs[row_T[transferred_T]]).sum())


def _starts(answers: AnswerTokens) -> np.ndarray:
    """Byte at which each token begins."""
    starts = np.concatenate([[0], answers.boundaries_T[:-1]])[: len(answers)]
    first = answers.turn_offsets[:-1]
    starts[first[first < len(starts)]] = 0
    return starts
