"""How two tokenizers cut one text or conversation, and what alignment moves between two models, for people to see."""

from typing import Any, NamedTuple

import numpy as np

from fusion_ray.chat import Rendered, render
from fusion_ray.chat.answer_tokens import AnswerTokens, AnswerTurn, gather_answers
from fusion_ray.fused.align.exact import project
from fusion_ray.fused.align.groups import find_groups, pair_turns
from fusion_ray.fused.align.projector import Projector, build_projector, known_ends
from fusion_ray.fused.align.view import GroupView, ViewSide, view_turn
from fusion_ray.models.folders import load_tokenizer
from fusion_ray.recipe import TransformersEngine
from fusion_ray.storage.model_files import find_model
from fusion_ray.storage.topk import TopK

_TOP_K = 20
_SHOWN = 3


class _Side(NamedTuple):
    """One model's reading of the text."""

    answers: AnswerTokens
    topk: TopK | None


def align_text(text: str, pivot: str, source: str, *, score: bool) -> list[GroupView]:
    """Align one text, read as plain text by both models, group by group.

    Args:
        text: Any text.
        pivot, source: Model folders or Hub ids; tokenizers are enough where nothing is scored.
        score: Load both models and show their distributions.

    Raises:
        AlignmentError: The tokenizers do not cover the same bytes.
    """
    folders = [find_model(model).folder if score else model for model in (pivot, source)]
    tokenizers = [load_tokenizer(folder) for folder in folders]
    ours, theirs = (
        _read(text, folder, tokenizer, score) for folder, tokenizer in zip(folders, tokenizers, strict=True)
    )
    projector = _projector(ours, theirs, *tokenizers)
    projected = None
    groups = find_groups(
        ours.answers, theirs.answers, pair_turns(ours.answers, theirs.answers), projector.same_vocabulary
    )
    if theirs.topk is not None:
        projection = project(ours.answers, theirs.answers, theirs.topk, projector)
        projection.check()
        groups, projected = projection.groups, projection.topk
    return view_turn(0, 0, *_view_sides(ours, theirs, projector), groups, projected, _SHOWN)


def align_answers(pivot: Rendered, source: Rendered, pivot_tokenizer: Any, source_tokenizer: Any) -> list[GroupView]:
    """Align the answers of one conversation as two models read it, turn after turn.

    Raises:
        AlignmentError: The two do not cover the same bytes.
    """
    ours, theirs = (_Side(_answers(rendered), None) for rendered in (pivot, source))
    projector = _projector(ours, theirs, pivot_tokenizer, source_tokenizer)
    partner = pair_turns(ours.answers, theirs.answers)
    groups = find_groups(ours.answers, theirs.answers, partner, projector.same_vocabulary)
    sides = _view_sides(ours, theirs, projector)
    return [
        group
        for turn, other in enumerate(partner.tolist())
        if other >= 0
        for group in view_turn(turn, other, *sides, groups, None, _SHOWN)
    ]


def _answers(rendered: Rendered) -> AnswerTokens:
    turns = [
        AnswerTurn(rendered.input_ids[turn.start : turn.stop], turn.boundaries, turn.ended) for turn in rendered.turns
    ]
    return gather_answers([turns])


def _projector(ours: _Side, theirs: _Side, pivot_tokenizer: Any, source_tokenizer: Any) -> Projector:
    ends, source_ends = known_ends(pivot_tokenizer, ours.answers), known_ends(source_tokenizer, theirs.answers)
    return build_projector(pivot_tokenizer, source_tokenizer, pivot_end=next(iter(ends), None), source_ends=source_ends)


def _view_sides(ours: _Side, theirs: _Side, projector: Projector) -> tuple[ViewSide, ViewSide]:
    return (
        ViewSide(ours.answers, projector.pivot, ours.topk),
        ViewSide(theirs.answers, projector.source, theirs.topk),
    )


def _read(text: str, folder: str, tokenizer: Any, score: bool) -> _Side:
    rendered = render(tokenizer, [{"role": "text", "content": text}], "none")
    return _Side(_answers(rendered), _score(folder, rendered) if score else None)


def _score(folder: str, rendered: Rendered) -> TopK:
    from fusion_ray.models.transformers import TransformersScorer

    scorer = TransformersScorer(folder, _TOP_K, engine=TransformersEngine(dtype="float32"))
    (topk,) = scorer.score([np.asarray(rendered.input_ids)], [rendered.positions])
    return topk
