"""Read chats from the files people have: JSONL, JSON, Parquet, Arrow or text."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fusion_ray.corpus.row_formats import Chat, messages_of
from fusion_ray.errors import CorruptArtifactError, RecipeError
from fusion_ray.storage.filesystem import exists, list_files, locate

_EXTENSIONS = (".jsonl", ".json", ".parquet", ".arrow", ".txt")
_NOT_DATA = ("dataset_info", "dataset_dict", "state.")  # What `datasets` saves beside the data.


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
    data = [name for name in names if not name.rsplit("/", 1)[-1].startswith(_NOT_DATA)]
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
        yield chat_of(row, domain_column)


def chat_of(row: Mapping[str, Any] | str, domain_column: str) -> Chat:
    """The chat of one row; of a row that could not be read, the reason stands in its place."""
    if isinstance(row, str):
        return Chat(_hash_id(row), None, None, row)
    messages, reason = messages_of(row)
    given = row.get("id")
    identity = str(given) if given not in (None, "") else _hash_id(json.dumps(messages or row, default=str))
    domain = row.get(domain_column)
    return Chat(identity, "all" if domain is None else str(domain), None if reason else messages, reason)


def _hash_id(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_rows(uri: str) -> Iterator[Mapping[str, Any] | str]:
    """Rows of one file as mappings; for a line that cannot be read, the reason as text.

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
