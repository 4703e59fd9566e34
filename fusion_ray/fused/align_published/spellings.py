"""Tokens as a vocabulary file writes them, which is what the published methods compare: `Ġthe`, `▁the`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion_ray.chat.answer_tokens import offsets_of
from fusion_ray.chat.vocabulary import describe, find_marker, list_tokens, refuse_unjoinable


@dataclass(frozen=True, eq=False)
class Spellings:
    """How the tokens of a vocabulary are written.

    Attributes:
        written: One string for each id, empty where an id has no token.
        marker: What stands for a space before a word, or nothing.
    """

    written: tuple[str, ...]
    marker: str

    def stripped(self) -> list[str]:
        """Without markers, as sequences are compared."""
        return [token.replace(self.marker, "") for token in self.written] if self.marker else list(self.written)

    def swapped(self, marker: str) -> list[str]:
        """With another marker, as vocabularies are compared."""
        return [token.replace(self.marker, marker) for token in self.written] if self.marker else list(self.written)


@dataclass(frozen=True, eq=False)
class Letters:
    """Strings for compiled loops: string v is `flat[offsets[v]:offsets[v + 1]]`, code points, int32."""

    flat: np.ndarray
    offsets: np.ndarray


def read_spellings(tokenizer: Any) -> Spellings:
    """Read the written tokens of a fast tokenizer.

    Raises:
        RecipeError: It is a slow tokenizer, or of a kind that cannot be aligned.
    """
    refuse_unjoinable(tokenizer)
    data = describe(tokenizer)
    found = {token_id: token for token, token_id in list_tokens(data)}
    found |= {item["id"]: item["content"] for item in data["added_tokens"]}
    written = tuple(found.get(token_id, "") for token_id in range(max(found, default=-1) + 1))
    return Spellings(written, find_marker(data))


def lay_out(strings: Sequence[str]) -> Letters:
    """Strings as code points, one after the other."""
    flat = np.frombuffer("".join(strings).encode("utf-32-le", "surrogatepass"), dtype=np.int32).copy()
    return Letters(flat, offsets_of([len(string) for string in strings]))
