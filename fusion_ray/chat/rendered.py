"""A conversation as one model reads it: token ids, and the answer turns among them with their byte boundaries."""

from dataclasses import dataclass, replace

import numpy as np

from fusion_ray.errors import AlignmentError


@dataclass(frozen=True, eq=False)
class Turn:
    """The answer tokens of one assistant turn, which follow each other without a gap.

    The canonical text of a turn is the UTF-8 of its message content: the same bytes for every model, so the
    boundaries of two models compare. Spaces that a template adds count to the first token; whitespace that it
    strips counts to the first and the last boundary.

    Attributes:
        start: Index in `input_ids` of the first answer token; at least 1.
        boundaries: Byte of the canonical text at which answer token i ends, int32, never decreasing, in [0, n_bytes].
        ended: The last answer token is the end-of-turn token; its boundary is n_bytes.
        n_bytes: Bytes of the canonical text that the tokens cover.
        ending: Where it has ended, how many of the last tokens come after the text: the template's whitespace and the
            control tokens that end the turn.
    """

    start: int
    boundaries: np.ndarray
    ended: bool
    n_bytes: int
    ending: int = 1

    def __len__(self) -> int:
        return len(self.boundaries)

    @property
    def stop(self) -> int:
        """Index in `input_ids` after the last answer token."""
        return self.start + len(self.boundaries)


@dataclass(frozen=True, eq=False)
class Rendered:
    """One conversation in one model's tokens.

    Attributes:
        input_ids: The whole conversation, int32.
        turns: Its assistant turns, in order.
        normalised: The tokenizer changed bytes of an answer (Unicode normalisation, unknown tokens), so some
            boundaries come from its offset mapping and are exact to a character only.
    """

    input_ids: np.ndarray
    turns: tuple[Turn, ...]
    normalised: bool = False

    @property
    def positions(self) -> np.ndarray:
        """Indices in `input_ids` of all answer tokens, int64; the distribution over token p is given at p - 1."""
        return np.concatenate([np.arange(turn.start, turn.stop) for turn in self.turns])

    @property
    def n_bytes(self) -> int:
        """Bytes of all answers together."""
        return sum(turn.n_bytes for turn in self.turns)


def break_off(rendered: Rendered) -> Rendered:
    """A conversation whose last answer has no end: without what ends the turn, and what a template puts after it."""
    *before, last = rendered.turns
    if last.ended:
        last = replace(last, boundaries=last.boundaries[: -last.ending], ended=False)
    return replace(rendered, input_ids=rendered.input_ids[: last.stop], turns=(*before, last))


def cut(rendered: Rendered, max_length: int) -> Rendered:
    """Shorten a conversation to at most `max_length` tokens: after a whole turn where possible, else at a token.

    A turn cut at a token has not `ended`, and its n_bytes are the bytes that its remaining tokens cover.

    Raises:
        AlignmentError: No answer token stands within `max_length`.
    """
    if len(rendered.input_ids) <= max_length:
        return rendered
    whole = tuple(turn for turn in rendered.turns if turn.stop <= max_length)
    if any(len(turn) for turn in whole):
        return replace(rendered, input_ids=rendered.input_ids[: whole[-1].stop], turns=whole)
    first = next((turn for turn in rendered.turns if len(turn)), rendered.turns[0])
    boundaries = first.boundaries[: max(0, max_length - first.start)]
    if not len(boundaries):
        raise AlignmentError(
            f"the first answer begins at token {first.start} and max_length is {max_length}: nothing to score is left. "
            "Raise distributions.max_length or drop the row."
        )
    turn = Turn(first.start, boundaries, ended=False, n_bytes=int(boundaries[-1]))
    return replace(rendered, input_ids=rendered.input_ids[:max_length], turns=(turn,))
