"""The resumable loop of every stage that makes shards: finished ones stay, missing ones are made, in any order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fusion_ray.on_ray.metrics import Meter
from fusion_ray.progress import Tell
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.shards import ShardRecord, find_shard


def make_shards(
    run: str,
    artifact: Artifact,
    planned: Sequence[ShardRecord],
    make: Callable[[list[ShardRecord]], Iterator[Mapping[str, Any]]],
    tell: Tell,
    *,
    actors: int = 1,
) -> list[ShardRecord]:
    """Make those shards of an artifact that no earlier run has finished.

    Args:
        run: The recipe's name.
        artifact: What is being made.
        planned: Shards of an input; the artifact has one of the same path for each.
        make: Called with the planned shards that are missing, if any; yields the record of each as it is finished, as
            plain data, and `actor` where actors do the work.
        tell: Receives progress.
        actors: The most there can be.

    Returns:
        Records of all shards, in the order of `planned`.
    """
    found = {shard.path: find_shard(artifact.folder, shard.path, artifact.fingerprint) for shard in planned}
    records = {path: record for path, record in found.items() if record}
    todo = [shard for shard in planned if shard.path not in records]
    rows = sum(shard.rows for shard in planned)
    meter = Meter(run, artifact, tell, found=list(records.values()), rows=rows, actors=actors)
    for result in make(todo) if todo else ():
        fields = dict(result)
        actor = fields.pop("actor", "")
        record = ShardRecord(**fields)
        records[record.path] = record
        meter.add(record, actor)
    meter.close()
    return [records[shard.path] for shard in planned]
