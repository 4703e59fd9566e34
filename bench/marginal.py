"""How far exact alignment is from full marginalisation over all token strings, where that can be had.

    python bench/marginal.py           # both parts, some minutes
    python bench/marginal.py bigrams   # a source so small that the truth can be summed
    python bench/marginal.py real      # a real model is asked what follows each leaf; see real_models.py

At the start of a group the pivot's next token has an exact distribution: that of the first pivot token of all
continuations, whatever source tokens spell them. Alignment knows the source's distributions along the real path only.
Printed is the mean total variation distance between both over the starts of groups.

bigrams: texts of models with eight tokens, from nearly certain to nearly uniform, with three and with all eight
entries kept (what is not kept is tail, and the exact distribution has none). real: the ten most probable next tokens of
SmolLM2-135M-Instruct at positions where all pivots begin a token; it is asked for its next token after each of them, so
that the truth looks one source token past the leaf. Both sides are made to sum to one.
"""

import argparse
from collections import defaultdict
from functools import cache
from typing import Any

import numpy as np
import torch
from chats import chats
from measurement import Measurement, report
from real_models import real_model
from real_tokenizers import real_tokenizer
from scored import answers_of
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_ray.chat.answer_tokens import AnswerTokens, AnswerTurn, gather_answers
from fusion_ray.fused.align.exact import project
from fusion_ray.fused.align.groups import FIRST, find_groups, pair_turns
from fusion_ray.fused.align.projector import TEXT, Projector, build_projector
from fusion_ray.storage.topk import TopK

REAL_PIVOTS = ("llama2", "mistral_v1", "llama3_1", "qwen3", "gemma3", "deepseek_v3")
REAL_TEXTS, REAL_POSITIONS, REAL_TOP_K, FOLLOWING, CONTEXT = 24, 300, 10, 256, 96
PIVOT_MERGES = [("a", "b"), ("c", "a"), ("ab", "c"), ("b", "b")]
SOURCE_MERGES = [("b", "c"), ("a", "a"), ("ca", "b"), ("c", "a"), ("bc", "a")]
SHARPNESS = (0.05, 0.2, 1.0)
MODELS, ROWS, TOKENS, LOOKAHEAD = 8, 10, 30, 6


def main() -> None:
    parts = {"bigrams": measure_bigrams, "real": measure_real}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    chosen = parser.parse_args().parts or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(parts)}")
    for part in chosen:
        parts[part]()


def measure_bigrams() -> None:
    """A source of eight tokens."""
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


def measure_real() -> None:
    """SmolLM2, and the vocabularies of well-known models as the pivot's."""
    texts = [row[-1]["content"] for row in chats()[:REAL_TEXTS]]
    model = AutoModelForCausalLM.from_pretrained(real_model("smollm2"), dtype=torch.float32)
    source = AutoTokenizer.from_pretrained(real_model("smollm2")).backend_tokenizer
    theirs = answers_of(source, texts)
    projectors = {name: build_projector(real_tokenizer(name), source) for name in REAL_PIVOTS}
    shared = set.intersection(*(_starts(answers_of(real_tokenizer(name), texts), theirs) for name in REAL_PIVOTS))
    turn_T = np.searchsorted(theirs.turn_offsets, np.arange(len(theirs)), side="right") - 1
    distances: dict[str, list[float]] = {name: [] for name in REAL_PIVOTS}
    for s in np.random.default_rng(0).choice(sorted(shared), size=REAL_POSITIONS, replace=False).tolist():
        before = theirs.ids_T[max(int(theirs.turn_offsets[turn_T[s]]), s - CONTEXT) : s]
        leaves, following = look_ahead(model, before)
        for name, projector in projectors.items():
            rows = [(projector.strings.tokens_of(leaf).tolist(), mass) for leaf, mass in leaves]
            distances[name].append(distance(rows, two_tokens(leaves, following, projector)))
    for name, found in distances.items():
        case = f"{name} <- smollm2, {len(found)} group starts"
        report(Measurement("marginal", case, "mean total variation", float(np.mean(found))))


Ways = list[tuple[int, float]]  # tokens and their probabilities
Spelt = list[tuple[list[int], float]]  # the same, in pivot tokens


def _starts(ours: AnswerTokens, theirs: AnswerTokens) -> set[int]:
    """Source positions where a group begins, but for the first of a turn."""
    groups = find_groups(ours, theirs, pair_turns(ours, theirs), same_vocabulary=False)
    return set(groups.source_start[(groups.place & FIRST) == 0].tolist())


@torch.inference_mode()
def look_ahead(model: Any, before: np.ndarray) -> tuple[Ways, list[Ways]]:
    """The most probable next tokens after a text, and after each of them the most probable ones again."""
    asked = model(torch.tensor(before[None].astype(np.int64)), use_cache=True)
    first = torch.softmax(asked.logits[0, -1], -1).topk(REAL_TOP_K)
    cache = asked.past_key_values
    cache.batch_repeat_interleave(REAL_TOP_K)
    then = torch.softmax(model(first.indices[:, None], past_key_values=cache).logits[:, -1], -1).topk(FOLLOWING)
    leaves = list(zip(first.indices.tolist(), first.values.tolist(), strict=True))
    rows = zip(then.indices.tolist(), then.values.tolist(), strict=True)
    return leaves, [list(zip(ids, chances, strict=True)) for ids, chances in rows]


def two_tokens(leaves: Ways, following: list[Ways], projector: Projector) -> Spelt:
    """Pivot tokens of each leaf with what may follow it."""
    told = zip(leaves, following, strict=True)
    pairs = [(leaf, then, mass * part) for (leaf, mass), row in told for then, part in row]
    token = projector.source.token
    rows = projector.encode_keys([bytes([TEXT]) + token(leaf) + token(then) for leaf, then, _ in pairs])
    return [(row, mass) for row, (_, _, mass) in zip(rows, pairs, strict=True)]


def distance(ours: Spelt, truth: Spelt) -> float:
    """Total variation of the first pivot tokens, each side made to sum to one."""
    sides: tuple[dict[int, float], dict[int, float]] = (defaultdict(float), defaultdict(float))
    for side, rows in zip(sides, (ours, truth), strict=True):
        known = sum(mass for tokens, mass in rows if tokens)
        for tokens, mass in rows:
            if tokens:
                side[tokens[0]] += mass / known
    return 0.5 * sum(abs(sides[0].get(key, 0.0) - sides[1].get(key, 0.0)) for key in sides[0].keys() | sides[1].keys())


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
