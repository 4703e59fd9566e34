"""Rows that a stage could not use: listed by id and reason, counted, and capped."""

import json

from fusion_ray.errors import ArtifactError
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.filesystem import join, write_bytes
from fusion_ray.storage.shards import ShardRecord

LISTING = "rejected/rows.jsonl"


def settle_rejections(artifact: Artifact, records: list[ShardRecord], cap: float) -> int:
    """List the rejected rows of finished shards in `rejected/rows.jsonl`, and fail when there are too many.

    A shard's facts hold `rejected`: a mapping of row id to reason.

    Returns:
        How many rows were rejected.

    Raises:
        ArtifactError: More than `cap` (a share of all rows) were rejected.
    """
    rejected = [
        {"id": identity, "reason": reason, "shard": record.path}
        for record in records
        for identity, reason in record.facts["rejected"].items()
    ]
    rows = sum(record.rows for record in records)
    if rejected:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
        write_bytes(join(artifact.folder, LISTING), lines.encode())
    if rows and len(rejected) / rows > cap:
        examples = "; ".join(f"{row['id']}: {row['reason']}" for row in rejected[:3])
        raise ArtifactError(
            f"{artifact}: {len(rejected)} of {rows} rows cannot be used, more than {artifact.stage}.max_rejected "
            f"({cap:.1%}) allows. First ones: {examples}. All are in {join(artifact.folder, LISTING)}."
        )
    return len(rejected)
