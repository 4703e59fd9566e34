"""Read chats from the files people have: JSONL, JSON, Parquet, Arrow, CSV or text, compressed or not."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from fusion_ray.corpus.row_formats import UNNAMED, Chat, has_surrogates, messages_of, unread_fields
from fusion_ray.errors import CorruptArtifactError, RecipeError
from fusion_ray.recipe import Columns
from fusion_ray.storage.filesystem import exists, list_files, locate

_TEXT_FILES = (".jsonl", ".json", ".csv", ".tsv", ".txt")
_COMPRESSED = (".gz", ".zst", ".bz2")  # pyarrow decompresses these by name.
_EXTENSIONS = (
    ".parquet", ".arrow", ".feather", *(f"{kind}{packed}" for kind in _TEXT_FILES for packed in ("", *_COMPRESSED))
)  # fmt: skip
_NOT_DATA = ("dataset_info", "dataset_dict", "state.")  # What `datasets` saves beside the data.
_NOT_CHATS = ("license", "licence", "readme", "notice", "changelog", "requirements")
_ENCODING = "utf-8-sig"  # With or without a byte order mark.


def chat_files(path: str) -> list[str]:
    """The corpus files at a path, sorted: the file itself, or all in a folder that have a known extension.

    Hidden files and folders, licences and the like are no chats.

    Raises:
        RecipeError: Nothing is there, or a dataset of several splits, of which one must be named.
    """
    if not path:
        raise RecipeError("corpus.path is empty. Give a file or a folder of chats.")
    if path.endswith(_EXTENSIONS):
        if not exists(path):
            raise RecipeError(f"corpus.path '{path}': no such file.")
        return [path]
    try:
        names = [name for name in list_files(path, recursive=True) if name.endswith(_EXTENSIONS)]
    except NotADirectoryError:
        raise RecipeError(
            f"corpus.path '{path}': a file of an unknown kind; known: {', '.join(_EXTENSIONS)}."
        ) from None
    if "dataset_dict.json" in names:
        splits = sorted({name.split("/")[0] for name in names if "/" in name})
        raise RecipeError(
            f"corpus.path '{path}': a dataset of the splits {', '.join(splits)}, which must not be mixed. Give one of "
            f"them, such as '{path.rstrip('/')}/{splits[0] if splits else 'train'}'."
        )
    data = [name for name in names if _holds_chats(name)]
    if not data:
        raise RecipeError(
            f"corpus.path '{path}': no such file, or a folder without {', '.join(_EXTENSIONS)} files. "
            "Give chats as JSONL or Parquet with a 'messages', 'conversations' or 'text' column."
        )
    return [f"{path.rstrip('/')}/{name}" for name in data]


def _holds_chats(name: str) -> bool:
    file = name.rsplit("/", 1)[-1]
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and not file.startswith(_NOT_DATA) and not file.lower().startswith(_NOT_CHATS)


def read_chats(uri: str, columns: Columns = UNNAMED) -> Iterator[Chat]:
    """Read one file in order; a row that is no chat comes with the reason, never as an exception.

    Raises:
        CorruptArtifactError: The file is not in the format its name promises.
    """
    for row in read_rows(uri):
        yield chat_of(row, columns)


def chat_of(row: Mapping[str, Any] | str, columns: Columns = UNNAMED) -> Chat:
    """The chat of one row; of a row that could not be read, the reason stands in its place."""
    if isinstance(row, str):
        return Chat(_hash_id(row), None, None, row)
    try:
        messages, reason = messages_of(row, columns)
        given = row.get(columns.id)
        identity = str(given) if given not in (None, "") else _hash_id(json.dumps(messages or row, default=str))
    except RecursionError:
        return Chat(_hash_id(repr(list(row))), None, None, "the row is nested too deeply")
    domain = row.get(columns.domain or "domain")
    labels = [identity, "all" if domain is None else str(domain)]
    if any(has_surrogates(label) for label in labels):
        reason = "lone surrogates: its id or domain is not valid Unicode"
    # Reasons quote what is in the row, and fields are its own names.
    labels = [_valid(label) for label in labels]
    not_read = tuple(_valid(name) for name in unread_fields(row, columns))
    return Chat(labels[0], labels[1], None if reason else messages, reason and _valid(reason), not_read)


def is_named_by_content(chat: Chat) -> bool:
    """Whether a usable chat had no id of its own, so that its id is that of all chats with these messages."""
    return chat.messages is not None and chat.id == _hash_id(json.dumps(chat.messages))


def _valid(text: str) -> str:
    """The text with a question mark for every lone surrogate, which no file of UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def _hash_id(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_rows(uri: str) -> Iterator[Mapping[str, Any] | str]:
    """Rows of one file as mappings; for a line that cannot be read, the reason as text.

    Raises:
        CorruptArtifactError: The file is not in the format its name promises.
    """
    file = uri.rsplit("/", 1)[-1]
    kind = next(kind for kind in (".parquet", ".arrow", ".feather", *_TEXT_FILES) if kind in file)
    try:
        if kind == ".parquet":
            with locate(uri).filesystem.open_input_file(locate(uri).path) as file:
                for batch in pq.ParquetFile(file).iter_batches(4096):
                    yield from batch.to_pylist()
        elif kind in (".arrow", ".feather"):
            for batch in _arrow_batches(uri):
                yield from batch.to_pylist()
        elif kind == ".txt":
            yield {"text": _read_text(uri)}
        elif kind in (".csv", ".tsv"):
            yield from _read_csv(uri, "," if kind == ".csv" else "\t")
        else:
            yield from _read_json(uri, lines=kind == ".jsonl")
    except UnicodeDecodeError as error:
        raise CorruptArtifactError(
            f"{uri}: not UTF-8 (byte {error.start}: {error.reason}). Convert it, say with iconv."
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise CorruptArtifactError(f"{uri}: not readable as its name promises ({error}).") from error


def _read_text(uri: str) -> str:
    place = locate(uri)
    with place.filesystem.open_input_stream(place.path) as stream:
        return bytes(stream.read()).decode(_ENCODING)


def _arrow_batches(uri: str) -> Iterator[pa.RecordBatch]:
    """An Arrow file is a stream, as `datasets` saves it, or has an index at its end, as Feather has."""
    place = locate(uri)
    with place.filesystem.open_input_file(place.path) as file:
        has_index = bytes(file.read(6)) == b"ARROW1"
        file.seek(0)
        if has_index:
            indexed = pa.ipc.open_file(file)
            yield from (indexed.get_batch(number) for number in range(indexed.num_record_batches))
        else:
            yield from pa.ipc.open_stream(file)


def _read_csv(uri: str, delimiter: str) -> Iterator[Mapping[str, Any]]:
    text = _read_text(uri)
    header = text.split("\n", 1)[0].strip("\r")
    names = [name.strip('"') for name in header.split(delimiter)]
    table = pa.csv.read_csv(
        io.BytesIO(text.encode()),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )
    yield from table.to_pylist()


def _read_json(uri: str, *, lines: bool) -> Iterator[Mapping[str, Any] | str]:
    text = _read_text(uri)
    if lines or _are_lines(text):
        yield from _read_lines(uri, text)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptArtifactError(f"{uri}: not JSON ({error}).") from error
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list):
        raise CorruptArtifactError(f"{uri}: expected an array of rows, or one row a line, found {type(rows).__name__}.")
    yield from (row if isinstance(row, dict) else f"{uri}: item {n} is no object" for n, row in enumerate(rows))


def _are_lines(text: str) -> bool:
    """Whether a text named .json holds one object a line, as many tools write it."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        return isinstance(json.loads(first), dict) and bool(rest.strip())
    except (ValueError, RecursionError):
        return False


def _read_lines(uri: str, text: str) -> Iterator[Mapping[str, Any] | str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        failed = True
        try:
            row, failed = json.loads(line), False
        except ValueError as error:
            row = f"{uri} line {number}: not JSON ({error})"
        except RecursionError:
            row = f"{uri} line {number}: nested too deeply"
        yield row if isinstance(row, dict) or failed else f"{uri} line {number}: not a JSON object"
