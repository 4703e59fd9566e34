"""Exact alignment (`bytes`): project a source's distributions onto the pivot's tokens in linear time.

`naive.py` beside it builds the leaves literally and is where to read the method; this is the fast path over a shard.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fusion_ray.chat.answer_tokens import AnswerTokens
from fusion_ray.errors import AlignmentError
from fusion_ray.fused.align.faults import FAULTS, find_faults, find_other_texts
from fusion_ray.fused.align.groups import FINE, Groups, find_groups, pair_turns
from fusion_ray.fused.align.leaves import compare_groups, find_leaves
from fusion_ray.fused.align.projection import Inputs, Outputs, make_scratch, project_groups
from fusion_ray.fused.align.projector import Projector
from fusion_ray.storage.topk import TopK

InnerTail = Literal["unigram", "none"]


@dataclass(frozen=True, eq=False)
class Projection:
    """A source's distributions over the pivot's tokens, for one shard.

    Attributes:
        topk: One distribution for each pivot position; no entries and NaN for the real token where none is covered.
        covered_T: Whether the position has a distribution, bool.
        group_T: Its group, int64; -1 where not covered.
        source_nll_G: What the source itself gave the bytes of each group, in nats, float64.
        problems: Why a turn has no distributions, by turn of the pivot; such rows are to be rejected.
        counts: Sums over the shard: positions, covered, groups, one_to_one, differing (groups whose bytes are not the
            same on both sides), kept_mass (probability in the kept entries of the covered positions), projected_nll,
            source_nll (both in nats, over the covered groups).
        violation_nats: The most that any group lost against the source's own probability of its bytes.
    """

    topk: TopK
    covered_T: np.ndarray
    group_T: np.ndarray
    source_nll_G: np.ndarray
    problems: dict[int, str]
    counts: dict[str, float]
    violation_nats: float
    groups: Groups = field(repr=False)

    def check(self) -> None:
        """Refuse the shard if any turn could not be aligned.

        Raises:
            AlignmentError: Names the first such turn.
        """
        for turn, problem in self.problems.items():
            raise AlignmentError(f"turn {turn}: {problem}")


def project(
    pivot: AnswerTokens,
    source: AnswerTokens,
    source_topk: TopK,
    projector: Projector,
    *,
    top_k: int | None = None,
    inner_tail: InnerTail = "unigram",
) -> Projection:
    """Express the source's distributions at every position of the pivot's tokens.

    The largest `top_k` entries of each position are kept, ties to the lower id; the others go to the tail. A turn
    that cannot be aligned is left uncovered and named in `problems`.

    Args:
        pivot, source: The same rows in both tokenizers.
        source_topk: The source's distributions at its own answer positions.
        projector: Tables of the two tokenizers.
        top_k: Entries to keep; as many as the source's where None.
        inner_tail: How unknown bytes count inside a group of several pivot tokens: by the corpus share of the tokens
            that would fit (`unigram`), or not at all (`none`).

    Raises:
        AlignmentError: Columns that do not belong together.
    """
    _check_columns(pivot, source, source_topk)
    pivot, source, source_topk = _own(pivot), _own(source), _own_topk(source_topk)
    partner = pair_turns(pivot, source)
    problems = find_faults(pivot, source, source_topk, partner, projector)
    groups = find_groups(pivot, source, np.where(problems == FINE, partner, -1), projector.same_vocabulary)
    problems = np.maximum(problems, groups.problem)
    fold_G, differs_G = compare_groups(groups, pivot, source, projector)
    problems = np.maximum(problems, find_other_texts(groups, differs_G, pivot, source, projector))
    leaves = find_leaves(groups, fold_G, pivot, source, source_topk.ids_TK, projector)
    inputs = Inputs(
        groups.pivot_start, groups.pivot_stop, groups.source_start, groups.source_stop, fold_G,
        problems[groups.turn] != FINE, pivot.ids_T, source.ids_T, source_topk.ids_TK, source_topk.logprobs_TK,
        source_topk.real_logprobs_T, leaves.extra_S, leaves.entries_XK, leaves.base_S, projector.strings.tokens,
        projector.strings.offsets, projector.pivot.flat_bytes, projector.pivot.offsets, projector.source.offsets,
        -1 if projector.same_vocabulary else projector.pivot_end, _ends_of_groups(groups, pivot, projector.pivot_end),
    )  # fmt: skip
    outputs = _make_outputs(len(pivot), len(groups), top_k or source_topk.ids_TK.shape[1])
    longest = int((groups.source_stop - groups.source_start).max(initial=1))
    scratch = make_scratch(longest, max(source_topk.ids_TK.shape[1], top_k or 1), len(projector.pivot))
    project_groups(inputs, projector.shares, inner_tail == "unigram", scratch, outputs)
    return _summarise(groups, inputs, outputs, differs_G, problems)


def _ends_of_groups(groups: Groups, pivot: AnswerTokens, usual: int) -> np.ndarray:
    """The pivot's end-of-turn token in the turn of each group; the usual one where the turn was cut."""
    lasts = np.maximum(pivot.turn_offsets[1:] - 1, 0)
    end_N = np.where(pivot.ended, pivot.ids_T[lasts] if len(pivot) else usual, usual)
    return end_N[groups.turn].astype(np.int32)


