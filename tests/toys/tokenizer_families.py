"""Small tokenizers of every family, trained on the spot, and answers with made-up distributions."""

import json
from functools import cache

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fusion_ray.chat.answer_tokens import AnswerTurn
from fusion_ray.chat.vocabulary import Vocabulary, read_vocabulary
from fusion_ray.fused.align.naive import Pair
from fusion_ray.fused.align.projector import Projector, build_projector
from fusion_ray.storage.topk import TopK

TEXTS = (
    "the quick brown fox jumps over the lazy dog and the dog sleeps",
    "def add(first, second):\n    return first + second\n\n\nprint(add(12, 3456))",
    "Die Würde des Menschen ist unantastbar. Über den Wolken",
    "Все счастливые семьи похожи друг на друга 你好世界 今天天气很好",
    "ice cream 🍦🍨 family 👩‍👩‍👧 e\u0301 n\u0303   spaces\t\ttabs\r\nlines",
)
END = "<|end|>"
# Tokens of these two end together nowhere within `{}{}{}`: all of it is one group.
APART = ("merges {}", "merges }{")
FAMILIES = ("byte_bpe", "byte_bpe_small", "byte_bpe_nfc", "sentencepiece", "sentencepiece_legacy", "unigram")


@cache
def toy_tokenizer(family: str) -> Tokenizer:
    """A tokenizer of this family."""
    if family.startswith("byte_bpe"):
        return _byte_bpe(280 if family.endswith("small") else 420, family.endswith("nfc"))
    if family == "unigram":
        return _unigram()
    if family in APART:
        return _merging(*family.removeprefix("merges "))
    return _sentencepiece(legacy=family.endswith("legacy"))


def end_of(tokenizer: Tokenizer) -> int:
    """Its end-of-turn token."""
    found = tokenizer.token_to_id(END)
    assert found is not None
    return int(found)


def toy_answer(tokenizer: Tokenizer, text: str, ended: bool = True) -> AnswerTurn:
    """A text as an answer, boundaries counted in bytes; SentencePiece's space folds into the first token."""
    vocabulary = read_toy(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    raw = text.encode()
    lengths = [len(vocabulary.token(token_id)) for token_id in ids]
    extra = sum(lengths) - len(raw)
    assert extra in (0, 1), (text, extra)
    boundaries = np.clip(np.cumsum([0, *lengths])[1:] - extra, 0, len(raw)).astype(np.int32)
    if ended:
        ids, boundaries = [*ids, end_of(tokenizer)], np.append(boundaries, len(raw)).astype(np.int32)
    return AnswerTurn(np.array(ids, dtype=np.int32), boundaries, ended)


@cache
def read_toy(tokenizer: Tokenizer) -> Vocabulary:
    """Its vocabulary, read once."""
    return read_vocabulary(tokenizer)


@cache
def toy_projector(pivot: str, source: str) -> Projector:
    """Tables of a pair of families, with made-up corpus counts."""
    first, second = toy_tokenizer(pivot), toy_tokenizer(source)
    counts_U = np.random.default_rng(1).integers(0, 50, size=len(read_toy(second)))
    return build_projector(first, second, pivot_end=end_of(first), source_ends=[end_of(second)], counts_U=counts_U)


@cache
def toy_pair(pivot: str, source: str) -> Pair:
    """The same for the oracle."""
    tables = toy_projector(pivot, source)
    counts_U = np.random.default_rng(1).integers(0, 50, size=len(tables.source))
    first, second = toy_tokenizer(pivot), toy_tokenizer(source)
    remembered: dict[bytes, list[int]] = {}

    def tokenize(text: bytes) -> list[int]:
        if text not in remembered:
            remembered[text] = tables.encoder.encode([text])[0]
        return remembered[text]

    return Pair(tables.pivot, tables.source, tokenize, end_of(first), frozenset({end_of(second)}), counts_U.tolist())


def toy_topk(ids_T: np.ndarray, vocabulary: int, top_k: int, rng: np.random.Generator) -> TopK:
    """Peaked random distributions, in which the real token is mostly likely but not always kept."""
    scores_TV = rng.normal(scale=3.0, size=(len(ids_T), vocabulary))
    scores_TV[np.arange(len(ids_T)), ids_T] += rng.choice([0.0, 6.0, 12.0], size=len(ids_T))
    top = scores_TV.max(axis=1, keepdims=True)
    logprobs_TV = scores_TV - top - np.log(np.exp(scores_TV - top).sum(axis=1, keepdims=True))
    kept_TK = np.argsort(-logprobs_TV, axis=1, kind="stable")[:, :top_k]
    return TopK(
        kept_TK.astype(np.int32),
        np.take_along_axis(logprobs_TV, kept_TK, axis=1).astype(np.float32),
        logprobs_TV[np.arange(len(ids_T)), ids_T].astype(np.float32),
    )


def _byte_bpe(size: int, nfc: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=alphabet, special_tokens=["<s>", END], show_progress=False
        ),
    )
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def _merging(left: str, right: str) -> Tokenizer:
    """Bytes, and one token of two of them."""
    letters = [END, *sorted(pre_tokenizers.ByteLevel.alphabet()), left + right]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [(left, right)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def _sentencepiece(legacy: bool) -> Tokenizer:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    words = [word for text in TEXTS[:3] for word in text.split(" ")]
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=["<unk>", "<s>", END, *byte_tokens], show_progress=False, limit_alphabet=60
    )
    tokenizer.train_from_iterator([f"▁{word}" for word in words], trainer)
    return _without_added(tokenizer, byte_tokens)


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=["<unk>", "<s>", END], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _without_added(tokenizer: Tokenizer, tokens: list[str]) -> Tokenizer:
    """Byte tokens belong to the model's vocabulary, they are no added tokens."""
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [item for item in data["added_tokens"] if item["content"] not in set(tokens)]
    return Tokenizer.from_str(json.dumps(data))
