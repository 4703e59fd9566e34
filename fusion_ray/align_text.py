"""`fusion-ray align`: how two tokenizers cut one text, and what alignment moves between two models."""

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from fusion_ray.algorithms.align.answers import Answers, AnswerTurn, gather_answers
from fusion_ray.algorithms.align.bytes import project
from fusion_ray.algorithms.align.groups import find_groups, pair_turns
from fusion_ray.algorithms.align.projector import Projector, build_projector
from fusion_ray.algorithms.align.view import Entry, GroupView, TokenView, ViewSide, view_turn
from fusion_ray.algorithms.chat import Rendered, render
from fusion_ray.algorithms.topk import TopK
from fusion_ray.engines.models import load_tokenizer
from fusion_ray.reporting.alignment_view import show_spaces
from fusion_ray.storage.models import find_model

_TOP_K = 20
_SHOWN = 3


class _Side(NamedTuple):
    """One model's reading of the text."""

    answers: Answers
    topk: TopK | None
    end: int | None


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
    projector = build_projector(*tokenizers, pivot_end=ours.end, source_end=theirs.end)
    projected = None
    groups = find_groups(
        ours.answers, theirs.answers, pair_turns(ours.answers, theirs.answers), projector.same_vocabulary
    )
    if theirs.topk is not None:
        projection = project(ours.answers, theirs.answers, theirs.topk, projector)
        projection.check()
        groups, projected = projection.groups, projection.topk
    return view_turn(0, 0, *_view_sides(ours, theirs, projector), groups, projected, _SHOWN)


def _view_sides(ours: _Side, theirs: _Side, projector: Projector) -> tuple[ViewSide, ViewSide]:
    return (
        ViewSide(ours.answers, projector.pivot, ours.topk),
        ViewSide(theirs.answers, projector.source, theirs.topk),
    )


def _read(text: str, folder: str, tokenizer: Any, score: bool) -> _Side:
    rendered = render(tokenizer, [{"role": "text", "content": text}], "none")
    (turn,) = rendered.turns
    ids_T = rendered.input_ids[turn.start : turn.stop]
    answers = gather_answers([[AnswerTurn(ids_T, turn.boundaries, turn.ended)]])
    return _Side(answers, _score(folder, rendered) if score else None, int(ids_T[-1]) if turn.ended else None)


def _score(folder: str, rendered: Rendered) -> TopK:
    from fusion_ray.engines.transformers import TransformersScorer

    scorer = TransformersScorer(folder, _TOP_K, dtype="float32")
    (topk,) = scorer.score([np.asarray(rendered.input_ids)], [rendered.positions])
    return topk


def plain_groups(groups: list[GroupView]) -> list[dict[str, Any]]:
    """The groups as data that JSON holds."""
    return [asdict(group) for group in groups]


def draw_groups(groups: list[GroupView], width: int) -> list[Text | Table]:
    """Both tokenizations under each other, groups in brackets, wrapped to the terminal's width."""
    drawn: list[Text | Table] = []
    upper, lower = Text("pivot  "), Text("source ")
    for group in groups:
        ours, theirs = _cell(group.pivot), _cell(group.source)
        cell = max(len(ours), len(theirs))
        if len(upper) + cell + 3 > width and len(upper) > 7:
            drawn += [upper, lower, Text("")]
            upper, lower = Text("pivot  "), Text("source ")
        style = "" if len(group.pivot) == len(group.source) == 1 else "bold cyan"
        upper.append(f"[{ours:<{cell}}] ", style=style)
        lower.append(f"[{theirs:<{cell}}] ", style=style)
    drawn += [upper, lower]
    if any(token.top for group in groups for token in group.pivot):
        drawn += [Text(""), _distributions(groups)]
    return drawn


def _cell(tokens: tuple[TokenView, ...]) -> str:
    return "|".join(show_spaces(token.token) for token in tokens)


def _distributions(groups: list[GroupView]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("pivot token", no_wrap=True, min_width=12)
    for column in ("source says", "projected", "pivot says"):
        table.add_column(column, no_wrap=True)
    for group in groups:
        for number, token in enumerate(group.pivot):
            says = group.source[number].top if number < len(group.source) else ()
            cells = (_entries(entries) for entries in (says, token.projected, token.top))
            table.add_row(Text(show_spaces(token.token)), *cells)
    return table


def _entries(entries: tuple[Entry, ...]) -> Text:
    text = Text()
    for entry in entries:
        text.append(f"{show_spaces(entry.token)} {entry.probability:.2f}  ", style="green" if entry.is_real else "")
    return text
