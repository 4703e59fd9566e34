"""Let a model write: greedily for the report and its judge, by sampling where sources answer the corpus anew."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Completion(NamedTuple):
    """What a model wrote after a prompt.

    Attributes:
        text: Without special tokens.
        ended: An end token came; else there was no room for more.
    """

    text: str
    ended: bool


class DecodingOptions(NamedTuple):
    """How prompts are continued: by sampling with one seed for each prompt, or greedily where there are no seeds."""

    max_tokens: int
    end_ids: list[int]
    temperature: float = 0.0
    seeds: Sequence[int] | None = None


class Generator(ABC):
    """A model that continues token sequences.

    Attributes:
        max_length: Longest sequence, prompt and answer together; None where no limit is known.
        own_ends: Tokens that end an answer by the model's own settings, whatever template it is read by.
    """

    max_length: int | None
    own_ends: frozenset[int] = frozenset()

    def generate(self, prompts: Sequence[np.ndarray], *, max_tokens: int, end_ids: Sequence[int]) -> list[str]:
        """Continue every prompt with the most probable token, again and again.

        Args:
            prompts: Token ids of the model's own tokenizer; each has at least one and leaves room for one more.
            max_tokens: Tokens to add at most; fewer where `max_length` comes first.
            end_ids: Tokens that end an answer, beside the model's own.

        Returns:
            The new text of every prompt, without special tokens.

        Raises:
            EngineError: The engine died or refused a prompt.
        """
        return [written.text for written in self._write(prompts, DecodingOptions(max_tokens, self._ends(end_ids)))]

    def sample(
        self,
        prompts: Sequence[np.ndarray],
        *,
        max_tokens: int,
        end_ids: Sequence[int],
        temperature: float,
        seeds: Sequence[int],
    ) -> list[Completion]:
        """Continue every prompt with tokens drawn from the model's distributions; see `generate`.

        Args:
            prompts, max_tokens, end_ids: As for `generate`.
            temperature: Sampling temperature; 1 leaves the model's distribution unchanged.
            seeds: One for each prompt, below 2^31: what is drawn does not depend on the other prompts.
        """
        return self._write(prompts, DecodingOptions(max_tokens, self._ends(end_ids), temperature, seeds))

    def _ends(self, end_ids: Sequence[int]) -> list[int]:
        return sorted(self.own_ends.union(end_ids))

    def _room(self, length: int, max_tokens: int) -> int:
        """How many tokens may follow a prompt."""
        return max_tokens if self.max_length is None else max(1, min(max_tokens, self.max_length - length))

    @abstractmethod
    def _write(self, prompts: Sequence[np.ndarray], how: DecodingOptions) -> list[Completion]:
        """Continue every prompt."""

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory."""
