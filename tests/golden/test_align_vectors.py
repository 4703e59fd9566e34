"""Alignment of worked examples against numbers that the literal oracles gave once; see make_align_vectors.py."""

import json
from pathlib import Path

import numpy as np
import pytest
from toys.align_cases import CASES, case_parts, case_tokenizer

from fusion_ray.chat.answer_tokens import gather_answers
from fusion_ray.fused.align.exact import project
from fusion_ray.fused.align_published.dtw import project_dtw
from fusion_ray.fused.align_published.vocabulary_map import build_map
from fusion_ray.storage.topk import TopK

VECTORS = json.loads(Path(__file__).with_name("align_vectors.json").read_text())


def named(topk: TopK, words: tuple[str, ...]) -> list[dict[str, float]]:
    rows = zip(topk.ids_TK.tolist(), np.exp(topk.logprobs_TK.astype(np.float64)).tolist(), strict=True)
    return [{words[i]: mass for i, mass in zip(ids, masses, strict=True) if i >= 0} for ids, masses in rows]


@pytest.mark.parametrize("name", list(CASES))
def test_exact_alignment_gives_the_recorded_numbers(name: str) -> None:
    parts = case_parts(name)
    found = project(
        gather_answers([[parts.pivot]]), gather_answers([[parts.source]]), parts.topk, parts.projector, top_k=9
    )
    for row, expected in zip(named(found.topk, parts.pivot_words), VECTORS[name]["bytes"], strict=True):
        assert row == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["em", "mined"])
@pytest.mark.parametrize("name", list(CASES))
def test_published_alignments_give_the_recorded_numbers(name: str, kind: str) -> None:
    parts = case_parts(name)
    ends = {"pivot_end": len(parts.pivot_words) - 1, "source_ends": [len(parts.source_words) - 1]}
    mapping = build_map(case_tokenizer("pivot"), case_tokenizer("source"), kind, **ends)  # type: ignore[arg-type]
    found = project_dtw(
        gather_answers([[parts.pivot]]), gather_answers([[parts.source]]), parts.topk, parts.projector, mapping
    )
    for row, expected in zip(named(found.topk, parts.pivot_words), VECTORS[name][kind], strict=True):
        assert row == pytest.approx(expected, abs=1e-6)