def _check_columns(pivot: AnswerTokens, source: AnswerTokens, source_topk: TopK) -> None:
    pivot.check("pivot")
    source.check("source")
    if len(source) != len(source_topk) or len(source_topk.ids_TK) != len(source_topk):
        raise AlignmentError(
            f"source: {len(source)} answer tokens and {len(source_topk)} distributions; expected one for each token. "
            "Make the source's distributions again."
        )
    if len(pivot.row_offsets) != len(source.row_offsets):
        raise AlignmentError(
            f"{len(pivot.row_offsets) - 1} rows of the pivot and {len(source.row_offsets) - 1} of the source; expected "
            "the same rows. Both must be made from the same corpus shard."
        )


def _own(answers: AnswerTokens) -> AnswerTokens:
    """Writable arrays of the documented types; for any others numba would compile the loops once more."""
    return AnswerTokens(
        np.require(answers.ids_T, np.int32, ["C", "W"]),
        np.require(answers.boundaries_T, np.int32, ["C", "W"]),
        np.require(answers.turn_offsets, np.int64, ["C", "W"]),
        np.require(answers.ended, np.bool_, ["C", "W"]),
        np.require(answers.row_offsets, np.int64, ["C", "W"]),
    )


def _own_topk(topk: TopK) -> TopK:
    return TopK(
        np.require(topk.ids_TK, np.int32, ["C", "W"]),
        np.require(topk.logprobs_TK, np.float32, ["C", "W"]),
        np.require(topk.real_logprobs_T, np.float32, ["C", "W"]),
    )


def _make_outputs(positions: int, groups: int, top_k: int) -> Outputs:
    return Outputs(
        ids_TK=np.full((positions, top_k), -1, dtype=np.int32),
        logprobs_TK=np.full((positions, top_k), -np.inf, dtype=np.float32),
        real_logprobs_T=np.full(positions, np.nan, dtype=np.float32),
        source_nll_G=np.zeros(groups),
        violation_G=np.zeros(groups),
    )


def _summarise(
    groups: Groups, inputs: Inputs, outputs: Outputs, differs_G: np.ndarray, problems: np.ndarray
) -> Projection:
    kept_G = ~inputs.skip_G
    lengths_G = groups.pivot_stop - groups.pivot_start
    group_T = np.full(len(outputs.ids_TK), -1, dtype=np.int64)
    starts = np.repeat(groups.pivot_start - (np.cumsum(lengths_G) - lengths_G), lengths_G)
    positions = starts + np.arange(len(starts))
    group_T[positions] = np.where(np.repeat(kept_G, lengths_G), np.repeat(np.arange(len(groups)), lengths_G), -1)
    one_to_one = (lengths_G == 1) & (groups.source_stop - groups.source_start == 1)
    covered_T = group_T >= 0
    counts = {
        "positions": len(covered_T),
        "covered": int(covered_T.sum()),
        "groups": int(kept_G.sum()),
        "one_to_one": int((one_to_one & kept_G).sum()),
        "differing": int((differs_G & kept_G).sum()),
        "kept_mass": float(np.exp(outputs.logprobs_TK[covered_T].astype(np.float64)).sum()),
        "projected_nll": float(-outputs.real_logprobs_T[covered_T].astype(np.float64).sum()),
        "source_nll": float(outputs.source_nll_G[kept_G].sum()),
    }
    return Projection(
        topk=TopK(outputs.ids_TK, outputs.logprobs_TK, outputs.real_logprobs_T),
        covered_T=covered_T,
        group_T=group_T,
        source_nll_G=outputs.source_nll_G,
        problems={int(turn): FAULTS[int(problems[turn])] for turn in np.flatnonzero(problems)},
        counts=counts,
        violation_nats=float(outputs.violation_G.max(initial=0.0)),
        groups=groups,
    )
