"""The alignment view: every token once, in order, with its distributions."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from toys.align_cases import CASES, END, case_parts

from fusion_ray.chat.answer_tokens import AnswerTurn, gather_answers
from fusion_ray.fused.align.exact import project
from fusion_ray.fused.align.view import GroupView, ViewSide, show_bytes, view_turn
from fusion_ray.storage.topk import TopK


def view_of(name: str, source_tokens: int | None = None) -> list[GroupView]:
    parts = case_parts(name)
    count = len(parts.source.ids_T) if source_tokens is None else source_tokens
    whole = count == len(parts.source.ids_T)
    theirs = AnswerTurn(parts.source.ids_T[:count], parts.source.boundaries_T[:count], whole)
    topk = TopK(*(values[:count] for values in vars(parts.topk).values()))
    ours, theirs_answers = gather_answers([[parts.pivot]]), gather_answers([[theirs]])
    projection = project(ours, theirs_answers, topk, parts.projector)
    pivot = ViewSide(ours, parts.projector.pivot)
    return view_turn(
        0, 0, pivot, ViewSide(theirs_answers, parts.projector.source, topk), projection.groups, projection.topk
    )


@pytest.mark.parametrize("name", list(CASES))
def test_every_token_is_shown_once_and_groups_cover_the_same_bytes(name: str) -> None:
    view = view_of(name)
    assert [token.token for group in view for token in group.pivot] == [*CASES[name].pivot, END]
    assert [token.token for group in view for token in group.source] == [*CASES[name].source, END]
    for group in view:
        assert group.is_aligned
        assert group.pivot[0].start == group.source[0].start
        assert group.pivot[-1].stop == group.source[-1].stop


def test_a_pivot_token_carries_the_projected_distribution() -> None:
    [group, *_] = view_of("one to several")
    [token] = group.pivot
    assert [(entry.token, round(entry.probability, 3), entry.is_real) for entry in token.projected] == [
        ("until", 0.4, True),
        ("un", 0.375, False),
        ("b", 0.1, False),
    ]
    assert token.projected_real == pytest.approx(0.4)
    assert token.real is None and token.top == ()  # only the pivot's tokenizer was given
    assert [token.real for token in group.source] == pytest.approx([0.5, 0.8])


def test_what_lies_past_a_cut_is_shown_without_a_partner() -> None:
    view = view_of("one to several", source_tokens=1)
    assert [group.is_aligned for group in view] == [False, False]
    assert [token.token for token in view[0].pivot] == ["until", "!", END]
    assert all(token.projected_real is None for token in view[0].pivot)
    assert [token.token for token in view[1].source] == ["unt"]


def test_a_view_is_plain_data() -> None:
    text = json.dumps([asdict(group) for group in view_of("several to several")])
    assert "projected_real" in text and not np.isnan(json.loads(text)[0]["pivot"][0]["projected_real"])


def test_parts_of_characters_are_written_as_bytes() -> None:
    assert show_bytes("漢".encode()[:2]) == "\\xe6\\xbc"
