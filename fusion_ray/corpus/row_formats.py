"""What the rows of users' files look like, and the chats they become."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from fusion_ray.recipe import Columns

ROLES = ("system", "user", "assistant", "tool", "text")
# What others call these roles: ShareGPT, Gemini, and the newer names of OpenAI.
_OTHER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
}
_COLUMNS = ("messages", "conversations", "conversation", "prompt", "completion", "chosen", "response", "question",
            "answer", "instruction", "output", "text")  # fmt: skip
# Pairs of columns that are one question and one answer.
_PAIRS = (("prompt", "completion"), ("prompt", "chosen"), ("prompt", "response"), ("question", "answer"))

UNNAMED = Columns()  # of a recipe that names no columns

MESSAGES_TYPE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
CORPUS_SCHEMA = pa.schema(
    [("id", pa.string()), ("domain", pa.string()), ("messages", MESSAGES_TYPE), ("reason", pa.string())]
)
# Of chats that a source has answered anew: whether the last answer came to its end.
ANSWERS_SCHEMA = CORPUS_SCHEMA.append(pa.field("ended", pa.bool_()))


class Chat(NamedTuple):
    """One conversation, or the reason why a row is none; plain text is one message of role `text`.

    Attributes:
        not_read: Fields of the row that hold something and are read by nobody.
    """

    id: str
    domain: str | None
    messages: list[dict[str, str]] | None
    reason: str | None
    not_read: tuple[str, ...] = ()


class _Shape(NamedTuple):
    """How a row is read: the columns that hold its conversation, and the turns in them."""

    columns: tuple[str, ...]
    turns: Any


def messages_of(row: Mapping[str, Any], columns: Columns = UNNAMED) -> tuple[list[dict[str, str]], str | None]:
    """The messages of a row in our shape, and the reason why they cannot be used (None when they can)."""
    shape = _shape_of(row, columns)
    if shape is None and columns.answer:
        return [], (
            f"nothing to read in {columns.prompt} and {columns.answer}, which corpus.columns names; the row has "
            f"{', '.join(map(str, row)) or 'no columns'}"
        )
    if shape is None:
        empty = [name for name in _COLUMNS if name in row]
        if empty:
            return [], f"nothing to read in {', '.join(empty)}: no text and no messages there"
        return [], (
            "no conversation in the row: expected 'messages', 'conversations', 'conversation', 'prompt' and "
            "'completion', 'prompt' and 'chosen', 'prompt' and 'response', 'question' and 'answer', 'instruction' and "
            "'output', or 'text'"
        )
    if not isinstance(shape.turns, list) or not all(isinstance(turn, dict) for turn in shape.turns):
        return [], "a message is not a role and a content"
    messages = [_message(turn) for turn in shape.turns]
    return messages, _refused_field(shape.turns) or _complaint(messages)


def unread_fields(row: Mapping[str, Any], columns: Columns = UNNAMED) -> tuple[str, ...]:
    """Fields of a row that hold something and are read by nobody, those of its messages as `messages[].NAME`.

    >>> row = {"id": 1, "tools": ["f"], "messages": [{"role": "user", "content": "", "name": "a"}]}
    >>> unread_fields(row)
    ('tools', 'messages[].name')
    """
    shape = _shape_of(row, columns) or _Shape((), [])
    found = _filled(row, {columns.id, columns.domain or "domain", *shape.columns})
    for column in shape.columns:
        for turn in row[column] if isinstance(row.get(column), list) else ():
            if isinstance(turn, dict):
                found += [f"{column}[].{name}" for name in _filled(turn, _read_of(turn))]
    return tuple(dict.fromkeys(found))


def _shape_of(row: Mapping[str, Any], columns: Columns) -> _Shape | None:
    """The shape that the recipe names, else the first that fits; those with turns come before plain text."""
    if columns.prompt and columns.answer:
        return _pair(row, columns.prompt, columns.answer)
    for column in ("messages", "conversations", "conversation"):
        if row.get(column):
            system = _system(row) if column != "messages" else []
            turns = row[column]
            whole = [*system, *turns] if isinstance(turns, list) else turns
            return _Shape((column, "system") if system else (column,), whole)
    for question, answer in _PAIRS:
        if pair := _pair(row, question, answer):
            return pair
    if row.get("chosen") and isinstance(row["chosen"], list):
        return _Shape(("chosen",), row["chosen"])
    if row.get("instruction") and row.get("output"):
        parts = [row[name] for name in ("instruction", "input") if row.get(name) not in (None, "")]
        task = "\n\n".join(parts) if all(isinstance(part, str) for part in parts) else parts
        turns = [*_system(row), {"role": "user", "content": task}, {"role": "assistant", "content": row["output"]}]
        read = ("instruction", "input", "output")
        return _Shape((*read, "system") if _system(row) else read, turns)
    if isinstance(row.get("text"), str):
        return _Shape(("text",), [{"role": "text", "content": row["text"]}])
    return None


def _pair(row: Mapping[str, Any], question: str, answer: str) -> _Shape | None:
    """One column asks and another answers, each as text or as messages."""
    if not row.get(question) or not row.get(answer):
        return None
    asked = _turns(row[question], "user")
    turns = [*_system(row), *asked, *_without_repeat(_turns(row[answer], "assistant"), asked)]
    return _Shape((question, answer, "system") if _system(row) else (question, answer), turns)


def _system(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    text = row.get("system")
    return [{"role": "system", "content": text}] if isinstance(text, str) and text else []


def _turns(given: Any, role: str) -> list[Any]:
    """One side of a pair: messages, or a text of that role."""
    return given if isinstance(given, list) else [{"role": role, "content": given}]


def _without_repeat(answered: list[Any], asked: list[Any]) -> list[Any]:
    """The answer's messages; a chosen answer may repeat those of its prompt."""
    return answered[len(asked) :] if answered[: len(asked)] == asked else answered


