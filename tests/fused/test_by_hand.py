"""Small steps of fusing, worked out by hand: trust, averages, published maps and moves, and the rows of a shard."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from toys.models import byte_level_tokenizer

from fusion_ray.chat import Rendered, Turn
from fusion_ray.chat.answer_tokens import AnswerTokens, AnswerTurn, gather_answers
from fusion_ray.errors import NonFiniteError, StaleArtifactError
from fusion_ray.fused import align_text, fuse
from fusion_ray.fused.align.projector import known_ends
from fusion_ray.fused.align_published import dtw
from fusion_ray.fused.align_published.edit_distance import distances, edit_distance, nearest
from fusion_ray.fused.align_published.spellings import Spellings, lay_out
from fusion_ray.fused.align_published.vocabulary_map import PairCounts, sum_pairs
from fusion_ray.fused.align_published.warping import NO_MATCH, match, warp
from fusion_ray.fused.choose import average_topks, joint_groups, pick_mince_groups
from fusion_ray.fused.fuse import Fuser, Statistics
from fusion_ray.fused.trust import believe, count_ratios, fit_trust
from fusion_ray.recipe import AvgCE, Fused, MinCE
from fusion_ray.storage.topk import TopK


def topk(ids: list[list[int]], masses: list[list[float]], real: list[float]) -> TopK:
    with np.errstate(divide="ignore"):
        return TopK(np.array(ids, np.int32), np.log(masses).astype(np.float32), np.log(real).astype(np.float32))


@pytest.mark.parametrize(
    ("lead", "place"),
    [(0.0, 4000), (0.01, 4001), (-0.01, 3999), (0.004, 4000), (0.006, 4001), (-40.0, 0), (40.0, 8000), (-99.0, 0),
     (99.0, 8000), (-np.inf, 0)],
)  # fmt: skip
def test_a_lead_is_counted_in_its_hundredth_of_a_nat(lead: float, place: int) -> None:
    found = count_ratios(np.array([-1.0]), np.array([lead - 1.0]))
    assert (len(found), np.flatnonzero(found).tolist(), found.sum()) == (8001, [place], 1)


@pytest.mark.parametrize(("ahead", "behind", "nats", "loss"), [(3, 1, 1.0, -2.0), (30, 70, 2.0, -0.5), (9, 1, 0.5, -9)])
def test_the_trust_in_a_source_of_two_ratios_is_where_the_slope_is_zero(
    ahead: int, behind: int, nats: float, loss: float
) -> None:
    leads_T = np.repeat([nats, loss], [ahead, behind])
    gain, cost = np.exp(nats) - 1, np.exp(loss) - 1
    expected = -(ahead * gain + behind * cost) / ((ahead + behind) * gain * cost)
    assert 0 < expected < 1
    assert fit_trust(count_ratios(np.zeros(len(leads_T)), leads_T)) == pytest.approx(expected, abs=1e-9)


def test_belief_is_bounded_by_the_lead_that_counts() -> None:
    assert fit_trust(count_ratios(np.zeros(3), np.array([0.02, 0.02, 0.02]))) == 1.0
    believed = believe(np.zeros(4), np.array([0.0, np.log(3.0), 99.0, -800.0]), np.array([0.25, 0.25, 0.5, 0.5]))
    np.testing.assert_allclose(believed, [0.25, 0.5, 1.0, 0.0], atol=1e-12)
    far = believe(np.zeros(1), np.array([99.0]), np.array([1e-30]))
    assert far.tolist() == pytest.approx([1 / (1 + 1e30 * np.exp(-40.0))]), "no lead counts for more than 40 nats"


def test_averages_join_equal_ids_and_break_ties_towards_the_lower() -> None:
    one = topk([[5, 3, -1], [2, 1, -1]], [[0.5, 0.25, 0], [0.5, 0.5, 0]], [0.5, 0.5])
    other = topk([[3, 9, 7], [2, -1, -1]], [[0.25, 0.25, 0.25], [1.0, 0, 0]], [0.25, 1.0])
    mixed = average_topks(np.array([[0.5, 1.0], [0.5, 1.0]]), [one, other], 4)
    assert mixed.ids_TK.tolist() == [[3, 5, 7, 9], [2, 1, -1, -1]]
    np.testing.assert_allclose(np.exp(mixed.logprobs_TK), [[0.25, 0.25, 0.125, 0.125], [0.75, 0.25, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(np.exp(mixed.real_logprobs_T), [0.375, 0.75], atol=1e-6)
    few = average_topks(np.array([[0.5, 0.0], [0.5, 0.25]]), [one, other], 1)
    assert few.ids_TK.tolist() == [[3], [2]] and few.ids_TK.dtype == np.int32
    zero = topk([[0, 4], [0, -1]], [[0.5, 0.5], [1.0, 0.0]], [0.5, 1.0])
    same = average_topks(np.full((2, 2), 0.5), [zero, zero], 2)
    assert same.ids_TK.tolist() == [[0, 4], [0, -1]]
    with pytest.raises(NonFiniteError, match="position 1: every model"):
        average_topks(np.array([[0.5, 0.0], [0.0, 0.0]]), [one, other], 1)


def test_groups_without_positions_and_of_one_have_a_teacher_each() -> None:
    assert pick_mince_groups(np.zeros((2, 0)), np.zeros(0, dtype=np.int64)).tolist() == []
    real_MT = np.array([[-1.0, -1.0, -1.0], [-2.0, -0.5, -1.0]])
    assert pick_mince_groups(real_MT, np.array([0, 1, 2])).tolist() == [0, 1, 0]
    assert pick_mince_groups(real_MT, np.array([0, 0, 0])).tolist() == [0, 0, 0]
    for groups, joined in (
        ([[0, 0, -1, -1, 1]], [0, 0, 1, 2, 3]),
        ([[0, 0, 1], [0, 1, 1]], [0, 0, 0]),
        ([[0, 1, 2], [0, 1, 1]], [0, 1, 1]),
        ([[-1, -1], [0, 0]], [0, 0]),
        ([[3]], [0]),
    ):
        assert joint_groups(np.array(groups)).tolist() == joined


def letters(word: str) -> np.ndarray:
    return np.array([*map(ord, word)], dtype=np.int32)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("a", "", 1), ("a", "a", 0), ("a", "b", 1), ("ab", "ba", 2), ("abc", "abcd", 1), ("abcd", "bcd", 1),
     ("abc", "xyz", 3), ("kitten", "sitting", 3), ("aab", "aba", 2), ("abcde", "e", 4)],
)  # fmt: skip
def test_distances_are_exact_up_to_their_limit_and_one_more_beyond(first: str, second: str, distance: int) -> None:
    for at_most in range(6):
        for one, other in ((first, second), (second, first)):
            assert edit_distance(letters(one), letters(other), at_most) == min(distance, at_most + 1)


def test_the_nearest_string_is_the_first_of_equals_and_never_an_empty_one() -> None:
    candidates, wanted = lay_out(["", "ab", "cd", "a", "ab"]), lay_out(["ab", "b", "", "zzzz", "cdc"])
    chosen = np.full(5, -1)
    nearest(wanted.flat, wanted.offsets, candidates.flat, candidates.offsets, chosen)
    assert chosen.tolist() == [1, 1, 3, 1, 2]
    both = distances(
        candidates.flat, candidates.offsets, wanted.flat, wanted.offsets, np.array([1, 0]), np.array([4, 2])
    )
    assert both.tolist() == [[3, 2], [3, 0]]
    spelt = Spellings(("Ġa", "bĠ", ""), "Ġ")
    assert (spelt.stripped(), spelt.swapped("▁")) == (["a", "b", ""], ["▁a", "b▁", ""])
    assert Spellings(("Ġa",), "").stripped() == Spellings(("Ġa",), "").swapped("▁") == ["Ġa"]


def test_pairs_add_up_in_order_of_source_and_pivot() -> None:
    def plain(counts: PairCounts) -> list[tuple[int, ...]]:
        return list(zip(*(part.tolist() for part in vars(counts).values()), strict=True))

    one = sum_pairs(np.array([7, 2, 7]), np.array([1, 3, 1]), np.array([1, 10, 100]))
    assert plain(one) == [(7, 1, 101), (2, 3, 10)]
    other = sum_pairs(np.array([2, 9]), np.array([3, 0]), np.array([5, 6]))
    assert plain(one + other) == [(9, 0, 6), (7, 1, 101), (2, 3, 15)]
    assert plain(sum_pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0, int))) == []


@pytest.mark.parametrize(
    ("pivot", "source", "spans", "matches"),
    [
        (["a"], ["a"], [[0, 0]], [0]),
        (["abc"], ["a", "b", "c"], [[0, 2]], [2]),  # The first that ends alike.
        (["abc"], ["a", "b", "x"], [[0, 2]], [1]),  # The last of those that spell its beginning.
        (["abc"], ["a", "x", "y"], [[0, 2]], [0]),
        (["abc"], ["x", "a", "b"], [[0, 2]], [NO_MATCH]),
        (["ab"], ["a", "bc"], [[0, 1]], [0]),
        (["ab"], ["x"], [[0, 0]], [NO_MATCH]),
        (["ab"], ["a"], [[0, 0]], [NO_MATCH]),
        (["a", "b", "c"], ["abc"], [[0, 0]] * 3, [NO_MATCH, NO_MATCH, 0]),
        (["ab", "c"], ["a", "bc"], [[0, 0], [1, 1]], [NO_MATCH, 1]),
        (["x", "x"], ["x", "x", "x"], [[0, 1], [2, 2]], [0, 2]),
        (["x", "x", "x"], ["x", "x"], [[0, 0], [0, 0], [1, 1]], [0, 0, 1]),
    ],
)
def test_sequences_are_warped_and_matched(
    pivot: list[str], source: list[str], spans: list[list[int]], matches: list[int]
) -> None:
    ours, theirs, p, s = lay_out(pivot), lay_out(source), np.arange(len(pivot)), np.arange(len(source))
    found_T2 = warp(p, s, ours, theirs)
    assert found_T2.tolist() == spans
    assert match(p, s, found_T2, ours, theirs).tolist() == matches


def answers(*turns: tuple[list[int], list[int], bool]) -> AnswerTokens:
    return gather_answers([[AnswerTurn(np.array(ids), np.array(ends), ended) for ids, ends, ended in turns]])


def test_tokens_begin_where_the_one_before_ends_and_turns_at_0() -> None:
    two = answers(([1, 2, 9], [2, 5, 5], True), ([], [], False), ([3, 4], [1, 4], False), ([9], [0], True))
    assert dtw._starts(two).tolist() == [0, 2, 5, 0, 1, 0]
    assert dtw._starts(answers()).tolist() == [] and dtw._starts(
        answers(([1], [3], True), ([], [], False))
    ).tolist() == [0]
    assert [dtw._text_of(two, turn) for turn in range(4)] == [slice(0, 2), slice(3, 3), slice(3, 5), slice(5, 5)]
    shifted = answers(([1, 2, 9], [2, 4, 5], True), ([], [], False), ([3, 4], [1, 4], False), ([9], [0], True))
    row_T, moved_T = np.array([0, 1, 2, 3, 3, 5]), np.array([True] * 5 + [False])
    assert dtw._count_wrong(two, shifted, row_T, moved_T) == 2


def test_entries_are_moved_by_the_map_the_larger_first_and_made_to_sum_to_one() -> None:
    source = topk(
        [[1, 2, 3, 4], [1, 2, 3, -1], [4, 3, 2, 1], [1, 2, 3, 4]],
        [[0.4, 0.3, 0.2, 0.1], [0.5, 0.25, 0.25, 0], [0.4, 0.3, 0.2, 0.1], [0.25] * 4], [0.5] * 4,
    )  # fmt: skip
    mapped_SK = np.array([[10, 10, -1, 11], [12, 10, 11, -1], [-1, -1, -1, -1], [10, 11, 12, 13]])
    row_T = np.array([0, 1, 2, -1, 0, 3])
    covered_T = np.array([True, True, True, True, False, True])
    found, moved = dtw._transfer(row_T, covered_T, np.array([11, 10, 7, 8, 9, 14]), mapped_SK, source, 2)
    assert found.ids_TK.tolist() == [[10, 11], [12, 10], [7, -1], [8, -1], [-1, -1], [10, 11]]
    masses = [[0.8, 0.2], [2 / 3, 1 / 3], [1, 0], [1, 0], [0, 0], [0.5, 0.5]]
    np.testing.assert_allclose(np.exp(found.logprobs_TK), masses, atol=1e-6)
    np.testing.assert_allclose(np.exp(found.real_logprobs_T), [0.2, 1 / 3, 1, 1, np.nan, 0], atol=1e-6)
    assert row_T.tolist() == [0, 1, -1, -1, 0, 3]
    np.testing.assert_allclose(moved, [0.5 + 0.75 + 0.5, 0.2 + 1.0, 0.3], atol=1e-6)


def fuser(sources: tuple[str, ...] = ("a", "b"), **settings: Any) -> Fuser:
    made = Fuser.__new__(Fuser)
    made.pivot, made.sources, made.settings, made.drawn, made.statistics = (
        "p",
        list(sources),
        Fused(**settings),
        False,
        {},
    )
    return made


def test_scores_are_per_bit_of_a_byte_or_per_token_and_infinite_without_any() -> None:
    nll_N, bytes_N, tokens_N = np.array([6.0, 1.0, 1.0]), np.array([3, 0, 1]), np.array([2, 1, 0])
    per_byte = fuser(choose=MinCE(unit="byte"))._per_unit(nll_N, bytes_N, tokens_N)
    np.testing.assert_allclose(per_byte, [2 / np.log(2), np.inf, 1 / np.log(2)])
    assert fuser(choose=MinCE(unit="token"))._per_unit(nll_N, bytes_N, tokens_N).tolist() == [3, 1, np.inf]


def test_choices_are_numbered_by_all_sources_of_the_recipe() -> None:
    chosen_T, all_MN = fuser(("a", "b", "c"))._number(["c", "a"], np.array([0, -1, 1, 2]), np.array([[1.0], [2], [3]]))
    assert (chosen_T.tolist(), all_MN[:, 0].tolist()[:2], all_MN[3, 0]) == ([0, -1, 3, 1], [1, 3], 2)
    assert np.isnan(all_MN[2, 0])
    trusting = fuser(choose=MinCE(trust="fitted"))
    trusting.statistics = {"a": Statistics(trust=0.3)}
    assert [trusting.trust_in(name) for name in "ab"] == [0.3, 1.0]
    assert fuser(choose=MinCE(trust=0.7)).trust_in("a") == 0.7 and fuser(choose=AvgCE()).trust_in("a") == 1.0


def test_distributions_get_the_width_that_is_asked_for() -> None:
    two = topk([[1, 2]], [[0.5, 0.25]], [0.5])
    assert [fuse._fit(two, width).ids_TK.tolist() for width in (1, 2, 4)] == [[[1]], [[1, 2]], [[1, 2, -1, -1]]]
    np.testing.assert_allclose(np.exp(fuse._fit(two, 3).logprobs_TK), [[0.5, 0.25, 0.0]])
    five = topk([[1, 2, 3, 4, 5]], [[0.1] * 5], [0.5])
    assert fuser(top_k=None)._width(two, five) == 5 and fuser(top_k=3)._width(two, five) == 3
    mixing = fuser()
    assert mixing._mix(np.array([[0.5], [0.5]]), [two, five]).ids_TK.shape == (1, 5)
    mixing.drawn = True
    assert mixing._mix(np.array([[0.5], [0.5]]), [two, five]).ids_TK.shape == (1, 7)
    gold = fuse._one_hot(np.array([7, 8]))
    assert (gold.ids_TK.tolist(), gold.logprobs_TK.tolist(), gold.real_logprobs_T.tolist()) == (
        [[7], [8]],
        [[0], [0]],
        [0, 0],
    )
    assert fuse._any_score(np.array([[np.nan, 1.0], [np.inf, np.nan]])).tolist()[0] == [0.0, 1.0]


def test_what_is_not_trusted_is_the_pivot_s_or_gold() -> None:
    taken, pivot, ids_T = (
        topk([[1], [2]], [[0.8], [0.5]], [0.8, 0.25]),
        topk([[3], [3]], [[0.4], [1]], [0.2, 1]),
        [5, 6],
    )
    trust_T = np.array([0.5, 1.0])
    for wins, kept in (("distil", [[1, 3], [2, -1]]), ("gold", [[1, 5], [2, -1]])):
        made = fuser(pivot_wins=wins)
        assert made._believe(taken, np.ones(2), pivot, np.array(ids_T)) is taken
        made.drawn = True
        mixed = made._believe(taken, trust_T, pivot, np.array(ids_T))
        assert mixed.ids_TK.tolist() == kept
        # Bayes: 0.8 against 0.2, so the source is right with 0.8.
        rest = 0.2 * (0.4 if wins == "distil" else 1.0)
        np.testing.assert_allclose(np.exp(mixed.logprobs_TK), [[0.64, rest], [0.5, 0]], atol=1e-6)


def table(ids: list[str], reasons: list[str | None]) -> pa.Table:
    return pa.table({"id": ids, "domain": ["x"] * len(ids), "reason": pa.array(reasons, pa.string())})


def test_rows_keep_their_places_and_the_first_reason() -> None:
    chats = table(["0", "1", "2", "3"], [None, "bad", None, None])
    scored = {
        "p": table(["0", "1", "2", "3"], [None, "bad", "long", None]),
        "a": table(["0", "1", "2", "3"], ["x"] * 4),
    }
    assert fuse._join_reasons(chats, {"p": scored["p"]}) == [None, "bad", "p: long", None]
    assert fuse._join_reasons(chats, scored) == ["a: x", "bad", "p: long", "a: x"]
    for other, first in ((table(["9"], [None]), "first id 9"), (table([], []), "first id none")):
        with pytest.raises(StaleArtifactError, match=rf"'p' hold other rows than the corpus shard \({first}\)"):
            fuse._join_reasons(chats, {"p": other})
    rows = [{"input_ids": [n], "chosen": [c]} for n, c in ((5, 1), (6, -1), (7, 0))]
    placed = fuse._place(chats, [None, "bad", "lost", None], np.array([0, 2, 3]), rows)
    assert placed["input_ids"].to_pylist() == [[5], None, None, [7]]
    assert placed["reason"].to_pylist() == [None, "bad", "lost", None]
    projection = SimpleNamespace(counts={"n": 1}, violation_nats=0.5)
    assert fuser()._facts(placed, {"a": projection}, {"a": 0.9}) == {  # type: ignore[dict-item]
        "rejected": [("1", "bad"), ("2", "lost")], "chosen": {"x": {"a": 1, "p": 1}},
        "alignment": {"a": {"n": 1, "violation_nats": 0.5, "trust": 0.9}},
    }  # fmt: skip


def test_the_ends_of_a_model_are_those_of_its_tokenizer_and_then_those_of_its_answers() -> None:
    ids = np.array([1, 2, 3, 4, 5, 6], dtype=np.int32)
    turns = [Turn(1, np.array([1]), False, 1), Turn(2, np.array([1, 1]), True, 1), Turn(5, np.array([0]), True, 0)]
    rendered = Rendered(ids, tuple(turns))
    made = align_text._answers(rendered)
    tokenizer = byte_level_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert known_ends(tokenizer, made)[0] == end and known_ends(tokenizer, made)[-2:] == [4, 6]
    bare = deepcopy(tokenizer)
    bare.chat_template = bare.eos_token = None
    assert known_ends(bare, made) == [4, 6] and known_ends(bare, align_text._answers(Rendered(ids, ()))) == []
    assert known_ends(bare, align_text._answers(Rendered(ids, tuple(turns[:1])))) == []
    assert (made.ids_T.tolist(), made.turn_offsets.tolist(), made.row_offsets.tolist()) == (
        [2, 3, 4, 6],
        [0, 1, 3, 4],
        [0, 3],
    )
