"""Parquet shards: the unit of work, retry, resume and commit.

A shard carries its fingerprint and its facts (counts and sums) in its own footer, so whether it is done, and what
is in it, can be told from the file alone, and a resumed run needs no journal.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fusion_ray.errors import CorruptArtifactError, MissingArtifactError
from fusion_ray.storage.filesystem import exists, join, read_bytes, write_bytes
from fusion_ray.storage.topk_codec import expand_topk, is_compact

_FOOTER_KEY = b"fusion_ray"
SPLITS = ("train", "validation", "heldout")


@dataclass(frozen=True)
class ShardRecord:
    """What a manifest keeps of a shard.

    Attributes:
        path: Relative to the artifact's folder, such as `train/00003.parquet`.
        facts: Counts and sums by name, whatever the stage measured; `rejected` maps row ids to reasons.
    """

    path: str
    rows: int
    bytes: int
    sha256: str
    facts: Mapping[str, Any]


def shard_path(split: str, index: int) -> str:
    """Name of a shard within its artifact."""
    return f"{split}/{index:05d}.parquet"


def write_shard(
    folder: str, path: str, table: pa.Table, fingerprint: str, facts: Mapping[str, Any] | None = None
) -> ShardRecord:
    """Write one shard whole or not at all; equal inputs give equal bytes."""
    facts = dict(facts or {})
    data = _encode(table, json.dumps({"fingerprint": fingerprint, "facts": facts}, sort_keys=True))
    write_bytes(join(folder, path), data)
    return ShardRecord(path, table.num_rows, len(data), hashlib.sha256(data).hexdigest(), facts)


def _encode(table: pa.Table, footer: str) -> bytes:
    """The bytes of a shard; pages carry checksums, for a resumed run has no manifest yet that would know the file's."""
    buffer = io.BytesIO()
    schema = pa.schema([_as_read(field) for field in table.schema], {_FOOTER_KEY: footer.encode()})
    table = table.cast(schema)
    pq.write_table(
        table, buffer, compression="zstd", compression_level=3, use_dictionary=True, write_page_checksum=True
    )
    return buffer.getvalue()


def _as_read(field: pa.Field) -> pa.Field:
    """The field as Parquet gives it back, so that a shard that is read and written again has the same bytes."""
    kind = field.type
    if pa.types.is_list(kind):
        kind = pa.list_(_as_read(kind.value_field.with_name("element")))
    elif pa.types.is_struct(kind):
        kind = pa.struct([_as_read(kind.field(number)) for number in range(kind.num_fields)])
    return field.with_type(kind).remove_metadata()


def find_shard(folder: str, path: str, fingerprint: str) -> ShardRecord | None:
    """The record of a finished shard of this very fingerprint, or None when it must be made (again)."""
    uri = join(folder, path)
    if not exists(uri):
        return None
    try:
        data = read_bytes(uri)
        parquet = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        text = parquet.schema_arrow.metadata[_FOOTER_KEY].decode()
        footer = json.loads(text)
        # A damaged shard counts as not made: pages have checksums, and what lies around them is made anew to compare.
        if _encode(parquet.read(), text) != data:
            return None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, MissingArtifactError):
        return None
    if footer.get("fingerprint") != fingerprint:
        return None
    rows = parquet.metadata.num_rows
    return ShardRecord(path, rows, len(data), hashlib.sha256(data).hexdigest(), footer["facts"])


def read_shard(folder: str, record: ShardRecord, columns: list[str] | None = None) -> pa.Table:
    """Read a shard that a manifest lists, after checking its bytes against the manifest.

    Distributions in compact columns come back as plain ones; see `topk_codec`.

    Raises:
        CorruptArtifactError: The bytes differ from what the manifest recorded, or are not Parquet.
    """
    uri = join(folder, record.path)
    data = read_bytes(uri)
    digest = hashlib.sha256(data).hexdigest()
    if digest != record.sha256:
        raise CorruptArtifactError(
            f"{uri}: {len(data)} bytes with sha256 {digest[:12]}, expected {record.bytes} bytes with "
            f"{record.sha256[:12]}. The file was damaged or changed; delete it and the MANIFEST.json beside it, "
            "then run again to rebuild it."
        )
    try:
        parquet = pq.ParquetFile(pa.BufferReader(data))
        names = parquet.schema_arrow.names
        if not is_compact(names):
            return parquet.read(columns)
        table = expand_topk(parquet.read())
        return table.select(columns) if columns else table
    except (pa.ArrowException, OSError) as error:
        raise CorruptArtifactError(f"{uri}: not readable as Parquet ({error}).") from error
