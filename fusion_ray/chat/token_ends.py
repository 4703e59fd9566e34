"""The byte of a text at which each of its tokens ends, for any Hugging Face fast tokenizer.

Offset mappings count characters and leave out spaces, and a byte-level tokenizer may put several tokens inside one
character. So ends are counted in the tokens' own bytes, and the offset mapping is used only where the tokenizer has
changed the text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion_ray.chat.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class TokenEnds:
    """Ends of the tokens of one text.

    Attributes:
        ends_T: Byte at which token t ends, int64, never decreasing.
        changed_T: The tokenizer changed the bytes of token t.
    """

    ends_T: np.ndarray
    changed_T: np.ndarray


def token_ends(encoding: Any, text: str, raw: bytes, vocabulary: Vocabulary) -> TokenEnds:
    """Where the tokens of `encoding` (of the tokenizers library) end in `raw`, the UTF-8 of `text`."""
    tokens = vocabulary.tokens
    joined = b"".join([tokens[index] for index in encoding.ids])
    # SentencePiece puts a space before the text that is not in the text.
    extra = 1 if len(joined) == len(raw) + 1 and joined[:1] == b" " else 0
    if joined[extra:] == raw:
        ends_T = np.cumsum(vocabulary.lengths_V[encoding.ids]) - extra
        return TokenEnds(ends_T, np.zeros(len(ends_T), dtype=bool))
    return _walk(encoding, text, raw, tokens)


def char_to_byte(text: str) -> np.ndarray:
    """Byte at which each character of a text begins, and its length at the end, int64.

    >>> char_to_byte("aé漢").tolist()
    [0, 1, 3, 6]
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])


def _walk(encoding: Any, text: str, raw: bytes, tokens: list[bytes]) -> TokenEnds:
    bytes_before = char_to_byte(text).tolist()
    ends: list[int] = []
    changed: list[bool] = []
    position = 0
    for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
        piece = tokens[index]
        change = False
        # The offsets of a composed character cover its first code point only: the others are its, too. Those of the
        # token after it may leave out the spaces that it begins with.
        if changed and changed[-1] and position < bytes_before[start]:
            spaces = piece[: len(piece) - len(piece.lstrip())]
            begins = bytes_before[start] - len(spaces)
            position = max(position, begins if raw.startswith(spaces, begins) else bytes_before[start])
            ends[-1] = position
        if piece and raw.startswith(piece, position):
            position += len(piece)
        elif piece[:1] == b" " and raw.startswith(piece[1:], position):  # SentencePiece's space again
            position += len(piece) - 1
        else:
            seen = raw[bytes_before[start] : bytes_before[stop]]
            change = seen.strip() != piece.strip()
            position = max(position, bytes_before[stop])
        ends.append(position)
        changed.append(change)
    if changed and changed[-1]:
        ends[-1] = len(raw)
    return TokenEnds(np.array(ends, dtype=np.int64), np.array(changed, dtype=bool))
