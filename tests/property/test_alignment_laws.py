"""The laws of exact alignment, for random texts, distributions and pairs of tokenizers."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from toys.tokenizer_families import (
    APART,
    FAMILIES,
    TEXTS,
    end_of,
    read_toy,
    toy_answer,
    toy_pair,
    toy_projector,
    toy_tokenizer,
    toy_topk,
)

from fusion_ray.chat.answer_tokens import gather_answers
from fusion_ray.fused.align import naive
from fusion_ray.fused.align.exact import InnerTail, Projection, project
from fusion_ray.fused.align.naive import Position, project_naively
from fusion_ray.fused.align.projector import build_projector
from fusion_ray.storage.topk import TopK

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
words = st.sampled_from([word for text in TEXTS for word in text.replace("\n", " \n").split(" ")])
# Unigram has no bytes to fall back to, so its texts are made of letters it has seen.
texts = st.one_of(
    st.lists(words, max_size=8).map(" ".join), st.text(alphabet="".join(sorted(set("".join(TEXTS)))), max_size=12)
)
any_texts = st.one_of(texts, st.text(max_size=8))
families = st.sampled_from([family for family in FAMILIES if not family.endswith("nfc")])
seeds = st.integers(0, 2**32 - 1)


def aligned(
    pivot: str, source: str, text: str, seed: int, inner_tail: InnerTail = "unigram", top_k: int = 6
) -> tuple[Projection, list[Position | None], TopK]:
    first, second = toy_tokenizer(pivot), toy_tokenizer(source)
    ours, theirs = toy_answer(first, text), toy_answer(second, text)
    topk = toy_topk(theirs.ids_T, len(read_toy(second)), 6, np.random.default_rng(seed))
    projection = project(
        gather_answers([[ours]]),
        gather_answers([[theirs]]),
        topk,
        toy_projector(pivot, source),
        top_k=top_k,
        inner_tail=inner_tail,
    )
    return projection, project_naively(ours, theirs, topk, toy_pair(pivot, source), inner_tail), topk


def as_probabilities(projection: Projection, position: int) -> dict[int, float]:
    topk = projection.topk
    return {
        int(token): float(np.exp(np.float64(logprob)))
        for token, logprob in zip(topk.ids_TK[position], topk.logprobs_TK[position], strict=True)
        if token >= 0
    }


@pytest.mark.parametrize("inner_tail", ["unigram", "none"])
@FEW
@given(families, families, texts, seeds)
def test_the_fast_path_equals_the_literal_leaves(
    inner_tail: InnerTail, pivot: str, source: str, text: str, seed: int
) -> None:
    projection, positions, _ = aligned(pivot, source, text, seed, inner_tail=inner_tail, top_k=500)
    assert_equal_everywhere(projection, positions)


# Runs that are longer than the window in which a leaf is tokenised, in groups of their own.
long_texts = st.lists(st.tuples(st.sampled_from(["{}", "}{", "{", "}", " "]), st.integers(1, 50)), max_size=3).map(
    lambda runs: "".join(part * count for part, count in runs)
)


@pytest.mark.parametrize("inner_tail", ["unigram", "none"])
@settings(FEW, max_examples=15)
@given(st.permutations(APART), long_texts, seeds)
def test_in_groups_of_any_length_the_fast_path_equals_the_literal_leaves(
    inner_tail: InnerTail, pair: list[str], text: str, seed: int
) -> None:
    projection, positions, _ = aligned(*pair, text, seed, inner_tail=inner_tail, top_k=300)
    assert_equal_everywhere(projection, positions)
    assert projection.violation_nats <= 1e-4


def test_leaves_that_are_cut_to_the_window_are_those_of_the_whole_group(monkeypatch: pytest.MonkeyPatch) -> None:
    pivot, source = APART
    text = "{}" * 90 + "end"
    projection, _, topk = aligned(pivot, source, text, seed=0, top_k=300)
    assert max(projection.groups.pivot_stop - projection.groups.pivot_start) >= 90
    monkeypatch.setattr(naive, "WINDOW", 10**9)
    monkeypatch.setattr(naive, "FARTHEST", 10**9)
    answers = [toy_answer(toy_tokenizer(name), text) for name in (pivot, source)]
    assert_equal_everywhere(projection, project_naively(*answers, topk, toy_pair(pivot, source)))


@pytest.mark.parametrize("two_ends", ["pivot", "source"])
def test_every_end_of_the_source_stands_for_the_end_of_that_turn(two_ends: str) -> None:
    """As gpt-oss ends turns: with one token between turns and another after the last."""
    two, one = Tokenizer.from_str(toy_tokenizer("byte_bpe").to_str()), toy_tokenizer("sentencepiece")
    two.add_special_tokens(["<|return|>"])
    ends = [end_of(two), two.token_to_id("<|return|>")]
    turns = {tokenizer: [toy_answer(tokenizer, text) for text in ("the fox", "the dog")] for tokenizer in (one, two)}
    turns[two][1].ids_T[-1] = ends[1]
    pivot, source = (two, one) if two_ends == "pivot" else (one, two)
    source_ends = [end_of(one)] if source is one else ends
    rows = gather_answers([turns[source]])
    # At every position half is on the real token, and 0.2 on each end that is not it.
    others = [[end if end != real else -1 for end in source_ends] for real in rows.ids_T]
    ids_TK = np.concatenate([rows.ids_T[:, None], others], axis=1).astype(np.int32)
    logprobs_TK = np.where(ids_TK < 0, -np.inf, np.log([[0.5, *[0.2] * len(source_ends)]])).astype(np.float32)
    topk = TopK(ids_TK, logprobs_TK, logprobs_TK[:, 0].copy())
    projector = build_projector(pivot, source, pivot_end=end_of(pivot), source_ends=source_ends)
    projection = project(gather_answers([turns[pivot]]), rows, topk, projector)
    first = 0
    for turn, end in zip(turns[pivot], ends if pivot is two else [end_of(one)] * 2, strict=True):
        last = first + len(turn.ids_T) - 1
        assert as_probabilities(projection, last) == pytest.approx({end: 0.3 + 0.2 * len(source_ends)}, abs=1e-6)
        # Within the turn, too, what an end is given goes to the token that ends this very turn.
        assert as_probabilities(projection, first).keys() == {int(turn.ids_T[0]), end}
        first = last + 1


def assert_equal_everywhere(projection: Projection, positions: list[Position | None]) -> None:
    assert not projection.problems
    for t, position in enumerate(positions):
        assert position is not None
        found = as_probabilities(projection, t)
        for token in found.keys() | position.probabilities.keys():
            assert found.get(token, 0.0) == pytest.approx(position.probabilities.get(token, 0.0), abs=1e-6)
        assert np.exp(projection.topk.real_logprobs_T[t]) == pytest.approx(position.real, abs=1e-6)


@FEW
@given(families, families, texts, seeds, st.sampled_from(["unigram", "none"]))
def test_no_group_loses_probability_of_its_text(pivot: str, source: str, text: str, seed: int, tail: InnerTail) -> None:
    projection, _, topk = aligned(pivot, source, text, seed, inner_tail=tail)
    assert projection.violation_nats <= 1e-4
    assert projection.counts["source_nll"] == pytest.approx(topk.nll_nats, abs=1e-3)
    assert projection.counts["kept_mass"] <= projection.counts["covered"] * (1 + 1e-5)
    assert (projection.counts["kept_mass"] > 0) == (projection.counts["covered"] > 0)
    assert projection.counts["projected_nll"] <= projection.counts["source_nll"] + 1e-3


@FEW
@given(families, families, texts, seeds)
def test_probability_is_kept_exactly_where_no_other_leaf_spells_the_text(
    pivot: str, source: str, text: str, seed: int
) -> None:
    first, second = toy_tokenizer(pivot), toy_tokenizer(source)
    ours, theirs = toy_answer(first, text), toy_answer(second, text)
    # Only the real token is kept, so that there is no other leaf.
    real_T = toy_topk(theirs.ids_T, len(read_toy(second)), 6, np.random.default_rng(seed)).real_logprobs_T
    topk = TopK(theirs.ids_T[:, None], real_T[:, None], real_T)
    projection = project(
        gather_answers([[ours]]), gather_answers([[theirs]]), topk, toy_projector(pivot, source), inner_tail="none"
    )
    for group in range(len(projection.groups)):
        projected = projection.topk.real_logprobs_T[projection.group_T == group].astype(np.float64).sum()
        assert projected == pytest.approx(-projection.source_nll_G[group], abs=1e-4)


@FEW
@given(families, families, texts, seeds)
def test_every_answer_position_gets_a_distribution_that_sums_to_one(
    pivot: str, source: str, text: str, seed: int
) -> None:
    projection, _, _ = aligned(pivot, source, text, seed)
    assert projection.covered_T.all()
    kept_T = np.exp(projection.topk.logprobs_TK.astype(np.float64)).sum(axis=1)
    assert (kept_T <= 1 + 1e-5).all()
    projection.topk.check("projection")
    assert (projection.topk.logprobs_TK[:, 1:] <= projection.topk.logprobs_TK[:, :-1]).all()


@FEW
@given(st.sampled_from(FAMILIES), texts, seeds)
def test_one_tokenizer_projects_onto_itself_unchanged(family: str, text: str, seed: int) -> None:
    tokenizer = toy_tokenizer(family)
    text = text.replace("\u0301", "").replace("\u0303", "")  # what NFC would change has no byte boundaries here
    answer = toy_answer(tokenizer, text)
    topk = toy_topk(answer.ids_T, len(read_toy(tokenizer)), 6, np.random.default_rng(seed))
    columns = gather_answers([[answer]])
    projection = project(columns, columns, topk, toy_projector(family, family))
    np.testing.assert_array_equal(projection.topk.ids_TK, topk.ids_TK)
    np.testing.assert_allclose(projection.topk.logprobs_TK, topk.logprobs_TK, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(projection.topk.real_logprobs_T, topk.real_logprobs_T, rtol=1e-6, atol=1e-6)


@FEW
@given(families, families, texts, seeds)
def test_the_order_of_kept_entries_does_not_matter(pivot: str, source: str, text: str, seed: int) -> None:
    first, second = toy_tokenizer(pivot), toy_tokenizer(source)
    ours, theirs = gather_answers([[toy_answer(first, text)]]), gather_answers([[toy_answer(second, text)]])
    rng = np.random.default_rng(seed)
    topk = toy_topk(theirs.ids_T, len(read_toy(second)), 6, rng)
    order = rng.permutation(6)
    shuffled = TopK(topk.ids_TK[:, order], topk.logprobs_TK[:, order], topk.real_logprobs_T)
    one = project(ours, theirs, topk, toy_projector(pivot, source)).topk
    other = project(ours, theirs, shuffled, toy_projector(pivot, source)).topk
    np.testing.assert_allclose(one.logprobs_TK, other.logprobs_TK, atol=1e-6)
    np.testing.assert_allclose(one.real_logprobs_T, other.real_logprobs_T, atol=1e-6)


@FEW
@given(families, families, st.lists(texts, min_size=2, max_size=4), seeds)
def test_rows_projected_together_equal_rows_projected_alone(
    pivot: str, source: str, rows: list[str], seed: int
) -> None:
    first, second = toy_tokenizer(pivot), toy_tokenizer(source)
    ours, theirs = [toy_answer(first, text) for text in rows], [toy_answer(second, text) for text in rows]
    topks = [toy_topk(turn.ids_T, len(read_toy(second)), 6, np.random.default_rng(seed)) for turn in theirs]
    joined = TopK(*(np.concatenate(parts) for parts in zip(*[vars(topk).values() for topk in topks], strict=True)))
    projector = toy_projector(pivot, source)
    together = project(gather_answers([[t] for t in ours]), gather_answers([[t] for t in theirs]), joined, projector)
    alone = [
        project(gather_answers([[a]]), gather_answers([[b]]), topk, projector).topk
        for a, b, topk in zip(ours, theirs, topks, strict=True)
    ]
    np.testing.assert_array_equal(together.topk.ids_TK, np.concatenate([topk.ids_TK for topk in alone]))
    np.testing.assert_array_equal(together.topk.logprobs_TK, np.concatenate([topk.logprobs_TK for topk in alone]))


@FEW
@given(st.sampled_from(["byte_bpe", "byte_bpe_small", "sentencepiece"]), any_texts)
def test_no_kept_token_contradicts_the_bytes_of_its_leaf(pivot: str, text: str) -> None:
    encoder, vocabulary = toy_projector(pivot, "unigram").encoder, read_toy(toy_tokenizer(pivot))
    raw = text.encode()
    for stop in range(1, len(raw) + 1):  # every prefix, those that end inside of a character among them
        [ids] = encoder.encode([raw[:stop]])
        assert vocabulary.text(ids) == raw[:stop]
    assert end_of(toy_tokenizer(pivot)) not in encoder.encode([b"<|end|>"])[0]
