"""Read chats from the files people have: JSONL, Parquet or Arrow; OpenAI, ShareGPT or plain-text rows."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fusion_ray.errors import CorruptArtifactError, RecipeError
from fusion_ray.storage.filesystem import exists, list_files, locate

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
_EXTENSIONS = (".jsonl", ".json", ".parquet", ".arrow", ".txt")
_DESCRIPTIONS = ("dataset_info", "dataset_dict", "state.")  # What `datasets` saves beside the data.

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


def chat_files(path: str) -> list[str]:
    """The corpus files at a path, sorted: the file itself, or all in a folder that have a known extension.

    Raises:
        RecipeError: Nothing is there.
    """
    if path.endswith(_EXTENSIONS):
        if not exists(path):
            raise RecipeError(f"corpus.path '{path}': no such file.")
        return [path]
    names = [name for name in list_files(path, recursive=True) if name.endswith(_EXTENSIONS)]
    data = [
        name for name in names if not name.rsplit("/", 1)[-1].startswith(("dataset_info", "dataset_dict", "state."))
    ]
    if not data:
        raise RecipeError(
            f"corpus.path '{path}': no such file, or a folder without {', '.join(_EXTENSIONS)} files. "
            "Give chats as JSONL or Parquet with a 'messages', 'conversations' or 'text' column."
        )
    return [f"{path.rstrip('/')}/{name}" for name in data]


def read_chats(uri: str, domain_column: str) -> Iterator[Chat]:
    """Read one file in order; a row that is no chat comes with the reason, never as an exception.

    Raises:
        CorruptArtifactError: The file is not in the format its name promises.
    """
    for row in read_rows(uri):
        if isinstance(row, str):
            yield Chat(_hash_id(row), None, None, row)
            continue
        messages, reason = _messages_of(row)
        given = row.get("id")
        identity = str(given) if given not in (None, "") else _hash_id(json.dumps(messages or row, default=str))
        domain = row.get(domain_column)
        yield Chat(identity, "all" if domain is None else str(domain), None if reason else messages, reason)


def _hash_id(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_rows(uri: str) -> Iterator[Mapping[str, Any] | str]:
    """Rows of one file as mappings; a line that cannot be read as its complaint.

    Raises:
        CorruptArtifactError: The file is not in the format its name promises.
    """
    place = locate(uri)
    try:
        if uri.endswith(".parquet"):
            with place.filesystem.open_input_file(place.path) as file:
                for batch in pq.ParquetFile(file).iter_batches(4096):
                    yield from batch.to_pylist()
        elif uri.endswith(".arrow"):
            with place.filesystem.open_input_stream(place.path) as stream:
                for batch in pa.ipc.open_stream(stream):
                    yield from batch.to_pylist()
        elif uri.endswith(".txt"):
            with place.filesystem.open_input_stream(place.path) as stream:
                yield {"text": stream.read().decode("utf-8")}
        else:
            yield from _read_json(uri)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise CorruptArtifactError(f"{uri}: not readable as its name promises ({error}).") from error


def _read_json(uri: str) -> Iterator[Mapping[str, Any] | str]:
    place = locate(uri)
    with place.filesystem.open_input_stream(place.path) as stream:
        text = stream.read().decode("utf-8")
    if uri.endswith(".json"):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise CorruptArtifactError(f"{uri}: not JSON ({error}).") from error
        yield from (row if isinstance(row, dict) else f"{uri}: an item is no object" for row in rows)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            row = f"{uri} line {number}: not JSON ({error})"
        yield row if isinstance(row, dict | str) else f"{uri} line {number}: not a JSON object"


def _messages_of(row: Mapping[str, Any]) -> tuple[list[dict[str, str]], str | None]:
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
