"""The compiled published alignments equal the literal ones on random texts and tokenizers."""

from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from toys.tokenizer_families import (
    FAMILIES,
    TEXTS,
    end_of,
    read_toy,
    toy_answer,
    toy_projector,
    toy_tokenizer,
    toy_topk,
)

from fusion_ray.chat.answer_tokens import gather_answers
from fusion_ray.fused.align_published.dtw import count_pairs, project_dtw
from fusion_ray.fused.align_published.naive import (
    Moved,
    map_by_counts,
    map_exactly,
    map_nearest,
    match_naively,
    move_naively,
    warp_naively,
)
from fusion_ray.fused.align_published.spellings import Spellings, lay_out, read_spellings
from fusion_ray.fused.align_published.vocabulary_map import PairCounts, VocabularyMap, build_map
from fusion_ray.fused.align_published.warping import NO_MATCH, match, warp

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
families = st.sampled_from([family for family in FAMILIES if not family.endswith("nfc")])
words = st.sampled_from([word for text in TEXTS for word in text.split(" ")])
texts = st.lists(words, min_size=1, max_size=7).map(" ".join)
tokens = st.lists(st.text(alphabet="abĠ", max_size=3), min_size=1, max_size=8)


@cache
def spellings(family: str) -> Spellings:
    return read_spellings(toy_tokenizer(family))


@cache
def counted(pivot: str, source: str) -> PairCounts:
    first, second = toy_tokenizer(pivot), toy_tokenizer(source)
    exact = build_map(first, second, "em")
    shards = [
        count_pairs(
            gather_answers([[toy_answer(first, text)]]), gather_answers([[toy_answer(second, text)]]), exact,
            toy_projector(pivot, source),
        )
        for text in TEXTS
    ]  # fmt: skip
    return sum(shards[1:], shards[0])


@cache
def toy_map(pivot: str, source: str, kind: str) -> VocabularyMap:
    first, second = toy_tokenizer(pivot), toy_tokenizer(source)
    counts = counted(pivot, source) if kind == "ms" else None
    return build_map(first, second, kind, pivot_end=end_of(first), source_ends=[end_of(second)], counts=counts)  # type: ignore[arg-type]


def map_literally(token: int, pivot: str, source: str, kind: str) -> int | None:
    if token == end_of(toy_tokenizer(source)):
        return end_of(toy_tokenizer(pivot))
    vocabulary = spellings(pivot).written
    written = spellings(source).swapped(spellings(pivot).marker)[token]
    if kind == "em" or (map_exactly(written, vocabulary) is not None and kind == "mined"):
        return map_exactly(written, vocabulary)
    if kind == "mined":
        return map_nearest(written, vocabulary) if written else None
    counts = counted(pivot, source)
    mine = counts.source_ids == token
    pairs = dict(zip(counts.pivot_ids[mine].tolist(), counts.counts[mine].tolist(), strict=True))
    return map_by_counts(written, pairs, vocabulary)


def project_literally(pivot: str, source: str, text: str, kind: str, seed: int) -> list[Moved]:
    ours, theirs = toy_answer(toy_tokenizer(pivot), text), toy_answer(toy_tokenizer(source), text)
    topk = toy_topk(theirs.ids_T, len(read_toy(toy_tokenizer(source))), 4, np.random.default_rng(seed))
    p = [spellings(pivot).stripped()[token] for token in ours.ids_T[:-1]]
    s = [spellings(source).stripped()[token] for token in theirs.ids_T[:-1]]
    matches = match_naively(p, s, warp_naively(p, s))
    moved = []
    for t, real in enumerate(ours.ids_T.tolist()):
        row = 0 if t == 0 else matches[t - 1]
        row = row if t == 0 or row is None else row + 1
        entries = None
        if row is not None:
            entries = dict(zip(topk.ids_TK[row].tolist(), np.exp(topk.logprobs_TK[row]).tolist(), strict=True))
        moved.append(move_naively(entries, lambda token: map_literally(token, pivot, source, kind), real, 4))
    return moved


@FEW
@given(tokens, tokens)
def test_warping_takes_the_same_way_as_the_literal_table(pivot: list[str], source: list[str]) -> None:
    p, s = [token.replace("Ġ", "") for token in pivot], [token.replace("Ġ", "") for token in source]
    aligned = warp_naively(p, s)
    first, second = lay_out(p), lay_out(s)
    spans_T2 = warp(np.arange(len(p)), np.arange(len(s)), first, second)
    assert [list(range(start, stop + 1)) for start, stop in spans_T2] == aligned
    matches = match(np.arange(len(p)), np.arange(len(s)), spans_T2, first, second)
    assert [None if j == NO_MATCH else j for j in matches.tolist()] == match_naively(p, s, aligned)


@pytest.mark.parametrize("kind", ["em", "mined", "ms"])
@settings(FEW, max_examples=15)
@example("byte_bpe", "unigram", "", 0)
@given(families, families, texts, st.integers(0, 2**32 - 1))
def test_published_modes_equal_the_literal_ones(kind: str, pivot: str, source: str, text: str, seed: int) -> None:
    first, second = toy_tokenizer(pivot), toy_tokenizer(source)
    ours, theirs = toy_answer(first, text), toy_answer(second, text)
    topk = toy_topk(theirs.ids_T, len(read_toy(second)), 4, np.random.default_rng(seed))
    projection = project_dtw(
        gather_answers([[ours]]),
        gather_answers([[theirs]]),
        topk,
        toy_projector(pivot, source),
        toy_map(pivot, source, kind),
    )
    expected = project_literally(pivot, source, text, kind, seed)
    assert projection.counts["one_hot"] == sum(moved.is_one_hot for moved in expected)
    assert projection.counts["transferred"] + projection.counts["one_hot"] == len(expected)
    for t, moved in enumerate(expected):
        ids, logprobs = projection.topk.ids_TK[t], projection.topk.logprobs_TK[t]
        found = {int(i): float(np.exp(np.float64(v))) for i, v in zip(ids, logprobs, strict=True) if i >= 0}
        assert found == pytest.approx(moved.probabilities, abs=1e-6)


@FEW
@given(families, families, st.lists(texts, min_size=2, max_size=4))
def test_counts_of_shards_add_up_to_the_counts_of_the_whole(pivot: str, source: str, rows: list[str]) -> None:
    first, second = toy_tokenizer(pivot), toy_tokenizer(source)
    exact, tables = toy_map(pivot, source, "em"), toy_projector(pivot, source)
    ours, theirs = [[toy_answer(first, text)] for text in rows], [[toy_answer(second, text)] for text in rows]
    whole = count_pairs(gather_answers(ours), gather_answers(theirs), exact, tables)
    one = count_pairs(gather_answers(ours[:1]), gather_answers(theirs[:1]), exact, tables)
    rest = count_pairs(gather_answers(ours[1:]), gather_answers(theirs[1:]), exact, tables)
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(values, getattr(one + rest, name))
