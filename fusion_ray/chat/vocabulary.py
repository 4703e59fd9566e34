"""The bytes that every token id of a tokenizer stands for: the one table of them, for rendering and alignment alike.

It is read from the tokenizer's own description, never guessed from how its tokens are spelt.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fusion_ray.errors import RecipeError


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A table id -> bytes.

    A special token keeps the bytes of its literal text, but never stands for text; an id that no token has, and the
    unknown token, have no bytes.

    Attributes:
        flat_bytes: The bytes of all tokens, one after the other, uint8.
        offsets: Token v is `flat_bytes[offsets[v]:offsets[v + 1]]`, int64 [V + 1].
        is_special_V: Control tokens: beginning and end of text or turn, padding, unknown.
        lossless: The tokens of a text, joined, are always the text; false where a normaliser may change it.
        added: Ids of the tokens that were added to the model's own, special or not.
        unjoinable: The kind of a tokenizer whose tokens never join to the text (WordPiece, end-of-word suffixes); empty
            for all others.
    """

    flat_bytes: np.ndarray
    offsets: np.ndarray
    is_special_V: np.ndarray
    lossless: bool
    added: frozenset[int] = frozenset()
    unjoinable: str = ""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def token(self, token_id: int) -> bytes:
        """The bytes of one token."""
        return self.flat_bytes[self.offsets[token_id] : self.offsets[token_id + 1]].tobytes()

    def text(self, ids: Iterable[int]) -> bytes:
        """The bytes of some tokens, joined."""
        return b"".join(self.token(int(token_id)) for token_id in ids)

    @cached_property
    def tokens(self) -> list[bytes]:
        """The bytes of every token, by id."""
        whole, cuts = self.flat_bytes.tobytes(), self.offsets.tolist()
        return [whole[start:stop] for start, stop in pairwise(cuts)]

    @cached_property
    def lengths_V(self) -> np.ndarray:
        """How many bytes each token has, int64."""
        return np.diff(self.offsets)

    def same_as(self, other: "Vocabulary") -> bool:
        """Whether every id means the same in both."""
        return (
            np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.flat_bytes, other.flat_bytes)
            and np.array_equal(self.is_special_V, other.is_special_V)
        )


def make_vocabulary(
    tokens: Iterable[bytes],
    special: Iterable[int] = (),
    lossless: bool = True,
    added: Iterable[int] = (),
    unjoinable: str = "",
) -> Vocabulary:
    """Build a vocabulary from the bytes of its tokens in the order of their ids."""
    pieces = list(tokens)
    offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
    is_special_V = np.zeros(len(pieces), dtype=bool)
    is_special_V[list(special)] = True
    # A copy, because compiled loops take read-only arrays for another type and compile once more.
    flat_bytes = np.frombuffer(b"".join(pieces), dtype=np.uint8).copy()
    return Vocabulary(flat_bytes, offsets, is_special_V, lossless, frozenset(added), unjoinable)


# Weak, so that a process that opens many tokenizers does not keep them all.
_READ: WeakKeyDictionary[Any, Vocabulary] = WeakKeyDictionary()


def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """Read the bytes of every token from a fast tokenizer's decoder, normaliser and pre-tokenizer.

    A tokenizer object is read once.

    Byte-level alphabets, word-start markers (`▁`) and byte tokens (`<0xNN>`) are told apart by the tokenizer's
    description, never by its name. Added tokens stand for their literal text.

    Args:
        tokenizer: A Hugging Face fast tokenizer, or a `tokenizers.Tokenizer`.

    Raises:
        RecipeError: A slow tokenizer.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        return _read(tokenizer)
    if tokenizer not in _READ:
        _READ[tokenizer] = _read(tokenizer)
    return _READ[tokenizer]


def _read(tokenizer: Any) -> Vocabulary:
    data = describe(tokenizer)
    model = data["model"]
    known = list_tokens(data)
    added = {item["id"]: item for item in data["added_tokens"]}
    unknown = _unknown_token(model, known)
    read = _reader(data)
    pieces = {token_id: read(token) for token, token_id in known}
    for token_id, item in added.items():
        in_model = token_id in pieces and not item["special"] and not _is_byte_level(data)
        pieces[token_id] = read(item["content"]) if in_model else item["content"].encode()
    special = {token_id for token_id, item in added.items() if item["special"]} | unknown
    for token_id in unknown:
        pieces[token_id] = b""
    size = max(pieces, default=-1) + 1
    tokens = (pieces.get(token_id, b"") for token_id in range(size))
    return make_vocabulary(tokens, special, _is_lossless(data), added, _unjoinable(data))


@dataclass(frozen=True)
class ControlTokens:
    """The tokens that may end a turn: the special ones and EOS, but never BOS.

    Attributes:
        texts: How they are written, longest first.
    """

    ids: frozenset[int]
    texts: tuple[str, ...]


def control_tokens(tokenizer: Any) -> ControlTokens:
    """The control tokens of a Hugging Face fast tokenizer.

    Raises:
        RecipeError: A slow tokenizer.
    """
    vocabulary = read_vocabulary(tokenizer)
    written = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    if tokenizer.eos_token_id is not None:
        written.setdefault(tokenizer.eos_token_id, vocabulary.token(tokenizer.eos_token_id).decode(errors="replace"))
    if tokenizer.bos_token_id != tokenizer.eos_token_id:
        written.pop(tokenizer.bos_token_id, None)
    return ControlTokens(frozenset(written), tuple(sorted(filter(None, written.values()), key=len, reverse=True)))


def refuse_unjoinable(tokenizer: Any) -> None:
    """Refuse a tokenizer whose tokens never join to the text, for nothing can be aligned to them.

    Raises:
        RecipeError: It is one (WordPiece, end-of-word suffixes), or a slow tokenizer.
    """
    kind = read_vocabulary(tokenizer).unjoinable
    if kind:
        raise RecipeError(
            f"{getattr(tokenizer, 'name_or_path', '')}: a {kind} tokenizer whose tokens do not join to the "
            "text cannot be aligned; expected byte-level BPE, SentencePiece or Unigram. Choose another model."
        )


def describe(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer.json of a fast tokenizer, as plain data.

    Raises:
        RecipeError: It is a slow tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise RecipeError(
            f"{getattr(tokenizer, 'name_or_path', '')}: {type(tokenizer).__name__} is no fast tokenizer; expected a "
            "tokenizer.json in the model folder. Save one with AutoTokenizer.from_pretrained(..., use_fast=True)."
        )
    data: dict[str, Any] = json.loads(backend.to_str())
    return data


def _unjoinable(data: dict[str, Any]) -> str:
    model, kinds = data["model"], set(_kinds(data["decoder"]))
    joins = not (model["type"] == "WordPiece" or model.get("end_of_word_suffix"))
    return "" if joins and not kinds & {"BPEDecoder", "CTC", "WordPiece"} else str(model["type"])


def list_tokens(data: dict[str, Any]) -> list[tuple[str, int]]:
    """Every token of the model's own vocabulary, as written, with its id."""
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return list(vocabulary.items())
    return [(token, token_id) for token_id, (token, _) in enumerate(vocabulary)]  # Unigram: [token, score]


