"""Chats as one model reads them, token by token: what it learns or is scored on, and what was left out and why."""

from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fusion_ray.chat import Rendered, render_all
from fusion_ray.chat.vocabulary import Vocabulary, read_vocabulary
from fusion_ray.corpus.files import chat_files, chat_of, read_rows
from fusion_ray.corpus.row_formats import UNNAMED, Chat
from fusion_ray.distributions.score import RenderSettings, fit
from fusion_ray.errors import AlignmentError, RecipeError
from fusion_ray.recipe import Columns

Row = Mapping[str, Any] | str


class InspectedToken(NamedTuple):
    """A token where it stands in the conversation.

    Attributes:
        id: Of the model's tokenizer.
        text: Its text; a character that several tokens share stands at the last of them.
        answer: Whether it is an answer token: scored, and learned.
        turn: Number of its assistant turn, None outside of one.
        end: Whether it is the end-of-turn token of an answer.
        weight: How much it counts as an answer token; 0 is context.
    """

    id: int
    text: str
    answer: bool
    turn: int | None
    end: bool
    weight: float


class InspectedRow(NamedTuple):
    """A row of the corpus as one model reads it.

    Attributes:
        id, domain: As the stage corpus has them.
        reason: Why the row cannot be used; None where it can.
        messages: The conversation that was read from the row.
        dropped: Fields of the row that nobody reads.
        left_out: Tokens behind the longest length, which were cut off.
        tokens: Empty where the row cannot be used.
        rendered: The same as the stages have it.
    """

    id: str
    domain: str | None
    reason: str | None
    messages: list[dict[str, str]]
    dropped: list[str]
    left_out: int
    tokens: list[InspectedToken]
    rendered: Rendered | None

    def plain(self) -> dict[str, Any]:
        """As data that JSON can hold."""
        data = self._asdict() | {"tokens": [token._asdict() for token in self.tokens]}
        del data["rendered"]
        return data


def pick_rows(
    chats: str | Sequence[Mapping[str, Any]], *, row: int | None, identity: str | None, count: int, columns: Columns
) -> list[Row]:
    """The rows to look at: one by its number (from 0) or its id, else the first ones.

    Args:
        chats: A corpus as `corpus.path` names it, or rows themselves.
        row, identity: Which one.
        count: How many, where neither is given.
        columns: The corpus section's.

    Raises:
        RecipeError: Nothing is there, no such row, or these are no rows.
    """
    if isinstance(chats, Mapping) or not isinstance(chats, str | Sequence):
        raise RecipeError(f"inspect: expected a path or a list of rows, got {type(chats).__name__}.")
    for each in () if isinstance(chats, str) else chats:
        if not isinstance(each, Mapping):
            raise RecipeError(f"inspect: a row is a mapping, got {each!r:.80}.")
    if count < 1:
        raise RecipeError(f"inspect: {count} rows were asked for; expected at least 1.")
    found: list[Row] = []
    for number, given in enumerate(_rows_of(chats)):
        if identity is not None and chat_of(given, columns).id == identity:
            return [given]
        if row == number:
            return [given]
        if row is None and identity is None:
            found.append(given)
            if len(found) == count:
                break
    if not found:
        which = f"no row {row} (they count from 0)" if row is not None else f"no row with the id '{identity}'"
        raise RecipeError(f"inspect: {which if (row, identity) != (None, None) else 'no rows'} in these chats.")
    return found


def _rows_of(chats: str | Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    if not isinstance(chats, str):
        yield from chats
        return
    for uri in chat_files(chats):
        yield from read_rows(uri)


def inspect_rows(
    rows: Sequence[Row], tokenizer: Any, settings: RenderSettings, columns: Columns = UNNAMED
) -> list[InspectedRow]:
    """Read rows as the stages do: the corpus's rules, the model's template and tokenizer, and the longest length."""
    chats = [chat_of(row, columns) for row in rows]
    usable = [chat.messages for chat in chats if chat.messages is not None]
    rendered = iter(render_all(tokenizer, usable, settings.template))
    return [_inspect(chat, None if chat.messages is None else next(rendered), tokenizer, settings) for chat in chats]


def _inspect(
    chat: Chat, rendered: Rendered | AlignmentError | None, tokenizer: Any, settings: RenderSettings
) -> InspectedRow:
    reason, left_out, kept = chat.reason, 0, None
    if isinstance(rendered, AlignmentError):
        reason = str(rendered)
    elif rendered is not None:
        try:
            kept = fit(rendered, settings)
            left_out = len(rendered.input_ids) - len(kept.input_ids)
        except AlignmentError as error:
            reason = str(error)
    tokens = [] if kept is None else _tokens(kept, read_vocabulary(tokenizer))
    return InspectedRow(chat.id, chat.domain, reason, chat.messages or [], list(chat.not_read), left_out, tokens, kept)


def _tokens(rendered: Rendered, vocabulary: Vocabulary) -> list[InspectedToken]:
    turns = {place: number for number, turn in enumerate(rendered.turns) for place in range(turn.start, turn.stop)}
    ends = {turn.stop - 1 for turn in rendered.turns if turn.ended}
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    return [
        InspectedToken(
            token_id,
            decoder.decode(vocabulary.token(token_id)),
            place in turns,
            turns.get(place),
            place in ends,
            float(place in turns),
        )
        for place, token_id in enumerate(rendered.input_ids.tolist())
    ]
