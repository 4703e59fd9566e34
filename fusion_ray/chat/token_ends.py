"""The byte of a text at which each of its tokens ends, for any Hugging Face fast tokenizer.

A byte-level tokenizer may put several tokens inside one character, and offset mappings count characters (and leave
out spaces); so ends are counted in the tokens' own bytes, and the offset mapping is only the way back wherever a
tokenizer has changed the text.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fusion_ray.errors import RecipeError


@dataclass(frozen=True, eq=False)
class TokenTable:
    """What each id of a tokenizer stands for.

    Attributes:
        pieces: Bytes of each id; a space for SentencePiece's word-start mark.
        lengths_V: Their lengths, int64.
        added: Ids of added tokens, special or not.
        special: Ids of special tokens, EOS among them and BOS not: BOS never ends a turn.
        special_texts: The same tokens as text, longest first.
    """

    pieces: tuple[bytes, ...]
    lengths_V: np.ndarray
    added: frozenset[int]
    special: frozenset[int]
    special_texts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TokenEnds:
    """Ends of the tokens of one text.

    Attributes:
        ends_T: Byte at which token t ends, int64, never decreasing.
        changed_T: The tokenizer changed the bytes of token t.
    """

    ends_T: np.ndarray
    changed_T: np.ndarray


# Weak, so that a process that opens many tokenizers does not keep them all.
_TABLES: WeakKeyDictionary[Any, TokenTable] = WeakKeyDictionary()


def token_table(tokenizer: Any) -> TokenTable:
    """A tokenizer's vocabulary as bytes, read once for each tokenizer object.

    Raises:
        RecipeError: It is not a fast tokenizer, so it has no offset mapping.
    """
    table = _TABLES.get(tokenizer)
    if table is None:
        table = _TABLES[tokenizer] = _read_table(tokenizer)
    return table


def _read_table(tokenizer: Any) -> TokenTable:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RecipeError(
            f"{tokenizer.name_or_path or 'tokenizer'}: expected a fast tokenizer (tokenizer.json), "
            f"got {type(tokenizer).__name__}. Convert it, and put tokenizer.json into the model folder."
        )
    byte_level = "ByteLevel" in f"{backend.pre_tokenizer!r} {backend.decoder!r}"
    to_bytes = _byte_level_piece if byte_level else _sentencepiece_piece
    vocabulary = backend.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        pieces[index] = to_bytes(token)
    added = backend.get_added_tokens_decoder()
    for index, token in added.items():
        # Gemma adds runs of spaces as ordinary added tokens, written with marks, though the model has them too.
        pieces[index] = token.content.encode() if token.special or byte_level else to_bytes(token.content)
    special = {index for index, token in added.items() if token.special} | {tokenizer.eos_token_id}
    special -= {None} if tokenizer.bos_token_id == tokenizer.eos_token_id else {None, tokenizer.bos_token_id}
    texts = sorted((pieces[index].decode(errors="replace") for index in special), key=len, reverse=True)
    lengths_V = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    return TokenTable(tuple(pieces), lengths_V, frozenset(added), frozenset(special), tuple(texts))


def token_ends(encoding: Any, text: str, raw: bytes, table: TokenTable) -> TokenEnds:
    """Where the tokens of `encoding` (of the tokenizers library) end in `raw`, the UTF-8 of `text`."""
    joined = b"".join([table.pieces[index] for index in encoding.ids])
    # SentencePiece puts a space before the text that is not in the text.
    extra = 1 if len(joined) == len(raw) + 1 and joined[:1] == b" " else 0
    if joined[extra:] == raw:
        ends_T = np.cumsum(table.lengths_V[encoding.ids]) - extra
        return TokenEnds(ends_T, np.zeros(len(ends_T), dtype=bool))
    return _walk(encoding, text, raw, table)


def char_to_byte(text: str) -> np.ndarray:
    """Byte at which each character of a text begins, and its length at the end, int64.

    >>> char_to_byte("aé漢").tolist()
    [0, 1, 3, 6]
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])


def _walk(encoding: Any, text: str, raw: bytes, table: TokenTable) -> TokenEnds:
    bytes_before = char_to_byte(text).tolist()
    ends, changed, position = [], [], 0
    for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
        piece = table.pieces[index]
        change = False
        if raw.startswith(piece, position):
            position += len(piece)
        elif piece[:1] == b" " and raw.startswith(piece[1:], position):  # SentencePiece's space again
            position += len(piece) - 1
        else:
            seen = raw[bytes_before[start] : bytes_before[stop]]
            change = seen.strip() != piece.strip()
            position = max(position, bytes_before[stop])
        ends.append(position)
        changed.append(change)
    return TokenEnds(np.array(ends, dtype=np.int64), np.array(changed, dtype=bool))


def _byte_level_piece(token: str) -> bytes:
    alphabet = _byte_level_alphabet()
    try:
        return bytes([alphabet[char] for char in token])
    except KeyError:  # an added token, or one that no text can give
        return token.encode()


def _sentencepiece_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            return token.encode()
    return token.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others for 256 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
