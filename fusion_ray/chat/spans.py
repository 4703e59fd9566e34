"""Where the answers stand in the text that a chat template writes.

Found by rendering: the conversation is written once as it is and once with a mark in place of each answer. What
stands around the marks is the template's; what remains is the answers. The text of an answer is never searched for,
so answers may repeat each other or the question.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fusion_ray.chat.templates import Messages
from fusion_ray.errors import AlignmentError

Write = Callable[[Messages], str]


@dataclass(frozen=True)
class Span:
    """An answer in a written conversation, in characters.

    Attributes:
        start: Where the answer begins in the text.
        stop: Where it ends.
        content: The message content, whose UTF-8 is the canonical text.
        core_in_text: A place in the text ...
        core_in_content: ... and the same place in the content: where both have their first letter.
    """

    start: int
    stop: int
    content: str
    core_in_text: int
    core_in_content: int


def find_spans(write: Write, messages: Messages, text: str) -> list[Span]:
    """Find every assistant turn in `text`, which is `write(messages)`.

    Raises:
        AlignmentError: No assistant turn; or the template leaves out a turn, or rewrites an answer.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise AlignmentError("the conversation has no assistant turn, so there is nothing to score.")
    _refuse_dropped_turns(write, messages, text)
    mark = _free_mark(text)
    skeleton = write([_marked(message, mark) if i in answers else message for i, message in enumerate(messages)])
    spans = _walk(text, skeleton.split(mark), [messages[i]["content"] for i in answers])
    return spans or [_anchor(write, messages, text, i, mark) for i in answers]


def _walk(text: str, parts: list[str], contents: list[str]) -> list[Span] | None:
    """Step over the template's parts and the answers between them; None where an answer changes its surroundings."""
    if len(parts) != len(contents) + 1 or not text.startswith(parts[0]):
        return None
    position, spans = len(parts[0]), []
    for content, after in zip(contents, parts[1:], strict=True):
        forms = (content, content.strip(), content.lstrip(), content.rstrip())
        form = next((form for form in forms if text.startswith(form + after, position)), None)
        if form is None:
            return None
        spans.append(_span(text, position, position + len(form), content))
        position += len(form) + len(after)
    return spans if position == len(text) else None


def _anchor(write: Write, messages: Messages, text: str, i: int, mark: str) -> Span:
    """Find one answer with all other turns as they are, from what the template writes before and after it."""
    content = messages[i]["content"]
    parts = write([_marked(message, mark) if j == i else message for j, message in enumerate(messages)]).split(mark)
    if len(parts) != 2:
        raise AlignmentError(f"the chat template writes the answer of message {i} {len(parts) - 1} times, not once.")
    before, after = parts
    core = content.strip()
    start, stop = len(before), len(text) - len(after)
    if text.startswith(before) and text.endswith(after) and text[start:stop].strip() == core and start <= stop:
        return _span(text, start, stop, content)
    if text.endswith(after):  # A reasoning template wrote the opening of the answer by itself: measure from the end.
        stop -= len(text[:stop]) - len(text[:stop].rstrip())
        if text[:stop].endswith(core):
            return _span(text, stop - len(core), stop, content)
    raise AlignmentError(
        f"the chat template rewrites the answer of message {i} (it may drop or reformat reasoning), so its bytes are "
        "not those of the corpus. Write such answers as the template does, or set template: chatml or pivot."
    )


def _span(text: str, start: int, stop: int, content: str) -> Span:
    shown = text[start:stop]
    in_text = start + len(shown) - len(shown.lstrip())
    return Span(start, stop, content, in_text, len(content) - len(content.lstrip()))


def _refuse_dropped_turns(write: Write, messages: Messages, text: str) -> None:
    for i, message in enumerate(messages):
        core = message["content"].strip()
        if message["role"] == "assistant" or not core or core in text:
            continue
        try:
            dropped = write([*messages[:i], *messages[i + 1 :]]) == text
        except AlignmentError:  # The template refuses a conversation without this turn.
            continue
        if dropped:
            raise AlignmentError(f"the chat template leaves out message {i} (role '{message['role']}').")


def _marked(message: Mapping[str, Any], mark: str) -> dict[str, Any]:
    return {**message, "content": mark}


def _free_mark(text: str) -> str:
    number = 7
    while f"Zq{number}answer" in text:
        number += 1
    return f"Zq{number}answerZq{number}"
