"""Exact alignment on cases small enough to reckon by hand, and on input that must be refused."""

import math
import unicodedata

import numpy as np
import pytest
from toys.tokenizer_families import END, TEXTS, end_of, read_toy, toy_answer, toy_projector, toy_tokenizer, toy_topk

from fusion_ray.chat.answer_tokens import AnswerTokens, AnswerTurn, gather_answers
from fusion_ray.chat.vocabulary import make_vocabulary
from fusion_ray.errors import AlignmentError
from fusion_ray.fused.align import leaves
from fusion_ray.fused.align.exact import Projection, project
from fusion_ray.fused.align.projector import Projector, Shares, build_projector
from fusion_ray.fused.align.strings import StringTable
from fusion_ray.storage.topk import TopK

PIVOT = (b"a", b"b", b"c", b"ab", b"bc", b"abc", b" a", b"<end>")
SOURCE = (b"a", b"b", b"c", b"ab", b"bc", b"<stop>", b" ", b"?")


class LongestMatch:
    """A pivot tokenizer that takes the longest token that fits, and cannot write a question mark."""

    def encode(self, strings: list[bytes]) -> list[list[int]]:
        return [self._encode(string) for string in strings]

    def _encode(self, string: bytes) -> list[int]:
        ids = []
        while string:
            fitting = [token for token in PIVOT[:-1] if string.startswith(token)]
            if not fitting:
                return []
            ids.append(PIVOT.index(max(fitting, key=len)))
            string = string[len(PIVOT[ids[-1]]) :]
        return ids


def hand_made_projector() -> Projector:
    encoder = LongestMatch()
    rows = encoder.encode(list(SOURCE))
    rows[5] = [7]
    ordered = sorted((row, 1 / 7) for token_id, row in enumerate(rows) if row and token_id != 5)
    by_bytes = sorted(token for token in SOURCE if token != b"<stop>")
    shares = Shares(
        np.array([token for row, _ in ordered for token in row], np.int32),
        np.cumsum([0, *(len(row) for row, _ in ordered)]),
        np.arange(len(ordered) + 1) / 7,
        max(len(row) for row, _ in ordered),
        np.frombuffer(b"".join(by_bytes), np.uint8).copy(),
        np.cumsum([0, *map(len, by_bytes)]),
        np.arange(len(by_bytes) + 1) / 7,
        max(map(len, by_bytes)),
    )
    pivot, source = make_vocabulary(PIVOT, special=[7]), make_vocabulary(SOURCE, special=[5])
    return Projector(pivot, source, 7, np.arange(len(SOURCE)) == 5, False, StringTable(rows), shares, encoder)  # type: ignore[arg-type]


def turn(ids: list[int], boundaries: list[int], ended: bool = False) -> AnswerTurn:
    return AnswerTurn(np.array(ids, np.int32), np.array(boundaries, np.int32), ended)


def kept(rows: list[dict[int, float]], real: list[float]) -> TopK:
    width = max(map(len, rows))
    ids_TK = np.array([[*row, *[-1] * (width - len(row))] for row in rows], np.int32)
    logprobs_TK = np.array([[*np.log([*row.values()]), *[-np.inf] * (width - len(row))] for row in rows], np.float32)
    return TopK(ids_TK, logprobs_TK, np.array([math.log(p) if p else -math.inf for p in real], np.float32))


def projected(ours: AnswerTurn, theirs: AnswerTurn, topk: TopK, inner_tail: str = "none") -> Projection:
    return project(
        gather_answers([[ours]]),
        gather_answers([[theirs]]),
        topk,
        hand_made_projector(),
        top_k=6,
        inner_tail=inner_tail,
    )  # type: ignore[arg-type]


def distribution(projection: Projection, position: int) -> dict[bytes, float]:
    pairs = zip(projection.topk.ids_TK[position], np.exp(projection.topk.logprobs_TK[position]), strict=True)
    return {PIVOT[token]: round(float(mass), 5) for token, mass in pairs if token >= 0}


def test_one_source_token_over_two_pivot_tokens_is_split_by_the_chain_rule() -> None:
    # Pivot a|bc, source ab|c: one group. Leaves: a (0.3), c (0.1) at the first token; b (0.2), bc (0.1) at the second.
    topk = kept([{3: 0.5, 0: 0.3, 2: 0.1}, {2: 0.6, 1: 0.2, 4: 0.1}], [0.5, 0.6])
    projection = projected(turn([0, 4], [1, 3]), turn([3, 2], [2, 3]), topk)
    # At the first token: real 0.5 * 0.6, a as it is, abb -> ab|b and abbc -> ab|bc.
    assert distribution(projection, 0) == {b"a": 0.6, b"ab": 0.15, b"c": 0.1}
    # After a: the real path has 0.3 of 0.6; the leaf `a` ended, so the rest is tail.
    assert distribution(projection, 1) == {b"bc": 0.5}
    assert projection.source_nll_G.tolist() == pytest.approx([-np.log(0.3)])
    assert np.exp(projection.topk.real_logprobs_T.sum()) == pytest.approx(0.3)