def _filled(fields: Mapping[str, Any], read: set[str]) -> list[str]:
    return [name for name, value in fields.items() if name not in read and value not in (None, "", [], {})]


def _read_of(turn: Mapping[str, Any]) -> set[str]:
    return {"from", "value"} if "from" in turn else {"role", "content"}


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    role, content = (turn["from"], turn.get("value")) if "from" in turn else (turn.get("role"), turn.get("content"))
    return {"role": _OTHER_ROLES.get(role, role) if isinstance(role, str) else role, "content": _plain(content)}


def _plain(content: Any) -> Any:
    """Text of an OpenAI content value, whose newer form is a list of parts."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    return content


def _refused_field(turns: list[dict[str, Any]]) -> str | None:
    """What would be taught wrongly if it were left out: tool calls, and answers that are not to be learnt."""
    for turn in turns:
        role = turn.get("from", turn.get("role"))
        if turn.get("tool_calls") or turn.get("function_call") or role == "function_call":
            return "an assistant message calls a tool, which cannot be read yet"
        is_answer = _OTHER_ROLES.get(role, role) == "assistant" if isinstance(role, str) else False
        if is_answer and (turn.get("weight") not in (None, 1) or turn.get("train") not in (None, True)):
            return "an answer has a weight, or is not to be trained on, which cannot be obeyed yet"
    return None


def _complaint(messages: list[dict[str, str]]) -> str | None:
    for message in messages:
        if message["role"] not in ROLES:
            return f"unknown role {message['role']!r}; expected one of {', '.join(ROLES)}"
        if not isinstance(message["content"], str):
            return f"a message of role {message['role']} has no text content, but {message['content']!r:.40}"
        if has_surrogates(message["content"]):
            return "lone surrogates: the text is not valid Unicode"
    answers = [message["content"] for message in messages if message["role"] in ("assistant", "text")]
    if not any(answers):
        return "no answer: no assistant turn with text in it"
    return None


def has_surrogates(text: str) -> bool:
    """Whether a text has lone surrogates, which no file of UTF-8 can hold."""
    return any(0xD800 <= ord(character) <= 0xDFFF for character in text)
