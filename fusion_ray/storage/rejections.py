"""Rows that a stage could not use: listed by id and reason, counted, and capped."""

import json
from collections.abc import Iterable

from fusion_ray.errors import ArtifactError
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.filesystem import join, write_bytes
from fusion_ray.storage.shards import ShardRecord

LISTING = "rejected/rows.jsonl"


def list_rejected(ids: Iterable[str], reasons: Iterable[str | None]) -> list[tuple[str, str]]:
    """Id and reason of every row of a shard that has one, in the order of the rows: rows of one id are counted apart.

    >>> list_rejected(["a", "b", "a"], ["no answer", None, "no answer"])
    [('a', 'no answer'), ('a', 'no answer')]
    """
    return [(identity, reason) for identity, reason in zip(ids, reasons, strict=True) if reason is not None]


def settle_rejections(artifact: Artifact, records: list[ShardRecord], cap: float, of: int | None = None) -> int:
    """List the rejected rows of finished shards in `rejected/rows.jsonl`, and fail when there are too many.

    A shard's facts hold `rejected`, see `list_rejected`. What an earlier stage rejected is among them.

    Args:
        artifact: What the shards are of.
        records: Its shards.
        cap: Share of rows that may be rejected.
        of: All rows of the corpus, where the artifact has some of its splits: a stage that allows as much as the one
            before must not fail because a split has more than its share of what that one has rejected.

    Returns:
        How many rows were rejected.

    Raises:
        ArtifactError: More than `cap` were rejected.
    """
    rejected = [
        {"id": identity, "reason": reason, "shard": record.path}
        for record in records
        for identity, reason in record.facts["rejected"]
    ]
    rows = sum(record.rows for record in records) if of is None else of
    if rejected:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
        write_bytes(join(artifact.folder, LISTING), lines.encode())
    if rows and len(rejected) / rows > cap:
        examples = "; ".join(f"{row['id']}: {row['reason']}" for row in rejected[:3])
        raise ArtifactError(
            f"{artifact}: {len(rejected)} of {rows} rows cannot be used, more than {artifact.stage}.max_rejected "
            f"({cap:.1%}) allows. First ones: {examples}. All are in {join(artifact.folder, LISTING)}; "
            "`fusion-ray inspect MODEL CHATS --id ID` shows one as a model reads it."
        )
    return len(rejected)
