"""The laws of exact alignment on the tokenizers of well-known models and awkward kinds of text."""

import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from fusion_ray.fused.align.exact import project
from fusion_ray.fused.align.projector import build_projector

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from real_tokenizers import real_tokenizer
from scored import answers_of, made_up
from texts import KINDS

NAMES = ("llama2", "mistral_v1", "llama3_1", "qwen3", "gemma3", "deepseek_v3", "gpt4o", "unigram_ja")


@pytest.mark.slow
@pytest.mark.parametrize(("pivot", "source"), list(permutations(NAMES, 2)))
def test_real_pairs_conserve_probability_on_every_kind_of_text(pivot: str, source: str) -> None:
    try:
        first, second = real_tokenizer(pivot), real_tokenizer(source)
    except RuntimeError as error:
        pytest.skip(str(error))
    projector = build_projector(first, second)
    ours, theirs = answers_of(first, list(KINDS.values())), answers_of(second, list(KINDS.values()))
    topk = made_up(theirs, projector.source, 10, np.random.default_rng(0))
    for inner_tail in ("unigram", "none"):
        projection = project(ours, theirs, topk, projector, inner_tail=inner_tail)
        # Mistral's old tokenizer puts a space after every control token that a text spells out.
        assert [list(KINDS)[turn] for turn in projection.problems] in ([], ["special"])
        assert projection.covered_T.mean() > 0.9
        assert projection.violation_nats <= 1e-4
        sums_T = np.exp(projection.topk.logprobs_TK[projection.covered_T].astype(np.float64)).sum(axis=1)
        assert (sums_T <= 1 + 1e-5).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_real_tokenizers_project_onto_themselves_unchanged(name: str) -> None:
    try:
        tokenizer = real_tokenizer(name)
    except RuntimeError as error:
        pytest.skip(str(error))
    projector = build_projector(tokenizer, tokenizer)
    answers = answers_of(tokenizer, list(KINDS.values()))
    topk = made_up(answers, projector.source, 10, np.random.default_rng(0))
    projected = project(answers, answers, topk, projector).topk
    np.testing.assert_allclose(projected.logprobs_TK, topk.logprobs_TK, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(projected.real_logprobs_T, topk.real_logprobs_T, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(projected.ids_TK, topk.ids_TK)


@pytest.mark.slow
def test_the_rebuilt_llama2_tokenizer_cuts_as_its_package_says() -> None:
    try:
        tokenizer = real_tokenizer("llama2")
    except RuntimeError as error:
        pytest.skip(str(error))
    # The encoder cases of llama-tokenizer-js's own tests, without the beginning-of-text token.
    cases = {
        "grabbed": [2646, 1327, 287],
        " grabbed": [29871, 2646, 1327, 287],
        "           grabbed": [9651, 2646, 1327, 287],
        "\n": [29871, 13],
        " \n": [259, 13],
        "\ttabs\t\t\t\tout here": [29871, 12, 21175, 12, 12, 12, 12, 449, 1244],
        "ax\n####\nboo": [4853, 13, 4136, 13, 833, 29877],
        "镇": [29871, 30411],
        "🦙Ꙋ": [29871, 243, 162, 169, 156, 237, 156, 141],
        "Ꙋ🦙": [29871, 237, 156, 141, 243, 162, 169, 156],
    }
    assert {text: tokenizer.encode(text, add_special_tokens=False).ids for text in cases} == cases
