"""What the rows of users' files look like, and the chats they become."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa

ROLES = ("system", "user", "assistant", "tool", "text")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
}

MESSAGES_TYPE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
CORPUS_SCHEMA = pa.schema(
    [("id", pa.string()), ("domain", pa.string()), ("messages", MESSAGES_TYPE), ("reason", pa.string())]
)
# Of chats that a source has answered anew: whether the last answer came to its end.
ANSWERS_SCHEMA = CORPUS_SCHEMA.append(pa.field("ended", pa.bool_()))


class Chat(NamedTuple):
    """One conversation, or the reason why a row is none; plain text is one message of role `text`."""

    id: str
    domain: str | None
    messages: list[dict[str, str]] | None
    reason: str | None


def messages_of(row: Mapping[str, Any]) -> tuple[list[dict[str, str]], str | None]:
    """The messages of a row in our shape, and the reason why they cannot be used (None when they can)."""
    if isinstance(row.get("text"), str) and not row.get("messages"):
        messages = [{"role": "text", "content": row["text"]}]
        return messages, _complaint(messages)
    turns = row.get("messages") or row.get("conversations")
    if not isinstance(turns, list):
        return [], "no 'messages', 'conversations' or 'text' in the row"
    if not all(isinstance(turn, dict) for turn in turns):
        return [], "a message is not a role and a content"
    messages = [_message(turn) for turn in turns]
    return messages, _complaint(messages)


def unread_fields(row: Mapping[str, Any], domain_column: str) -> list[str]:
    """Fields of a row that hold something and are read by nobody, those of its messages as `messages[].NAME`.

    >>> unread_fields({"id": 1, "tools": ["f"], "messages": [{"role": "user", "content": "", "weight": 0}]}, "domain")
    ['tools', 'messages[].weight']
    """
    key = next((name for name in ("messages", "conversations") if row.get(name)), "text")
    turns = row.get(key)
    found = _filled(row, {"id", domain_column, key})
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict):
            read = {"from", "value"} if "from" in turn else {"role", "content"}
            found += [f"{key}[].{name}" for name in _filled(turn, read)]
    return list(dict.fromkeys(found))


def _filled(fields: Mapping[str, Any], read: set[str]) -> list[str]:
    return [name for name, value in fields.items() if name not in read and value not in (None, "", [], {})]


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    if "from" in turn:
        return {"role": _SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": _plain(turn.get("value"))}
    return {"role": turn.get("role"), "content": _plain(turn.get("content"))}


def _plain(content: Any) -> Any:
    """Text of an OpenAI content value, whose newer form is a list of parts."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def _complaint(messages: list[dict[str, str]]) -> str | None:
    for message in messages:
        if message["role"] not in ROLES:
            return f"unknown role {message['role']!r}; expected one of {', '.join(ROLES)}"
        if not isinstance(message["content"], str):
            return f"a {message['role']} message has no text content"
        if any(0xD800 <= ord(character) <= 0xDFFF for character in message["content"]):
            return "lone surrogates: the text is not valid Unicode"
    answers = [message["content"] for message in messages if message["role"] in ("assistant", "text")]
    if not any(answers):
        return "no answer: no assistant turn with text in it"
    return None
