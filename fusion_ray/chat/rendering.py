"""From messages to token ids, answer turns and byte boundaries."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fusion_ray.chat.rendered import Rendered, Turn
from fusion_ray.chat.spans import Span, find_spans
from fusion_ray.chat.templates import ROLES, Ending, Messages, Template, choose_template, find_ending, write_text
from fusion_ray.chat.token_ends import char_to_byte, token_ends
from fusion_ray.chat.vocabulary import Vocabulary, control_tokens, read_vocabulary
from fusion_ray.errors import AlignmentError, RecipeError


def render(tokenizer: Any, messages: Messages, template: Template | str = "native") -> Rendered:
    """Write a conversation in a template, tokenise it, and find its answer tokens and their byte boundaries.

    A conversation of one message of role `text` is plain text in every template: all of it is answer, after the
    model's BOS (or EOS) token and before its EOS. Where a template has no system role, the system turn is put before
    the first user turn.

    Args:
        tokenizer: A Hugging Face fast tokenizer.
        messages: Mappings with `role` and `content`.
        template: A `Template`, or a setting that `choose_template` understands without a pivot.

    Raises:
        AlignmentError: This conversation cannot be written or aligned; the message says why.
        RecipeError: The tokenizer or the template cannot be used for any conversation.
    """
    (result,) = render_all(tokenizer, [messages], template)
    if isinstance(result, AlignmentError):
        raise result
    return result


def render_all(
    tokenizer: Any, conversations: Sequence[Messages], template: Template | str = "native"
) -> list[Rendered | AlignmentError]:
    """Render many conversations; one that cannot be used gives its error in its place. See `render`."""
    if isinstance(template, str):
        template = choose_template(template, tokenizer)
    ending = Ending() if template.kind == "none" else find_ending(tokenizer, template)
    written = [_write(tokenizer, messages, template, ending) for messages in conversations]
    texts = [item.text for item in written if isinstance(item, _Written)]
    encodings = iter(tokenizer(texts, add_special_tokens=False).encodings if texts else ())
    tables = _Tables(read_vocabulary(tokenizer), control_tokens(tokenizer).ids | ending.first_ids, ending.length)
    return [
        item if isinstance(item, AlignmentError) else _tokenised(tokenizer, item, next(encodings), tables)
        for item in written
    ]


class _Tables(NamedTuple):
    """What ids stand for, those that may follow an answer directly, and how many of them end it."""

    vocabulary: Vocabulary
    control: frozenset[int]
    ending_length: int


class _Written:
    """A conversation as text; `spans` is None for plain text."""

    def __init__(self, text: str, spans: list[Span] | None) -> None:
        self.text = text
        self.spans = spans
        self.raw = text.encode()


def _write(tokenizer: Any, messages: Messages, template: Template, ending: Ending) -> _Written | AlignmentError:
    try:
        cleaned = _checked(messages)
        if template.kind == "none" or cleaned[0]["role"] == "text":
            return _Written(_only_text(cleaned), None)
        try:
            text = write_text(tokenizer, cleaned, template)
        except AlignmentError:
            if not (len(cleaned) > 1 and cleaned[0]["role"] == "system" and cleaned[1]["role"] == "user"):
                raise
            cleaned = _without_system(cleaned)
            text = write_text(tokenizer, cleaned, template)
        spans = find_spans(lambda changed: write_text(tokenizer, changed, template), cleaned, text)
        if not ending.is_written_last and cleaned[-1]["role"] == "assistant":
            text += ending.text
        return _Written(text, spans)
    except UnicodeEncodeError as error:
        return AlignmentError(f"the conversation is not valid Unicode: {error}")
    except AlignmentError as error:
        return error


def _checked(messages: Messages) -> list[dict[str, str]]:
    if not len(messages):
        raise AlignmentError("the conversation has no messages.")
    for i, message in enumerate(messages):
        if message["role"] not in ROLES and not (message["role"] == "text" and len(messages) == 1):
            raise AlignmentError(
                f"message {i} has the unknown role '{message['role']}'; expected one of {', '.join(ROLES)}, "
                "or a single message of role text."
            )
    return [{"role": message["role"], "content": message["content"] or ""} for message in messages]


def _only_text(messages: list[dict[str, str]]) -> str:
    if len(messages) > 1:
        raise AlignmentError("template is 'none' and the row is a conversation; expected one message of role text.")
    return messages[0]["content"]


def _without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    system, user, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def _tokenised(tokenizer: Any, written: _Written, encoding: Any, tables: _Tables) -> Rendered | AlignmentError:
    ends = token_ends(encoding, written.text, written.raw, tables.vocabulary)
    input_ids = np.array(encoding.ids, dtype=np.int32)
    if written.spans is None:
        return _plain(tokenizer, written, input_ids, ends.ends_T, bool(ends.changed_T.any()))
    bytes_before = char_to_byte(written.text)
    tokens = _Tokens(input_ids, ends.ends_T, tables)
    turns = tuple(_turn(span, tokens, written.raw, bytes_before) for span in written.spans)
    if any(turn.start == 0 and len(turn) for turn in turns):
        return AlignmentError("the first answer token is the first token of all, so nothing predicts it.")
    if not any(len(turn) for turn in turns):
        return AlignmentError("no token of the conversation belongs to an answer.")
    normalised = any(ends.changed_T[turn.start : turn.stop].any() for turn in turns)
    return Rendered(input_ids, turns, normalised)


def _plain(tokenizer: Any, written: _Written, input_ids: np.ndarray, ends_T: np.ndarray, changed: bool) -> Rendered:
    context = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if context is None:
        raise RecipeError(
            f"{tokenizer.name_or_path or 'tokenizer'}: it has neither a BOS nor an EOS token, so plain text has no "
            "context before its first token. Set bos_token in tokenizer_config.json."
        )
    n_bytes = len(written.raw)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    boundaries = np.concatenate([np.minimum(ends_T, n_bytes), [n_bytes] * len(end)]).astype(np.int32)
    ids = np.concatenate([[context], input_ids, end]).astype(np.int32)
    return Rendered(ids, (Turn(1, boundaries, bool(end), n_bytes),), changed)


class _Tokens(NamedTuple):
    """The tokens of a written conversation: their ids, the bytes at which they end, and what ids stand for."""

    ids_T: np.ndarray
    ends_T: np.ndarray
    tables: _Tables

    def is_added(self, t: int) -> bool:
        """Whether token t was added to the vocabulary, so that it is never part of a word."""
        return int(self.ids_T[t]) in self.tables.vocabulary.added


def _turn(span: Span, tokens: _Tokens, raw: bytes, bytes_before: np.ndarray) -> Turn:
    """The tokens of one answer: all that end after its beginning and begin before its end, and its end of turn."""
    ends_T = tokens.ends_T
    begin, finish = int(bytes_before[span.start]), int(bytes_before[span.stop])
    n_bytes = len(span.content.encode())
    first = int(np.searchsorted(ends_T, begin, side="right"))
    stop = first
    if finish > begin:
        stop = max(first, min(int(np.searchsorted(ends_T, finish, side="left")) + 1, len(ends_T)))
        while stop < len(ends_T) and ends_T[stop] == finish and not tokens.is_added(stop):
            stop += 1
        # A control token may take whitespace before it (`lstrip`) that is the answer's.
        while stop > first and ends_T[stop - 1] > finish and tokens.is_added(stop - 1):
            stop -= 1
    end = _end_of_turn(stop, tokens, raw)
    shift = len(span.content[: span.core_in_content].encode()) - int(bytes_before[span.core_in_text])
    boundaries = np.clip(ends_T[first:stop] + shift, 0, n_bytes).astype(np.int32)
    if len(boundaries):
        boundaries[-1] = n_bytes
    if end is not None:
        boundaries = np.concatenate([boundaries, np.full(end + 1 - stop, n_bytes, dtype=np.int32)])
    return Turn(first, boundaries, end is not None, n_bytes, ending=1 if end is None else end + 1 - stop)


def _end_of_turn(stop: int, tokens: _Tokens, raw: bytes) -> int | None:
    """Index of the last token of the ending that follows, with nothing but a template's whitespace between."""
    found, last = 0, None
    for t in range(stop, len(tokens.ends_T)):
        if tokens.is_added(t) and (found or int(tokens.ids_T[t]) in tokens.tables.control):
            found, last = found + 1, t
            if found == tokens.tables.ending_length:
                break
            continue
        before = int(tokens.ends_T[t - 1]) if t else 0
        if raw[before : int(tokens.ends_T[t])].strip():
            break
    return last