def find_marker(data: dict[str, Any]) -> str:
    """What a vocabulary writes for the space before a word: `Ġ` in byte-level ones, `▁` in most others, or nothing."""
    return "Ġ" if _is_byte_level(data) else _marker(data) or ""


def byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes with.

    >>> byte_alphabet()["Ġ"], byte_alphabet()["a"]
    (32, 97)
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _unknown_token(model: dict[str, Any], known: list[tuple[str, int]]) -> set[int]:
    if model["type"] == "Unigram":
        return {model["unk_id"]} - {None}
    return {token_id for token, token_id in known if token == model.get("unk_token")}


def _reader(data: dict[str, Any]) -> Any:
    if _is_byte_level(data):
        return _read_byte_level(byte_alphabet())
    marker, has_bytes = _marker(data), _has_byte_tokens(data)
    return lambda token: _read_marked(token, marker, has_bytes)


def _read_byte_level(alphabet: dict[str, int]) -> Any:
    letters = dict.fromkeys(range(256), "\uffff") | {ord(letter): chr(byte) for letter, byte in alphabet.items()}

    def read(token: str) -> bytes:
        try:
            return token.translate(letters).encode("latin-1")
        except UnicodeEncodeError:  # a letter that writes no byte: the token stands for its text
            return token.encode()

    return read


def _read_marked(token: str, marker: str | None, has_bytes: bool) -> bytes:
    if has_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass  # A token that only looks like a byte stands for its text.
    return (token.replace(marker, " ") if marker else token).encode()


def _is_byte_level(data: dict[str, Any]) -> bool:
    return any("ByteLevel" in _kinds(data[part]) for part in ("decoder", "pre_tokenizer", "normalizer"))


def _has_byte_tokens(data: dict[str, Any]) -> bool:
    return bool(data["model"].get("byte_fallback")) or "ByteFallback" in _kinds(data["decoder"])


def _marker(data: dict[str, Any]) -> str | None:
    for part in walk(data["decoder"], data["pre_tokenizer"], data["normalizer"]):
        if part["type"] == "Metaspace":
            return str(part["replacement"])
        if part["type"] == "Replace":
            pattern = part["pattern"].get("String")
            if part["content"] == " " and pattern and pattern != " ":
                return str(pattern)
            if pattern == " " and part["content"]:
                return str(part["content"])
    return None


def _is_lossless(data: dict[str, Any]) -> bool:
    for part in walk(data["normalizer"]):
        if part["type"] not in ("Prepend", "ByteLevel") and not _writes_marker(part):
            return False
    lossy = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"}
    parts = list(walk(data["pre_tokenizer"]))
    removed = any(part.get("behavior") == "Removed" and not part.get("invert") for part in parts)
    return not removed and not lossy & {part["type"] for part in parts}


def _writes_marker(part: dict[str, Any]) -> bool:
    return part["type"] == "Replace" and part["pattern"].get("String") == " "


def walk(*parts: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Every normaliser, pre-tokenizer or decoder in a description, with sequences opened."""
    for part in parts:
        if part is None:
            continue
        inner = part.get("normalizers") or part.get("pretokenizers") or part.get("decoders")
        if inner is not None:
            yield from walk(*inner)
        elif part["type"] != "Sequence":
            yield part


def _kinds(part: dict[str, Any] | None) -> list[str]:
    return [inner["type"] for inner in walk(part)]
