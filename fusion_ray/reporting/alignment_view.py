"""One held-out answer in two tokenizations, group by group, with the distributions that alignment moved."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fusion_ray.algorithms.align.answers import Answers, AnswerTurn, gather_answers
from fusion_ray.algorithms.align.bytes import InnerTail, project
from fusion_ray.algorithms.align.groups import pair_turns
from fusion_ray.algorithms.align.projector import build_projector
from fusion_ray.algorithms.align.view import Entry, TokenView, ViewSide, view_turn
from fusion_ray.engines.scoring import answer_positions, read_topk

_MOST_TOKENS = 160
_ENTRIES = 6


def view_alignment(
    pivot_row: pa.Table, source_row: pa.Table, tokenizers: tuple[Any, Any], inner_tail: InnerTail = "unigram"
) -> dict[str, Any]:
    """Lay one document out for the page's viewer: plain data.

    Args:
        pivot_row: One usable row of the pivot's distributions.
        source_row: The same row of the source's.
        tokenizers: The pivot's and the source's.
        inner_tail: As the recipe's alignment has it.

    Returns:
        `groups`, each with its `pivot` and `source` tokens; how many pivot tokens are `shown`, and there are in all.
        A token has its `text`, the probability `real` of having come, and the `top` entries of its distribution
        (text, probability, whether it came); a pivot token also what was `projected` onto it.
    """
    pivot, source = _answers(pivot_row), _answers(source_row)
    projector = build_projector(*tokenizers, pivot_end=_end_id(pivot), source_end=_end_id(source))
    source_topk = read_topk(source_row)
    projection = project(pivot, source, source_topk, projector, inner_tail=inner_tail)
    sides = ViewSide(pivot, projector.pivot, read_topk(pivot_row)), ViewSide(source, projector.source, source_topk)
    groups: list[dict[str, Any]] = []
    shown = 0
    for turn, partner in enumerate(pair_turns(pivot, source).tolist()):
        laid_out = (
            view_turn(turn, partner, *sides, projection.groups, projection.topk, _ENTRIES) if partner >= 0 else []
        )
        for group in laid_out:
            if shown + len(group.pivot) > _MOST_TOKENS:
                return {"groups": groups, "shown": shown, "tokens": len(pivot)}
            groups.append({"pivot": _plain_tokens(group.pivot), "source": _plain_tokens(group.source)})
            shown += len(group.pivot)
    return {"groups": groups, "shown": shown, "tokens": len(pivot)}


def _answers(row: pa.Table) -> Answers:
    (read,) = row.select(["input_ids", "turn_starts", "turn_lengths", "turn_ended", "boundaries"]).to_pylist()
    ids_T = np.asarray(read["input_ids"], np.int32)[answer_positions(read["turn_starts"], read["turn_lengths"])]
    cuts = np.cumsum(read["turn_lengths"])[:-1]
    parts = zip(
        np.split(ids_T, cuts), np.split(np.asarray(read["boundaries"], np.int32), cuts), read["turn_ended"], strict=True
    )
    return gather_answers([[AnswerTurn(ids, ends, ended) for ids, ends, ended in parts]])


def _end_id(answers: Answers) -> int | None:
    ends = answers.turn_offsets[1:][answers.ended]
    return int(answers.ids_T[ends[0] - 1]) if len(ends) else None


def _plain_tokens(tokens: Sequence[TokenView]) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = []
    for token in tokens:
        plain.append({"text": show_spaces(token.token), "real": token.real, "top": _plain_entries(token.top)})
        if token.projected_real is not None:
            plain[-1] |= {"projected": _plain_entries(token.projected), "projected_real": token.projected_real}
    return plain


def _plain_entries(entries: Sequence[Entry]) -> list[list[Any]]:
    return [[show_spaces(entry.token), round(entry.probability, 4), entry.is_real] for entry in entries]


def show_spaces(text: str) -> str:
    """A token's text with its white space made visible.

    >>> show_spaces(" a\\n"), show_spaces("")
    ('·a⏎', '∅')
    """
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍") or "∅"
