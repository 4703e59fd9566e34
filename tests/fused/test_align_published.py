"""The published alignments on cases that can be followed by hand."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from toys.tokenizer_families import toy_tokenizer

from fusion_ray.chat.answer_tokens import AnswerTurn, gather_answers
from fusion_ray.errors import AlignmentError
from fusion_ray.fused.align.exact import Projection
from fusion_ray.fused.align.projector import build_projector
from fusion_ray.fused.align_published.dtw import count_pairs, project_dtw
from fusion_ray.fused.align_published.edit_distance import edit_distance
from fusion_ray.fused.align_published.spellings import lay_out, read_spellings
from fusion_ray.fused.align_published.vocabulary_map import PairCounts, build_map
from fusion_ray.fused.align_published.warping import match, warp
from fusion_ray.storage.topk import TopK

PIVOT = ["now", "know", "s", "nows", "un", "til", "until", "bed", "!", "<end>"]
SOURCE = ["now", "s", "un", "til", "nows", "unt", "il", "bad", "?", "<stop>"]


def words(vocabulary: list[str]) -> Tokenizer:
    return Tokenizer(models.BPE({word: token_id for token_id, word in enumerate(vocabulary)}, []))


def aligned(pivot: list[str], source: list[str]) -> list[list[int]]:
    spans = warp(np.arange(len(pivot)), np.arange(len(source)), lay_out(pivot), lay_out(source))
    return [list(range(start, stop + 1)) for start, stop in spans]


def matched(pivot: list[str], source: list[str]) -> list[int]:
    p, s = np.arange(len(pivot)), np.arange(len(source))
    return match(p, s, warp(p, s, lay_out(pivot), lay_out(source)), lay_out(pivot), lay_out(source)).tolist()


def spelt(vocabulary: list[str], text: list[str], ended: bool = True) -> AnswerTurn:
    ids = [vocabulary.index(token) for token in text]
    ends = np.cumsum([len(token) for token in text])
    if ended:
        ids, ends = [*ids, 9], np.append(ends, ends[-1])
    return AnswerTurn(np.array(ids, np.int32), ends.astype(np.int32), ended)


def projected(kind: str, ours: AnswerTurn, theirs: AnswerTurn, rows: list[dict[str, float]]) -> Projection:
    width = max(map(len, rows))
    ids_TK = np.full((len(rows), width), -1, np.int32)
    logprobs_TK = np.full((len(rows), width), -np.inf, np.float32)
    for t, row in enumerate(rows):
        ids_TK[t, : len(row)] = [SOURCE.index(token) for token in row]
        logprobs_TK[t, : len(row)] = np.log([*row.values()])
    topk = TopK(ids_TK, logprobs_TK, np.full(len(rows), -1.0, np.float32))
    first, second = words(PIVOT), words(SOURCE)
    tables = build_projector(first, second, pivot_end=9, source_ends=[9])
    mapping = build_map(first, second, kind, pivot_end=9, source_ends=[9])  # type: ignore[arg-type]
    return project_dtw(gather_answers([[ours]]), gather_answers([[theirs]]), topk, tables, mapping)


def distribution(projection: Projection, position: int) -> dict[str, float]:
    pairs = zip(projection.topk.ids_TK[position], np.exp(projection.topk.logprobs_TK[position]), strict=True)
    return {PIVOT[token]: round(float(mass), 4) for token, mass in pairs if token >= 0}


def test_one_to_one_tokens_go_along_the_diagonal() -> None:
    assert aligned(["a", "b", "c"], ["a", "b", "c"]) == [[0], [1], [2]]


def test_one_pivot_token_takes_the_source_tokens_that_spell_it() -> None:
    assert aligned(["until", "x"], ["un", "til", "x"]) == [[0, 1], [2]]  # 3 + 2 + 0, and not 3 + 3 + 0
    assert matched(["until", "x"], ["un", "til", "x"]) == [1, 2]


def test_several_pivot_tokens_share_one_source_token() -> None:
    assert aligned(["un", "til", "x"], ["until", "x"]) == [[0], [0], [1]]
    assert matched(["un", "til", "x"], ["until", "x"]) == [-1, 0, 1]


def test_a_partial_cover_takes_its_last_token_although_the_boundary_is_wrong() -> None:
    assert matched(["until"], ["unt", "i"]) == [1]


def test_tokens_without_a_common_end_match_nothing() -> None:
    assert matched(["bed"], ["bad"]) == [-1]
    assert matched(["ab"], ["bc"]) == [-1]


def test_distances_stop_counting_past_the_limit() -> None:
    first, second = (np.array([*map(ord, word)], np.int32) for word in ("kitten", "sitting"))
    assert edit_distance(first, second, 100) == 3
    assert edit_distance(first, second, 2) == 3
    assert edit_distance(first, second, 1) == 2
    assert edit_distance(first[:0], second, 100) == 7


def test_exact_matches_are_moved_and_the_rest_dropped() -> None:
    ours, theirs = spelt(PIVOT, ["now", "s"]), spelt(SOURCE, ["now", "s"])
    rows = [{"now": 0.5, "?": 0.3, "un": 0.1}, {"s": 0.6, "il": 0.2}, {"<stop>": 0.9}]
    projection = projected("em", ours, theirs, rows)
    assert distribution(projection, 0) == {"now": 0.8333, "un": 0.1667}
    assert distribution(projection, 1) == {"s": 1.0}
    assert distribution(projection, 2) == {"<end>": 1.0}
    assert projection.counts["mass_unmapped"] == pytest.approx(0.5, abs=1e-6)
    assert projection.counts["transferred"] == 3


def test_the_larger_of_two_entries_that_meet_wins() -> None:
    ours, theirs = spelt(PIVOT, ["now"]), spelt(SOURCE, ["now"])
    projection = projected("mined", ours, theirs, [{"now": 0.5, "il": 0.25, "til": 0.2}, {"<stop>": 1.0}])
    assert distribution(projection, 0) == {"now": 0.6667, "til": 0.3333}
    assert projection.counts["mass_collided"] == pytest.approx(0.2, abs=1e-6)


def test_where_nothing_ends_together_a_one_hot_label_is_taught() -> None:
    ours, theirs = spelt(PIVOT, ["un", "til"]), spelt(SOURCE, ["unt", "il"])
    projection = projected("em", ours, theirs, [{"unt": 1.0}, {"il": 1.0}, {"<stop>": 1.0}])
    assert distribution(projection, 0) == {"un": 1.0}  # `unt` has no pivot token
    assert distribution(projection, 1) == {"til": 1.0}  # after `un` the source is inside of a token
    assert distribution(projection, 2) == {"<end>": 1.0}
    assert projection.counts["one_hot"] == 2
    assert projection.topk.real_logprobs_T.tolist() == [0.0, 0.0, 0.0]


def test_a_real_token_that_the_map_lost_has_no_probability() -> None:
    ours, theirs = spelt(PIVOT, ["now"]), spelt(SOURCE, ["now"])
    projection = projected("em", ours, theirs, [{"s": 0.5}, {"<stop>": 1.0}])
    assert projection.topk.real_logprobs_T[0] == -np.inf


def test_mined_takes_the_nearest_and_of_equals_the_first() -> None:
    mapping = build_map(words(["aa", "ab", "b"]), words(["ac", "b", "bbb"]), "mined")
    assert mapping.resolve(np.array([0, 1, 2, -1])).tolist() == [0, 2, 1, -1]


def test_ms_prefers_what_contains_the_token_and_needs_counts() -> None:
    first, second = words(["un", "until", "xy"]), words(["unti", "zz"])
    counts = PairCounts(np.array([0, 1, 2], np.int32), np.array([0, 0, 0], np.int32), np.array([5, 1, 9]))
    # un: distance 2, contained, 0.2 x sigmoid(5); until: distance 1, contained, 0.1 x sigmoid(1).
    assert build_map(first, second, "ms", counts=counts).resolve(np.array([0, 1])).tolist() == [1, -1]
    with pytest.raises(AlignmentError, match="needs the counts"):
        build_map(first, second, "ms")


def test_markers_are_swapped_between_families() -> None:
    mapping = build_map(toy_tokenizer("byte_bpe"), toy_tokenizer("sentencepiece"), "em")
    first, second = read_spellings(toy_tokenizer("byte_bpe")), read_spellings(toy_tokenizer("sentencepiece"))
    assert (first.marker, second.marker) == ("Ġ", "▁")
    dog = second.written.index("▁dog")
    assert first.written[mapping.map_U[dog]] == "Ġdog"


def test_pairs_are_counted_by_token() -> None:
    first, second = words(PIVOT), words(SOURCE)
    ours = gather_answers([[spelt(PIVOT, ["until", "now"])], [spelt(PIVOT, ["un"])]])
    theirs = gather_answers([[spelt(SOURCE, ["un", "til", "now"])], [spelt(SOURCE, ["un"])]])
    counts = count_pairs(ours, theirs, build_map(first, second, "em"), build_projector(first, second))
    named = {
        (PIVOT[p], SOURCE[s]): int(n)
        for p, s, n in zip(counts.pivot_ids, counts.source_ids, counts.counts, strict=True)
    }
    assert named == {("until", "un"): 1, ("until", "til"): 1, ("now", "now"): 1, ("un", "un"): 1}
