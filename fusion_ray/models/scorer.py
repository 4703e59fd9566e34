"""What a scoring engine is, and what each refuses before it starts."""

from typing import NamedTuple, Protocol

import numpy as np

from fusion_ray.errors import EngineError
from fusion_ray.storage.topk import TopK


class Scorer(Protocol):
    """A model that scores token sequences by teacher forcing: it reads each one once and generates nothing.

    Attributes:
        n_tokens: Length of the tokenizer: ids from here on are rows that pad the output head, and are never kept.
        max_length: Longest sequence the engine takes; None where the model has no limit.
    """

    n_tokens: int
    max_length: int | None

    def score(self, input_ids: list[np.ndarray], positions: list[np.ndarray]) -> list[TopK]:
        """Give the top-k distributions over the tokens at `positions` of each sequence, in input order.

        Where the model gives NaN, NaN comes back: `TopK.check` refuses it row by row, so one row spoils no other.

        Args:
            input_ids: Whole conversations, int32.
            positions: Indices in `input_ids` of the answer tokens, increasing and at least 1: the distribution
                over the token at p is what the model says after reading the tokens before p.

        Raises:
            EngineError: A sequence is not one the engine can take.
            DeadEngineError: The engine died; this process cannot score any more.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


class DrawSettings(NamedTuple):
    """How a scorer draws from distributions, where it keeps draws and not the top-k.

    Attributes:
        draws: Entries of each distribution.
        seed: Another seed gives other draws.
    """

    draws: int
    seed: int = 0


def check_request(
    input_ids: list[np.ndarray], positions: list[np.ndarray], max_length: int | None, n_outputs: int
) -> None:
    """Refuse sequences that no engine can score, before the engine sees them.

    Raises:
        EngineError: A sequence is too long, has a token the model does not know, or asks for an impossible position.
    """
    if len(input_ids) != len(positions):
        raise EngineError(f"score: {len(input_ids)} sequences and {len(positions)} lists of positions were given.")
    for row, (ids, asked) in enumerate(zip(input_ids, positions, strict=True)):
        if max_length is not None and len(ids) > max_length:
            raise EngineError(
                f"sequence {row}: {len(ids)} tokens, and the model reads at most {max_length}. "
                f"Set distributions.max_length to {max_length} or less."
            )
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= n_outputs):
            raise EngineError(
                f"sequence {row}: it holds the token id {int(ids.max())}, and the model has {n_outputs}. "
                "Check that the tokenizer in the folder is the model's own."
            )
        if len(asked) and (int(asked.min()) < 1 or int(asked.max()) >= len(ids)):
            raise EngineError(
                f"sequence {row}: positions {int(asked.min())} to {int(asked.max())} were asked for; "
                f"expected 1 to {len(ids) - 1}, for nothing predicts the first token."
            )


def check_sizes(folder: str, top_k: int, n_tokens: int, n_outputs: int, *, drawn: bool = False) -> None:
    """Refuse a tokenizer that is longer than the output head, and more entries than the tokenizer has tokens.

    Raises:
        EngineError: Either of the two.
    """
    if n_tokens > n_outputs:
        raise EngineError(
            f"{folder}: the tokenizer has {n_tokens} tokens and the model's output head {n_outputs}; the tokenizer "
            "belongs to another model, or the model's embeddings were not resized after tokens were added."
        )
    if top_k > n_tokens:
        name = "store.draws" if drawn else "top_k"
        raise EngineError(
            f"{folder}: {name} is {top_k} and the tokenizer has {n_tokens} tokens. Lower distributions.{name}."
        )


def empty_top_k(top_k: int) -> TopK:
    """The result for a sequence of which no position was asked for."""
    return TopK(
        np.zeros((0, top_k), dtype=np.int32), np.zeros((0, top_k), dtype=np.float32), np.zeros(0, dtype=np.float32)
    )