def test_the_tail_inside_a_group_flows_by_the_share_of_tokens_that_fit() -> None:
    # 0.2 is unknown at the first source token; of seven tokens alike, one begins with the pivot token a.
    topk = kept([{3: 0.8}, {2: 1.0}], [0.8, 1.0])
    projection = projected(turn([0, 4], [1, 3]), turn([3, 2], [2, 3]), topk, "unigram")
    flowing = 0.2 / 7
    assert distribution(projection, 0)[b"a"] == pytest.approx(0.8 + flowing, abs=1e-5)
    assert distribution(projection, 1)[b"bc"] == pytest.approx(0.8 / (0.8 + flowing), abs=1e-5)
    assert projection.violation_nats < 1e-6


def test_two_source_tokens_over_one_pivot_token_multiply() -> None:
    topk = kept([{0: 0.5, 3: 0.4}, {4: 0.5, 1: 0.3}], [0.5, 0.5])
    projection = projected(turn([5], [3]), turn([0, 4], [1, 3]), topk)
    # a|bc = abc: 0.25; ab (0.4) and a|b -> ab (0.15) meet on one pivot token.
    assert distribution(projection, 0) == {b"ab": 0.55, b"abc": 0.25}


def test_a_real_token_that_was_not_kept_still_carries_its_probability() -> None:
    projection = projected(turn([0], [1]), turn([0], [1]), kept([{1: 0.7}], [0.05]))
    assert distribution(projection, 0) == {b"b": 0.7, b"a": 0.05}
    assert np.exp(projection.topk.real_logprobs_T[0]) == pytest.approx(0.05)


def test_bytes_that_the_pivot_cannot_write_stay_in_the_tail() -> None:
    projection = projected(turn([0], [1]), turn([0], [1]), kept([{0: 0.5, 7: 0.5}], [0.5]))
    assert distribution(projection, 0) == {b"a": 0.5}


def test_end_of_turn_stands_for_end_of_turn_everywhere() -> None:
    topk = kept([{0: 0.6, 5: 0.4}, {5: 0.9, 1: 0.1}], [0.6, 0.9])
    projection = projected(turn([0, 7], [1, 1], ended=True), turn([0, 5], [1, 1], ended=True), topk)
    assert distribution(projection, 0) == {b"a": 0.6, b"<end>": 0.4}
    assert distribution(projection, 1) == {b"<end>": 0.9, b"b": 0.1}


def test_end_of_turn_inside_a_group_ends_the_leaf_after_its_bytes() -> None:
    topk = kept([{0: 0.5}, {4: 0.5, 5: 0.5}], [0.5, 0.5])
    projection = projected(turn([0, 4], [1, 3]), turn([0, 4], [1, 3]), topk)  # two groups of one token
    assert distribution(projection, 1) == {b"bc": 0.5, b"<end>": 0.5}
    projection = projected(turn([5], [3]), turn([0, 4], [1, 3]), topk)  # one group: a, then the end
    assert distribution(projection, 0) == {b"a": 0.25, b"abc": 0.25}


def test_a_space_that_only_the_pivot_puts_before_the_turn_is_put_before_every_leaf() -> None:
    projection = projected(turn([6], [1]), turn([0], [1]), kept([{0: 0.6, 1: 0.4}], [0.6]))
    assert distribution(projection, 0) == {b" a": 0.6}  # the pivot has no token for " b" or " "
    assert not projection.problems


def test_a_space_that_only_the_source_puts_before_the_turn_is_taken_away() -> None:
    projection = projected(turn([3], [2]), turn([6, 3], [0, 2]), kept([{6: 0.8, 3: 0.2}, {3: 0.5, 2: 0.5}], [0.8, 0.5]))
    assert distribution(projection, 0) == {b"ab": 0.6, b"c": 0.4}


def test_text_past_the_end_of_a_cut_source_is_not_covered() -> None:
    topk = kept([{0: 0.5}], [0.5])
    projection = projected(turn([0, 4, 7], [1, 3, 3], ended=True), turn([0], [1]), topk)
    assert projection.covered_T.tolist() == [True, False, False]
    assert projection.group_T.tolist() == [0, -1, -1]
    assert np.isnan(projection.topk.real_logprobs_T[1:]).all()
    assert (projection.topk.ids_TK[1:] == -1).all()
    assert not projection.problems


