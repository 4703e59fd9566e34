"""How far exact alignment is from full marginalisation over all token strings, where that can be had.

    python bench/marginal.py

A source with eight tokens and a bigram model defines a distribution over texts. At the start of a group the pivot's
next token has an exact distribution: that of the first pivot token of all continuations, whatever source tokens spell
them. Alignment knows the source's distributions along the real path only. Printed is the mean total variation distance
between both over the starts of groups in sampled texts, for models from nearly certain to nearly uniform, with three
and with all eight entries kept (what is not kept is tail, and the exact distribution has none).
"""

from collections import defaultdict
from functools import cache

import numpy as np
from measurement import Measurement, report
from tokenizers import Tokenizer, models

from fusion_ray.algorithms.align.answers import AnswerTurn, gather_answers
from fusion_ray.algorithms.align.bytes import project
from fusion_ray.algorithms.align.projector import build_projector
from fusion_ray.algorithms.topk import TopK

PIVOT_MERGES = [("a", "b"), ("c", "a"), ("ab", "c"), ("b", "b")]
SOURCE_MERGES = [("b", "c"), ("a", "a"), ("ca", "b"), ("c", "a"), ("bc", "a")]
SHARPNESS = (0.05, 0.2, 1.0)
MODELS, ROWS, TOKENS, LOOKAHEAD = 8, 10, 30, 6


def main() -> None:
    for sharpness in SHARPNESS:
        for top_k in (3, 8):
            found = [measure(sharpness, top_k, np.random.default_rng(seed)) for seed in range(MODELS)]
            distances = np.concatenate(found)
            case = f"{MODELS} models of Dirichlet({sharpness}) bigrams, k = {top_k}, {len(distances)} group starts"
            report(Measurement("marginal", case, "mean total variation", float(distances.mean())))


def measure(sharpness: float, top_k: int, rng: np.random.Generator) -> np.ndarray:
    """Distance at the start of every group of texts sampled from a random bigram model of source tokens."""
    pivot, source = tokenizer(PIVOT_MERGES), tokenizer(SOURCE_MERGES)
    words = sorted(source.get_vocab(), key=source.get_vocab().__getitem__)
    chance_UU = rng.dirichlet([sharpness] * len(words), size=len(words))
    projector = build_projector(pivot, source)

    @cache
    def exact(last: int) -> dict[int, float]:
        found: dict[int, float] = defaultdict(float)
        for text, mass in continuations(last, words, chance_UU).items():
            found[pivot.encode(text).ids[0]] += mass
        return found

    distances = []
    for _ in range(ROWS):
        sampled = [int(rng.integers(len(words)))]
        for _ in range(TOKENS):
            sampled.append(int(rng.choice(len(words), p=chance_UU[sampled[-1]])))
        text = "".join(words[token] for token in sampled[1:])
        ours, theirs = turn(pivot, text), AnswerTurn(*spans(sampled[1:], words), False)
        logprobs_SU = np.log(np.maximum(chance_UU[sampled[:-1]], 1e-30))
        projection = project(
            gather_answers([[ours]]), gather_answers([[theirs]]), keep(logprobs_SU, sampled[1:], top_k), projector,
            top_k=len(words),
        )  # fmt: skip
        for p, s in zip(projection.groups.pivot_start, projection.groups.source_start, strict=True):
            distances.append(total_variation(projection.topk, int(p), exact(sampled[int(s)])))
    return np.array(distances)


def continuations(last: int, words: list[str], chance_UU: np.ndarray) -> dict[str, float]:
    """Texts of at least LOOKAHEAD letters that may follow a token, with their mass."""
    done: dict[str, float] = defaultdict(float)
    open_: dict[tuple[int, str], float] = {(last, ""): 1.0}
    while open_:
        grown: dict[tuple[int, str], float] = defaultdict(float)
        for (before, text), mass in open_.items():
            for token, word in enumerate(words):
                share = mass * float(chance_UU[before, token])
                if len(text) + len(word) >= LOOKAHEAD:
                    done[text + word] += share
                elif share > 0:
                    grown[(token, text + word)] += share
        open_ = grown
    return done


def tokenizer(merges: list[tuple[str, str]]) -> Tokenizer:
    """Byte-pair encoding of texts in a, b and c."""
    words = ["a", "b", "c", *("".join(merge) for merge in merges)]
    kept = [merge for merge in merges if merge[0] in words and merge[1] in words]
    return Tokenizer(models.BPE({word: token_id for token_id, word in enumerate(words)}, kept))


def turn(pivot: Tokenizer, text: str) -> AnswerTurn:
    """The pivot's own tokenization of a text."""
    encoding = pivot.encode(text)
    return AnswerTurn(
        np.array(encoding.ids, np.int32), np.array([stop for _, stop in encoding.offsets], np.int32), False
    )


def spans(ids: list[int], words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and boundaries of sampled tokens."""
    return np.array(ids, np.int32), np.cumsum([len(words[token]) for token in ids]).astype(np.int32)


def keep(logprobs_SU: np.ndarray, real: list[int], top_k: int) -> TopK:
    """The most probable entries of each row."""
    ids_SK = np.argsort(-logprobs_SU, axis=1, kind="stable")[:, :top_k]
    rows = np.arange(len(real))
    kept_SK = np.take_along_axis(logprobs_SU, ids_SK, 1).astype(np.float32)
    return TopK(ids_SK.astype(np.int32), kept_SK, logprobs_SU[rows, real].astype(np.float32))


def total_variation(topk: TopK, position: int, exact: dict[int, float]) -> float:
    """Half the absolute differences; the projected tail counts as one more outcome, of which exact has none."""
    pairs = zip(topk.ids_TK[position].tolist(), np.exp(topk.logprobs_TK[position]).tolist(), strict=True)
    found = {token: mass for token, mass in pairs if token >= 0}
    tail = max(0.0, 1.0 - sum(found.values()))
    return 0.5 * (
        tail + sum(abs(found.get(token, 0.0) - exact.get(token, 0.0)) for token in found.keys() | exact.keys())
    )


if __name__ == "__main__":
    main()
