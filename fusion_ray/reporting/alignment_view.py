"""One held-out answer in two tokenizations, group by group, with the distributions that alignment moved."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from fusion_ray.algorithms.align.answers import Answers, AnswerTurn, gather_answers
from fusion_ray.algorithms.align.bytes import InnerTail, project
from fusion_ray.algorithms.align.projector import build_projector
from fusion_ray.algorithms.align.vocabulary import Vocabulary
from fusion_ray.algorithms.topk import TopK
from fusion_ray.engines.scoring import answer_positions, read_topk

_MOST_TOKENS = 160
_MOST_ENTRIES = 6


def view_alignment(
    pivot_row: pa.Table, source_row: pa.Table, tokenizers: tuple[Any, Any], inner_tail: InnerTail = "unigram"
) -> dict[str, Any]:
    """Lay one document out for the viewer: plain data.

    Args:
        pivot_row: One usable row of the pivot's distributions.
        source_row: The same row of the source's.
        tokenizers: The pivot's and the source's.
        inner_tail: As the recipe's alignment has it.

    Returns:
        `groups`, each with its `pivot` and `source` tokens. A token has its `text`, the probability `real` of having
        come, and the `top` entries of its distribution; a pivot token also what was `projected` onto it.
    """
    pivot, source = _answers(pivot_row), _answers(source_row)
    projector = build_projector(*tokenizers, pivot_end=_end_id(pivot), source_end=_end_id(source))
    pivot_topk, source_topk = read_topk(pivot_row), read_topk(source_row)
    projection = project(pivot, source, source_topk, projector, inner_tail=inner_tail)
    groups = []
    for g in range(len(projection.groups)):
        places = projection.groups
        mine = range(int(places.pivot_start[g]), int(places.pivot_stop[g]))
        theirs = range(int(places.source_start[g]), int(places.source_stop[g]))
        if mine.stop > _MOST_TOKENS:
            break
        tokens = _tokens(mine, pivot, pivot_topk, projector.pivot)
        for token, t in zip(tokens, mine, strict=True):
            if projection.covered_T[t]:
                token["projected"] = _entries(projection.topk, t, projector.pivot)
                token["projected_real"] = _probability(projection.topk.real_logprobs_T[t])
        groups.append({"pivot": tokens, "source": _tokens(theirs, source, source_topk, projector.source)})
    return {"groups": groups, "shown": sum(len(group["pivot"]) for group in groups), "tokens": len(pivot)}


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


def _tokens(positions: Iterable[int], answers: Answers, topk: TopK, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    return [
        {
            "text": show_bytes(vocabulary.token(int(answers.ids_T[t]))),
            "real": _probability(topk.real_logprobs_T[t]),
            "top": _entries(topk, t, vocabulary),
        }
        for t in positions
    ]


def _entries(topk: TopK, t: int, vocabulary: Vocabulary) -> list[list[Any]]:
    return [
        [show_bytes(vocabulary.token(int(token))), _probability(logprob)]
        for token, logprob in zip(topk.ids_TK[t, :_MOST_ENTRIES], topk.logprobs_TK[t, :_MOST_ENTRIES], strict=True)
        if token >= 0
    ]


def _probability(logprob: float) -> float:
    return round(float(np.exp(logprob)), 4)


def show_bytes(raw: bytes) -> str:
    """Bytes of a token as something to read: spaces and line ends visible, bytes that are no text as <NN>.

    >>> show_bytes(b" a\\n"), show_bytes(b"\\xe2"), show_bytes(b"")
    ('·a⏎', '<E2>', '∅')
    """
    text = "".join(
        f"<{ord(character) - 0xDC00:02X}>" if 0xDC80 <= ord(character) <= 0xDCFF else character
        for character in raw.decode("utf-8", errors="surrogateescape")
    )
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍") or "∅"
