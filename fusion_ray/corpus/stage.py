"""Stage `corpus`: give every chat a stable id, a domain and a split, and cut the splits into shards.

Reads:  corpus.path (JSONL, Parquet, Arrow or text; `messages`, ShareGPT `conversations` or plain `text`).
Writes: train/, validation/, heldout/ shards of id, domain, messages, reason; MANIFEST.json.

Two passes over each file and no shuffle: the first learns ids and splits, the second writes. The split of a chat
depends only on its id and the seed, so a corpus that grows never moves a chat from held-out to train.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from fusion_ray.corpus.files import chat_files, is_named_by_content, read_chats
from fusion_ray.corpus.row_formats import CORPUS_SCHEMA, Chat
from fusion_ray.corpus.split import split_of
from fusion_ray.errors import RecipeError
from fusion_ray.on_ray import streams
from fusion_ray.on_ray.metrics import Meter
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import Corpus, Recipe
from fusion_ray.storage.artifacts import Artifact, retract_manifest, write_manifest
from fusion_ray.storage.rejections import list_rejected, settle_rejections
from fusion_ray.storage.shards import SPLITS, ShardRecord, find_shard, shard_path, write_shard


@dataclass(frozen=True)
class _File:
    """One corpus file and the numbers of the shards that its rows fill, split by split."""

    uri: str
    rows: int
    first_shard: dict[str, int]
    repeated: frozenset[int]


def build_corpus(recipe: Recipe, artifacts: list[Artifact], tell: Tell) -> None:
    """Make the corpus artifact; see the module for what it reads and writes.

    Raises:
        RecipeError: Nothing at corpus.path, or no usable chat in a split that the recipe asks for.
        ArtifactError: More rows had to be rejected than corpus.max_rejected allows.
    """
    (artifact,) = artifacts
    started = time.monotonic()
    retract_manifest(artifact.folder)
    uris = chat_files(recipe.corpus.path)
    scans = _scan_files(recipe, uris)
    files = _plan_files(recipe.corpus, uris, scans)
    records: list[ShardRecord] = []

    def write(file: _File) -> list[dict[str, Any]]:
        return [asdict(record) for record in _write_file(recipe, artifact, file)]

    meter = Meter(recipe.name, artifact, tell, rows=sum(file.rows for file in files))
    for result in streams.stream(files, write, cpus=1):
        for record in (ShardRecord(**fields) for fields in result):
            records.append(record)
            meter.add(record)
    meter.close()
    records.sort(key=lambda record: (SPLITS.index(record.path.split("/")[0]), record.path))
    rejected = settle_rejections(artifact, records, recipe.corpus.max_rejected)
    facts = _sum_facts(recipe, records) | {"rejected": rejected}
    said = [f"{rows:,} rows have {name}, which is not read" for name, rows in sorted(facts["not_read"].items())]
    tell(Progress(str(artifact), 1, 1, "; ".join(said)))
    write_manifest(artifact, seconds=time.monotonic() - started, shards=records, facts=facts)


def _scan_files(recipe: Recipe, uris: list[str]) -> list[dict[str, Any]]:
    """Ids and splits of every file's rows, in the order of the files."""

    def scan(item: tuple[int, str]) -> dict[str, Any]:
        number, uri = item
        ids = [chat.id for chat in islice(read_chats(uri, recipe.corpus.row_columns), recipe.corpus.max_rows)]
        return {"number": number, "ids": ids}

    scans = sorted(streams.stream(list(enumerate(uris)), scan, cpus=1), key=lambda scan: scan["number"])
    left = recipe.corpus.max_rows
    for scanned in scans:
        scanned["ids"] = scanned["ids"][:left]
        left = None if left is None else left - len(scanned["ids"])
        scanned["splits"] = Counter(split_of(identity, recipe.corpus, recipe.seed) for identity in scanned["ids"])
    return scans


def _plan_files(corpus: Corpus, uris: list[str], scans: list[dict[str, Any]]) -> list[_File]:
    """Number the shards over all files, and find the rows whose id came before."""
    seen: set[str] = set()
    next_shard = dict.fromkeys(SPLITS, 0)
    files = []
    for uri, scanned in zip(uris, scans, strict=True):
        repeated = set()
        for row, identity in enumerate(scanned["ids"]):
            if identity in seen:
                repeated.add(row)
            seen.add(identity)
        files.append(_File(uri, len(scanned["ids"]), dict(next_shard), frozenset(repeated)))
        for split in SPLITS:
            next_shard[split] += -(-scanned["splits"][split] // corpus.shard_rows)
    return files


def _write_file(recipe: Recipe, artifact: Artifact, file: _File) -> list[ShardRecord]:
    chats = islice(read_chats(file.uri, recipe.corpus.row_columns), file.rows)
    waiting: dict[str, list[Chat]] = {split: [] for split in SPLITS}
    next_shard = dict(file.first_shard)
    records = []
    for row, chat in enumerate(chats):
        if row in file.repeated:
            why = "an exact copy of an earlier chat" if is_named_by_content(chat) else "an earlier chat has this id"
            chat = chat._replace(messages=None, reason=chat.reason or why)
        split = split_of(chat.id, recipe.corpus, recipe.seed)
        waiting[split].append(chat)
        if len(waiting[split]) == recipe.corpus.shard_rows:
            records.append(_commit(artifact, split, next_shard[split], waiting[split]))
            next_shard[split] += 1
            waiting[split] = []
    rest = [_commit(artifact, split, next_shard[split], waiting[split]) for split in SPLITS if waiting[split]]
    return records + rest


def _commit(artifact: Artifact, split: str, index: int, chats: list[Chat]) -> ShardRecord:
    path = shard_path(split, index)
    finished = find_shard(artifact.folder, path, artifact.fingerprint)
    if finished:
        return finished
    table = pa.Table.from_pylist([chat._asdict() for chat in chats], schema=CORPUS_SCHEMA)
    usable = [chat for chat in chats if chat.reason is None]
    facts = {
        "rejected": list_rejected([chat.id for chat in chats], [chat.reason for chat in chats]),
        "domains": dict(Counter(chat.domain for chat in usable)),
        "not_read": dict(Counter(name for chat in usable for name in chat.not_read)),
        "answer_bytes": sum(
            len(message["content"].encode()) for chat in usable for message in chat.messages or []
            if message["role"] in ("assistant", "text")
        ),
    }  # fmt: skip
    return write_shard(artifact.folder, path, table, artifact.fingerprint, facts)


def _sum_facts(recipe: Recipe, records: list[ShardRecord]) -> dict[str, Any]:
    rows = {split: sum(r.rows for r in records if r.path.startswith(f"{split}/")) for split in SPLITS}
    if not rows["train"] or (recipe.corpus.heldout and not rows["heldout"]):
        raise RecipeError(
            f"corpus.path '{recipe.corpus.path}': {rows['train']} train and {rows['heldout']} held-out chats; at least "
            "one of each is needed. Give more chats, or set corpus.heldout."
        )
    domains, not_read = Counter[str](), Counter[str]()
    for record in records:
        domains.update(record.facts["domains"])
        not_read.update(record.facts["not_read"])
    return {"rows_by_split": rows, "domains": dict(domains), "not_read": dict(not_read)}
