"""The pivot's own tokenization of some bytes as they stand in the middle of a text."""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from fusion_ray.chat.vocabulary import Vocabulary, byte_alphabet, describe, walk


class MidTextEncoder:
    """Tokenizes byte strings without what a tokenizer adds at the beginning of a text.

    The tokenizer is copied without its dummy prefix space, post-processing, truncation and stripping, and it reads
    special tokens as plain text: a leaf that spells `</s>` is text. Bytes that are no UTF-8 (a token that holds part
    of a character) are written with byte tokens.
    """

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary) -> None:
        data = _without_text_start(describe(tokenizer))
        self._backend = Tokenizer.from_str(json.dumps(data))
        self._backend.encode_special_tokens = True
        self._vocabulary = vocabulary
        self._byte_level = any(part["type"] == "ByteLevel" for part in walk(data["pre_tokenizer"], data["decoder"]))
        self._letters = {byte: letter for letter, byte in byte_alphabet().items()}
        self._byte_ids = _byte_tokens(self._backend)

    def encode(self, strings: Sequence[bytes]) -> list[list[int]]:
        """Pivot tokens of each string; empty where the pivot cannot write it."""
        texts = [_as_text(string) for string in strings]
        whole = [text for text in texts if text]
        encoded = iter(self._backend.encode_batch_fast(whole, add_special_tokens=False))
        ids = [
            next(encoded).ids if text else self._encode_pieces(string)
            for text, string in zip(texts, strings, strict=True)
        ]
        return [self._checked(found, string) for found, string in zip(ids, strings, strict=True)]

    def _checked(self, ids: list[int], string: bytes) -> list[int]:
        """Drop a tokenization with an unknown token, or (unless the pivot normalises) of other bytes."""
        tokens = self._vocabulary.tokens
        if not all(tokens[token_id] for token_id in ids):
            return []
        if self._vocabulary.lossless and b"".join([tokens[token_id] for token_id in ids]) != string:
            return []
        return ids

    def _encode_pieces(self, string: bytes) -> list[int]:
        if self._byte_level:
            word = "".join(self._letters[byte] for byte in string)
            return [token.id for token in self._backend.model.tokenize(word)]
        ids: list[int] = []
        for text, raw in _split_invalid(string):
            found = self._backend.encode(text, add_special_tokens=False).ids if text else self._encode_bytes(raw)
            if not found:
                return []
            ids += found
        return ids

    def _encode_bytes(self, raw: bytes) -> list[int]:
        ids = [self._byte_ids.get(byte) for byte in raw]
        return [token_id for token_id in ids if token_id is not None] if None not in ids else []


def _without_text_start(data: dict[str, Any]) -> dict[str, Any]:
    data |= {"post_processor": None, "truncation": None, "padding": None}
    data["normalizer"] = _without(data["normalizer"], ("Prepend", "Strip"), "normalizers")
    for part in walk(data["normalizer"], data["pre_tokenizer"]):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        if part["type"] == "ByteLevel" and "add_prefix_space" in part:
            part["add_prefix_space"] = False
    return data


def _without(part: dict[str, Any] | None, kinds: tuple[str, ...], key: str) -> dict[str, Any] | None:
    if part is None or part["type"] in kinds:
        return None
    if part["type"] != "Sequence":
        return part
    return {"type": "Sequence", key: [inner for inner in part[key] if inner["type"] not in kinds]}


def _byte_tokens(backend: Tokenizer) -> dict[int, int]:
    found = {byte: backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    return {byte: token_id for byte, token_id in found.items() if token_id is not None}


def _as_text(string: bytes) -> str | None:
    try:
        return string.decode()
    except UnicodeDecodeError:
        return None


def _split_invalid(string: bytes) -> list[tuple[str, bytes]]:
    """Cut a string into its longest valid texts (text, b"") and the bytes between them ("", bytes)."""
    parts: list[tuple[str, bytes]] = []
    while string:
        try:
            parts.append((string.decode(), b""))
            break
        except UnicodeDecodeError as error:
            if error.start:
                parts.append((string[: error.start].decode(), b""))
            parts.append(("", string[error.start : error.end]))
            string = string[error.end :]
    return parts
