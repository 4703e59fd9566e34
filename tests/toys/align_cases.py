"""Worked examples of alignment: vocabularies spelt out, texts, and made-up distributions."""

from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, models

from fusion_ray.chat.answer_tokens import AnswerTurn
from fusion_ray.fused.align.naive import Pair
from fusion_ray.fused.align.projector import Projector, build_projector
from fusion_ray.storage.topk import TopK

END = "<end>"
LETTERS = ("u", "n", "t", "i", "l", "b", "e", "d", "a", "!", "?")
MERGES = {  # pieces that BPE joins, first ones first
    "pivot": (("u", "n"), ("t", "i"), ("ti", "l"), ("un", "til"), ("b", "e"), ("be", "d")),
    "source": (("u", "n"), ("un", "t"), ("i", "l"), ("b", "a"), ("ba", "d"), ("b", "e")),
}


class Case(NamedTuple):
    """A text cut twice, and the probabilities that the source gives; the real token's comes first."""

    pivot: tuple[str, ...]
    source: tuple[str, ...]
    rows: tuple[dict[str, float], ...]


CASES = {
    "one to one": Case(("b", "!"), ("b", "!"), ({"b": 0.6, "ba": 0.3}, {"!": 0.5, "?": 0.4}, {END: 0.9, "u": 0.05})),
    "one to several": Case(
        ("until", "!"), ("unt", "il", "!"),
        ({"unt": 0.5, "un": 0.3, "bad": 0.1}, {"il": 0.8, "i": 0.1, END: 0.05}, {"!": 0.7, "?": 0.2}, {END: 0.9}),
    ),
    "several to one": Case(
        ("b", "a", "d"), ("bad",), ({"bad": 0.6, "be": 0.2, "b": 0.1}, {END: 0.8, "!": 0.1}),
    ),
    "several to several": Case(
        ("un", "til"), ("unt", "il"),
        ({"unt": 0.5, "un": 0.2, "u": 0.1, "bad": 0.1}, {"il": 0.6, "i": 0.2, "l": 0.1}, {END: 0.7, "?": 0.2}),
    ),
    "a real token that was not kept": Case(
        ("bed", "?"), ("be", "d", "?"), ({"be": 0.02, "un": 0.9}, {"d": 0.5, "a": 0.3}, {"?": 0.5}, {END: 1.0}),
    ),
}  # fmt: skip


class Parts(NamedTuple):
    """A case as arrays and tables."""

    pivot: AnswerTurn
    source: AnswerTurn
    topk: TopK
    projector: Projector
    pair: Pair
    pivot_words: tuple[str, ...]
    source_words: tuple[str, ...]


def case_tokenizer(side: str) -> Tokenizer:
    """The vocabulary of one side: letters, merged pieces, the end."""
    words = (*LETTERS, *("".join(merge) for merge in MERGES[side]), END)
    tokenizer = Tokenizer(models.BPE({word: token_id for token_id, word in enumerate(words)}, list(MERGES[side])))
    tokenizer.add_special_tokens([END])
    return tokenizer


def case_parts(name: str) -> Parts:
    """Lay a case out; the source's tail is shared out evenly."""
    case = CASES[name]
    first, second = case_tokenizer("pivot"), case_tokenizer("source")
    ours, theirs = (tuple(sorted(t.get_vocab(), key=t.get_vocab().__getitem__)) for t in (first, second))
    projector = build_projector(first, second, pivot_end=len(ours) - 1, source_ends=[len(theirs) - 1])
    tables = projector.pivot, projector.source
    pair = Pair(
        *tables, lambda text: projector.encoder.encode([text])[0], len(ours) - 1, len(theirs) - 1, [1.0] * len(theirs)
    )
    topk = _topk(case, theirs)
    return Parts(_turn(case.pivot, ours), _turn(case.source, theirs), topk, projector, pair, ours, theirs)


def _turn(pieces: tuple[str, ...], words: tuple[str, ...]) -> AnswerTurn:
    ids = [words.index(piece) for piece in (*pieces, END)]
    ends = np.cumsum([len(piece) for piece in pieces])
    return AnswerTurn(np.array(ids, np.int32), np.append(ends, ends[-1]).astype(np.int32), True)


def _topk(case: Case, words: tuple[str, ...]) -> TopK:
    width = 4
    ids_TK = np.full((len(case.rows), width), -1, np.int32)
    logprobs_TK = np.full((len(case.rows), width), -np.inf, np.float32)
    for t, row in enumerate(case.rows):
        kept = sorted(((mass, token) for token, mass in row.items() if mass > 0.04), reverse=True)
        ids_TK[t, : len(kept)] = [words.index(token) for _, token in kept]
        logprobs_TK[t, : len(kept)] = np.log([mass for mass, _ in kept])
    real_T = np.log([next(iter(row.values())) for row in case.rows]).astype(np.float32)
    return TopK(ids_TK, logprobs_TK, real_T)