def test_a_cut_inside_a_pivot_token_leaves_the_token_uncovered() -> None:
    projection = projected(turn([0, 4], [1, 3]), turn([0, 1], [1, 2]), kept([{0: 0.5}, {1: 0.5}], [0.5, 0.5]))
    assert projection.covered_T.tolist() == [True, False]


def test_a_turn_that_the_source_lost_is_not_covered() -> None:
    ours = gather_answers([[turn([0], [1]), turn([1], [1])], [turn([2], [1])]])
    theirs = gather_answers([[turn([0], [1])], [turn([2], [1])]])
    topk = kept([{0: 0.5}, {2: 0.25}], [0.5, 0.25])
    projection = project(ours, theirs, topk, hand_made_projector())
    assert projection.covered_T.tolist() == [True, False, True]
    np.testing.assert_allclose(np.exp(projection.topk.real_logprobs_T[[0, 2]]), [0.5, 0.25], rtol=1e-6)


def test_empty_answers_align_to_nothing() -> None:
    empty = gather_answers([[]])
    topk = TopK(np.zeros((0, 4), np.int32), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    projection = project(empty, empty, topk, hand_made_projector())
    assert len(projection.topk) == 0 and projection.violation_nats == 0.0
    only_end = projected(turn([7], [0], ended=True), turn([5], [0], ended=True), kept([{5: 1.0}], [1.0]))
    assert distribution(only_end, 0) == {b"<end>": 1.0}


@pytest.mark.parametrize(
    ("ours", "theirs", "topk", "message"),
    [
        (turn([0, 7], [1, 1], True), turn([3, 5], [2, 2], True), kept([{3: 1.0}] * 2, [1.0] * 2), "different bytes"),
        (turn([0, 1], [1, 2]), turn([0, 2], [1, 2]), kept([{0: 1.0}] * 2, [1.0] * 2), "spell different bytes"),
        (turn([0, 1], [2, 1]), turn([0, 1], [1, 2]), kept([{0: 1.0}] * 2, [1.0] * 2), "boundaries decrease"),
        (turn([99], [1]), turn([0], [1]), kept([{0: 1.0}], [1.0]), "outside its vocabulary"),
        (turn([0], [1]), turn([-1], [1]), kept([{0: 1.0}], [1.0]), "outside its vocabulary"),
        (turn([0], [1]), turn([0], [1]), kept([{8: 0.5}], [1.0]), "outside its vocabulary"),
        (turn([0], [1]), turn([0], [1]), kept([{0: np.nan}], [1.0]), "NaN"),
        (turn([0], [1]), turn([0], [1]), kept([{0: 1.0}], [np.nan]), "NaN"),
        (turn([0], [1]), turn([0], [1]), kept([{0: 1.0}], [0.0]), "infinite"),
        (turn([0], [1]), turn([0], [1]), kept([{0: 2.0}], [1.0]), "positive"),
    ],
)
def test_a_turn_that_cannot_be_aligned_is_named_and_the_others_go_on(
    ours: AnswerTurn, theirs: AnswerTurn, topk: TopK, message: str
) -> None:
    good = kept([{0: 0.5}], [0.5])
    width = topk.ids_TK.shape[1]
    assert width == 1
    both = TopK(*(np.concatenate([getattr(good, name), getattr(topk, name)]) for name in vars(good)))
    projection = project(
        gather_answers([[turn([0], [1])], [ours]]),
        gather_answers([[turn([0], [1])], [theirs]]),
        both,
        hand_made_projector(),
    )
    assert list(projection.problems) == [1]
    assert message in projection.problems[1]
    assert projection.covered_T.tolist() == [True] + [False] * len(ours.ids_T)
    with pytest.raises(AlignmentError, match="turn 1"):
        projection.check()


def test_columns_that_do_not_belong_together_are_refused() -> None:
    one, topk = gather_answers([[turn([0], [1])]]), kept([{0: 0.5}], [0.5])
    with pytest.raises(AlignmentError, match="one for each token"):
        project(one, one, kept([{0: 0.5}] * 2, [0.5] * 2), hand_made_projector())
    with pytest.raises(AlignmentError, match="the same rows"):
        project(gather_answers([[], [turn([0], [1])]]), one, topk, hand_made_projector())
    broken = AnswerTokens(one.ids_T, one.boundaries_T, np.array([0, 2]), one.ended, one.row_offsets)
    with pytest.raises(AlignmentError, match="do not fit"):
        project(broken, one, topk, hand_made_projector())


def test_few_entries_keep_the_largest_and_the_real_probability_from_before_the_cut() -> None:
    tokenizer = toy_tokenizer("byte_bpe")
    answer = toy_answer(tokenizer, TEXTS[0])
    topk = toy_topk(answer.ids_T, len(read_toy(tokenizer)), 6, np.random.default_rng(0))
    columns, projector = gather_answers([[answer]]), toy_projector("byte_bpe", "byte_bpe")
    two = project(columns, columns, topk, projector, top_k=2).topk
    np.testing.assert_array_equal(two.ids_TK, topk.ids_TK[:, :2])
    np.testing.assert_allclose(two.real_logprobs_T, topk.real_logprobs_T, atol=1e-6)


def test_strings_forgotten_for_want_of_room_change_nothing() -> None:
    first, second = toy_tokenizer("byte_bpe_small"), toy_tokenizer("sentencepiece")
    forgetful = build_projector(
        first, second, pivot_end=end_of(first), source_ends=[end_of(second)], counts_U=None, max_strings=1
    )
    remembering = build_projector(first, second, pivot_end=end_of(first), source_ends=[end_of(second)])
    for text in (TEXTS[0], TEXTS[2], TEXTS[0]):
        ours, theirs = toy_answer(first, text), toy_answer(second, text)
        topk = toy_topk(theirs.ids_T, len(read_toy(second)), 6, np.random.default_rng(0))
        one, other = (
            project(gather_answers([[ours]]), gather_answers([[theirs]]), topk, tables).topk
            for tables in (forgetful, remembering)
        )
        np.testing.assert_array_equal(one.ids_TK, other.ids_TK)
        np.testing.assert_array_equal(one.logprobs_TK, other.logprobs_TK)


def test_a_projector_refuses_counts_and_ends_of_another_vocabulary() -> None:
    tokenizer = toy_tokenizer("byte_bpe")
    for counts_U in (np.ones(10_000), np.array([np.nan])):
        with pytest.raises(AlignmentError, match=f"{len(counts_U)} token counts"):
            build_projector(tokenizer, tokenizer, counts_U=counts_U)
    with pytest.raises(AlignmentError, match=f"pivot: the end-of-turn token {10**6}"):
        build_projector(tokenizer, tokenizer, pivot_end=10**6)


def test_special_tokens_spelt_out_in_a_text_are_text() -> None:
    projector = toy_projector("sentencepiece", "byte_bpe")
    [ids] = projector.encoder.encode([END.encode()])
    assert projector.pivot.text(ids) == END.encode()
    assert projector.pivot_end not in ids


def test_a_normalised_answer_is_aligned_and_counted_and_not_refused() -> None:
    decomposed = "e\u0301e\u0301 n\u0303"
    first, second = toy_tokenizer("byte_bpe"), toy_tokenizer("byte_bpe_nfc")
    ours = toy_answer(first, decomposed)
    composed = toy_answer(second, unicodedata.normalize("NFC", decomposed))
    # Boundaries of the changed text, as its offset mapping gives them: each letter ends after its accent.
    ends = np.repeat([3, 6, 10, 10], [2, 2, 2, 1]).astype(np.int32)
    theirs = AnswerTurn(composed.ids_T, ends, True)
    topk = toy_topk(theirs.ids_T, len(read_toy(second)), 6, np.random.default_rng(0))
    projection = project(
        gather_answers([[ours]]), gather_answers([[theirs]]), topk, toy_projector("byte_bpe", "byte_bpe_nfc")
    )
    assert not projection.problems
    assert projection.covered_T.all()
    assert projection.counts["differing"] == 3
    assert projection.violation_nats < 1e-4


def test_tokens_past_the_counted_ids_did_not_occur() -> None:
    tokenizer = toy_tokenizer("byte_bpe")
    short = build_projector(tokenizer, tokenizer, counts_U=np.arange(10.0)).shares
    padded = build_projector(tokenizer, tokenizer, counts_U=np.pad(np.arange(10.0), (0, 500))).shares
    np.testing.assert_array_equal(short.byte_running, padded.byte_running)
    assert short.byte_running[-1] == pytest.approx(1.0)
    even = build_projector(tokenizer, tokenizer, counts_U=np.zeros(10)).shares
    assert np.diff(even.byte_running)[np.diff(even.byte_running) > 0].std() < 1e-9


def test_strings_longer_than_expected_are_listed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = toy_tokenizer("byte_bpe"), toy_tokenizer("sentencepiece_legacy")
    ours, theirs = toy_answer(first, TEXTS[0]), toy_answer(second, TEXTS[0])
    topk = toy_topk(theirs.ids_T, len(read_toy(second)), 6, np.random.default_rng(0))
    found = []
    for likely_bytes in (24, 0):
        monkeypatch.setattr(leaves, "_LIKELY_BYTES", likely_bytes)
        tables = toy_projector("byte_bpe", "sentencepiece_legacy")
        found.append(project(gather_answers([[ours]]), gather_answers([[theirs]]), topk, tables).topk)
    np.testing.assert_array_equal(found[0].ids_TK, found[1].ids_TK)
    np.testing.assert_array_equal(found[0].logprobs_TK, found[1].logprobs_TK)
