"""Answers of real tokenizers with distributions: of a small real model, of bigrams, or made up."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fusion_ray.chat.answer_tokens import AnswerTokens, AnswerTurn, gather_answers
from fusion_ray.chat.token_ends import token_ends
from fusion_ray.chat.vocabulary import Vocabulary, read_vocabulary
from fusion_ray.storage.topk import TopK


def answers_of(tokenizer: Tokenizer, texts: list[str]) -> AnswerTokens:
    """Each text as a row of one turn that is all answer, boundaries as the distributions stage counts them."""
    vocabulary = read_vocabulary(tokenizer)
    rows = []
    for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        raw = text.encode()
        ends_T = np.clip(token_ends(encoding, text, raw, vocabulary).ends_T, 0, len(raw))
        ends_T[-1] = len(raw)
        rows.append(
            [AnswerTurn(np.array(encoding.ids, np.int32), np.maximum.accumulate(ends_T).astype(np.int32), False)]
        )
    return gather_answers(rows)


def made_up(answers: AnswerTokens, vocabulary: Vocabulary, top_k: int, rng: np.random.Generator) -> TopK:
    """Random kept tokens with random peaked probabilities; the real token is kept about two times in three."""
    usable = np.flatnonzero((np.diff(vocabulary.offsets) > 0) & ~vocabulary.is_special_V)
    ids_TK = rng.choice(usable, size=(len(answers), top_k)).astype(np.int32)
    keeps = rng.random(len(answers)) < 2 / 3
    ids_TK[keeps, 0] = answers.ids_T[keeps]
    _make_distinct(ids_TK, usable)
    scores_TL = rng.gumbel(size=(len(answers), top_k + 2)) * 3.0
    logprobs_TL = scores_TL - np.logaddexp.reduce(scores_TL, axis=1, keepdims=True)
    order = np.argsort(-logprobs_TL[:, :top_k], axis=1)
    is_real_TK = ids_TK == answers.ids_T[:, None]
    # What is not kept is less likely than what is.
    outside_T = np.minimum(logprobs_TL[:, top_k], logprobs_TL[:, :top_k].min(axis=1)) - 0.1
    inside_T = np.where(is_real_TK, logprobs_TL[:, :top_k], -np.inf).max(axis=1)
    real_T = np.where(is_real_TK.any(axis=1), inside_T, outside_T)
    return TopK(
        np.take_along_axis(ids_TK, order, 1),
        np.take_along_axis(logprobs_TL, order, 1).astype(np.float32),
        real_T.astype(np.float32),
    )


def bigrams(answers: AnswerTokens, top_k: int) -> TopK:
    """A bigram model of these very texts, 80 % bigram and 20 % unigram: every row as quick to make as to look up."""
    following: dict[int, Counter[int]] = defaultdict(Counter)
    ids = answers.ids_T.tolist()
    before = [-1, *ids[:-1]]
    for start in answers.turn_offsets[:-1].tolist():
        before[start] = -1
    alone = Counter(ids)
    for last, token in zip(before, ids, strict=True):
        following[last][token] += 1
    rows = {last: _bigram_row(seen, alone, top_k) for last, seen in following.items()}
    real = [
        np.log(0.8 * following[last][token] / following[last].total() + 0.2 * alone[token] / len(ids))
        for last, token in zip(before, ids, strict=True)
    ]
    return TopK(
        np.array([rows[last][0] for last in before], np.int32),
        np.array([rows[last][1] for last in before], np.float32),
        np.array(real, np.float32),
    )


def score_with_model(folder: str, texts: list[str], top_k: int) -> tuple[Tokenizer, AnswerTokens, TopK]:
    """Score texts with a real model, each after its beginning-of-text token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    answers = answers_of(tokenizer.backend_tokenizer, texts)
    parts = []
    for start, stop in zip(answers.turn_offsets[:-1], answers.turn_offsets[1:], strict=True):
        parts.append(_score_row(model, tokenizer.bos_token_id, answers.ids_T[start:stop], top_k))
    return tokenizer.backend_tokenizer, answers, TopK(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _score_row(model: Any, first: int, ids_T: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import torch

    with torch.inference_mode():
        read = torch.tensor([[first, *ids_T[:-1].tolist()]])
        logprobs_TV = torch.log_softmax(model(read).logits[0].float(), dim=-1)
        kept = logprobs_TV.topk(top_k, dim=-1)
        real_T = logprobs_TV.gather(1, torch.tensor(ids_T, dtype=torch.int64)[:, None])[:, 0]
    return kept.indices.numpy().astype(np.int32), kept.values.numpy(), real_T.numpy()


def _bigram_row(seen: Counter[int], alone: Counter[int], top_k: int) -> tuple[list[int], list[float]]:
    total, everything = seen.total(), alone.total()
    candidates = {token for token, _ in seen.most_common(top_k)} | {token for token, _ in alone.most_common(top_k)}
    scored = sorted(((0.8 * seen[t] / total + 0.2 * alone[t] / everything, -t) for t in candidates), reverse=True)
    kept = scored[:top_k]
    missing = top_k - len(kept)
    return [-t for _, t in kept] + [-1] * missing, [float(np.log(p)) for p, _ in kept] + [-np.inf] * missing


def _make_distinct(ids_TK: np.ndarray, usable: np.ndarray) -> None:
    """Replace repeated ids of a row by their neighbours in the vocabulary."""
    for row in ids_TK:
        while len(set(row.tolist())) < len(row):
            values, counts = np.unique(row, return_counts=True)
            repeated = values[counts > 1][0]
            at = np.flatnonzero(row == repeated)[-1]
            row[at] = usable[(np.searchsorted(usable, row[at]) + 1) % len(usable)]
