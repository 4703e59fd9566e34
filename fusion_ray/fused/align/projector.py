"""What exact alignment knows about a pair of tokenizers, before it has seen any text."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fusion_ray.chat.answer_tokens import AnswerTokens, offsets_of
from fusion_ray.chat.templates import end_tokens
from fusion_ray.chat.vocabulary import Vocabulary, read_vocabulary, refuse_unjoinable
from fusion_ray.errors import AlignmentError
from fusion_ray.fused.align.encoder import MidTextEncoder
from fusion_ray.fused.align.strings import StringTable

TEXT, ENDED = 0, 1


class Shares(NamedTuple):
    """Source tokens in order, with the running share of the corpus that they make up.

    Once ordered by their pivot tokens, once by their bytes; row r of an order is
    `flat[offsets[r]:offsets[r + 1]]`, `running[r]` is the share of all rows before it, and `longest` is the length of
    the longest row.
    """

    token_flat: np.ndarray
    token_offsets: np.ndarray
    token_running: np.ndarray
    longest_tokens: int
    byte_flat: np.ndarray
    byte_offsets: np.ndarray
    byte_running: np.ndarray
    longest_bytes: int


@dataclass(frozen=True, eq=False)
class Projector:
    """Tables of one pivot and one source tokenizer.

    Attributes:
        pivot, source: What their ids stand for.
        pivot_end: The pivot's end-of-turn token, -1 where unknown. It stands for every end of the source; in a turn
            that ends with another token, that one does.
        is_source_end_U: Which source tokens end a turn.
        same_vocabulary: Every id means the same in both.
        strings: Pivot tokens of every source id (entry = id), and of longer strings as they come up.
        shares: For the tail inside groups.
        encoder: The pivot's tokenization in the middle of a text.
    """

    pivot: Vocabulary
    source: Vocabulary
    pivot_end: int
    is_source_end_U: np.ndarray
    same_vocabulary: bool
    strings: StringTable
    shares: Shares
    encoder: MidTextEncoder

    def encode_keys(self, keys: list[bytes]) -> list[list[int]]:
        """Pivot tokens of keys: a byte TEXT or ENDED, then the leaf's bytes."""
        found = self.encoder.encode([key[1:] for key in keys])
        end = [self.pivot_end]
        return [
            ids + end if key[0] == ENDED and (ids or len(key) == 1) else ids
            for ids, key in zip(found, keys, strict=True)
        ]


def known_ends(tokenizer: Any, answers: AnswerTokens) -> list[int]:
    """Every token that ends turns of a model, the usual one first.

    Those that the tokenizer names come before those of the answers, so that little depends on the rows at hand.
    """
    return list(dict.fromkeys([*end_tokens(tokenizer), *answers.end_ids]))


def build_projector(
    pivot_tokenizer: Any,
    source_tokenizer: Any,
    *,
    pivot_end: int | None = None,
    source_ends: Collection[int] = (),
    counts_U: np.ndarray | None = None,
    max_strings: int = 1 << 21,
) -> Projector:
    """Tokenize the whole source vocabulary with the pivot's tokenizer; once for each pair and process.

    Args:
        pivot_tokenizer, source_tokenizer: Hugging Face fast tokenizers.
        pivot_end: The pivot's usual end-of-turn token.
        source_ends: All end-of-turn tokens of the source.
        counts_U: How often each source token occurs in the corpus, by id; all alike where None or all zero.
        max_strings: Longer strings that are remembered before the memory is emptied.

    Raises:
        RecipeError: A tokenizer whose tokens do not join to the text.
        AlignmentError: Counts that are not finite or of other ids, or an end-of-turn token outside of it.
    """
    for tokenizer in (pivot_tokenizer, source_tokenizer):
        refuse_unjoinable(tokenizer)
    pivot, source = read_vocabulary(pivot_tokenizer), read_vocabulary(source_tokenizer)
    _check_ends(pivot, [] if pivot_end is None else [pivot_end], "pivot")
    _check_ends(source, source_ends, "source")
    encoder = MidTextEncoder(pivot_tokenizer, pivot)
    same = pivot.same_as(source)
    rows = [[token_id] for token_id in range(len(source))] if same else _translate(source, encoder)
    is_source_end_U = np.zeros(len(source), dtype=bool)
    if pivot_end is not None:
        is_source_end_U[list(source_ends)] = True
        for end in () if same else source_ends:
            rows[end] = [pivot_end]
    return Projector(
        pivot=pivot,
        source=source,
        pivot_end=-1 if pivot_end is None else pivot_end,
        is_source_end_U=is_source_end_U,
        same_vocabulary=same,
        strings=StringTable(rows, max_strings),
        shares=_order_shares(rows, source, counts_U),
        encoder=encoder,
    )


def _check_ends(vocabulary: Vocabulary, ends: Collection[int], side: str) -> None:
    for end in ends:
        if not 0 <= end < len(vocabulary):
            raise AlignmentError(
                f"{side}: the end-of-turn token {end} is outside the vocabulary of {len(vocabulary)} tokens. "
                "Give the tokenizer that the distributions were made with."
            )


def _translate(source: Vocabulary, encoder: MidTextEncoder) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(len(source))]
    textual = [token_id for token_id, piece in enumerate(source.tokens) if piece and not source.is_special_V[token_id]]
    for token_id, ids in zip(textual, encoder.encode([source.tokens[i] for i in textual]), strict=True):
        rows[token_id] = ids
    return rows


def _order_shares(rows: list[list[int]], source: Vocabulary, counts_U: np.ndarray | None) -> Shares:
    share_U = _share_of_corpus(source, counts_U)
    by_tokens = sorted((row, token_id) for token_id, row in enumerate(rows) if row)
    by_bytes = sorted((piece, token_id) for token_id, piece in enumerate(source.tokens) if piece)
    return Shares(
        token_flat=np.array([token for row, _ in by_tokens for token in row], dtype=np.int32),
        token_offsets=offsets_of([len(row) for row, _ in by_tokens]),
        token_running=_running(share_U[[token_id for _, token_id in by_tokens]]),
        longest_tokens=max((len(row) for row, _ in by_tokens), default=0),
        byte_flat=np.frombuffer(b"".join(piece for piece, _ in by_bytes), dtype=np.uint8).copy(),
        byte_offsets=offsets_of([len(piece) for piece, _ in by_bytes]),
        byte_running=_running(share_U[[token_id for _, token_id in by_bytes]]),
        longest_bytes=max((len(piece) for piece, _ in by_bytes), default=0),
    )


def _share_of_corpus(source: Vocabulary, counts_U: np.ndarray | None) -> np.ndarray:
    weights_U = np.zeros(len(source))
    if counts_U is not None:
        if not np.isfinite(counts_U).all() or counts_U[len(source) :].any():
            raise AlignmentError(
                f"source: {len(counts_U)} token counts, for a vocabulary of {len(source)} tokens, that are not finite "
                "or count other ids; expected counts by token id. Count the corpus with the source's own tokenizer."
            )
        known = min(len(counts_U), len(source))  # ids past the last one counted did not occur
        weights_U[:known] = counts_U[:known]
    weights_U[source.is_special_V] = 0.0
    if not weights_U.any():
        weights_U = np.where(source.is_special_V, 0.0, 1.0)
    return weights_U / max(weights_U.sum(), 1.0)


def _running(shares: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(shares)])
