"""The tokenised answers of one model over a whole shard, in columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion_ray.errors import AlignmentError


@dataclass(frozen=True, eq=False)
class AnswerTokens:
    """Answer tokens of all rows and turns, one after the other.

    Attributes:
        ids_T: Token ids, int32.
        boundaries_T: Byte of its turn's text at which each token ends, int32, never decreasing within a turn.
        turn_offsets: Turn u holds the tokens `turn_offsets[u]:turn_offsets[u + 1]`, int64 [turns + 1].
        ended: Whether the last token of a turn is the end-of-turn token, bool [turns].
        row_offsets: Row r holds the turns `row_offsets[r]:row_offsets[r + 1]`, int64 [rows + 1].
    """

    ids_T: np.ndarray
    boundaries_T: np.ndarray
    turn_offsets: np.ndarray
    ended: np.ndarray
    row_offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.ids_T)

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end turns, in the order of their ids."""
        return [int(token_id) for token_id in np.unique(self.ids_T[self.turn_offsets[1:][self.ended] - 1])]

    def check(self, where: str) -> None:
        """Refuse columns that do not fit each other.

        Raises:
            AlignmentError: Lengths or offsets disagree.
        """
        fits = (
            len(self.ids_T) == len(self.boundaries_T) == int(self.turn_offsets[-1])
            and len(self.turn_offsets) == len(self.ended) + 1 == int(self.row_offsets[-1]) + 1
            and int(self.turn_offsets[0]) == int(self.row_offsets[0]) == 0
            and bool((np.diff(self.turn_offsets) >= 0).all() and (np.diff(self.row_offsets) >= 0).all())
        )
        if not fits:
            raise AlignmentError(
                f"{where}: {len(self.ids_T)} ids, {len(self.boundaries_T)} boundaries, {len(self.ended)} turns and "
                "their offsets do not fit each other; expected one boundary for each id. Make the distributions again."
            )


@dataclass(frozen=True, eq=False)
class AnswerTurn:
    """One turn of one row; `AnswerTokens` holds all turns of a shard."""

    ids_T: np.ndarray
    boundaries_T: np.ndarray
    ended: bool


def gather_answers(rows: Sequence[Sequence[AnswerTurn]]) -> AnswerTokens:
    """Lay the turns of some rows out in columns."""
    turns = [turn for row in rows for turn in row]
    return AnswerTokens(
        ids_T=_joined([turn.ids_T for turn in turns]),
        boundaries_T=_joined([turn.boundaries_T for turn in turns]),
        turn_offsets=offsets_of([len(turn.ids_T) for turn in turns]),
        ended=np.array([turn.ended for turn in turns], dtype=bool),
        row_offsets=offsets_of([len(row) for row in rows]),
    )


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Offsets of parts of these lengths that lie one after the other; the last one is the end, int64.

    >>> offsets_of([2, 0, 3]).tolist()
    [0, 2, 2, 5]
    """
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts] or [np.zeros(0, dtype=np.int32)])
