"""The loop over shards: what is on disk stays, what is missing is made, and the order is that of the plan."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusion_ray.on_ray.shard_loop import make_shards
from fusion_ray.progress import Progress
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.shards import ShardRecord, shard_path, write_shard

FACTS = {"rejected": [["row", "why"]], "answer_tokens": 10}
PLANNED = [ShardRecord(shard_path("train", n), 2 + n, 0, "", {}) for n in range(3)]


def table(rows: int) -> pa.Table:
    return pa.table({"id": [str(row) for row in range(rows)]})


def test_only_missing_shards_are_made_and_all_come_back_in_order(tmp_path: Path) -> None:
    artifact = Artifact(run=str(tmp_path), stage="fused", source="math")
    asked: list[str] = []
    told: list[Progress] = []

    def make(todo: list[ShardRecord]) -> Iterator[Mapping[str, Any]]:
        for shard in reversed(todo):
            asked.append(shard.path)
            record = write_shard(artifact.folder, shard.path, table(shard.rows), artifact.fingerprint, FACTS)
            yield asdict(record) | {"actor": "one"}

    first = make_shards("mine", artifact, PLANNED, make, told.append, actors=2)
    assert asked == [shard.path for shard in reversed(PLANNED)]
    assert [(record.path, record.rows) for record in first] == [(shard.path, shard.rows) for shard in PLANNED]
    assert [progress.done for progress in told] == [0, 4, 7, 9]
    assert {progress.total for progress in told} == {9}
    assert told[-1].detail.startswith("9 of 9 rows, ") and told[-1].detail.endswith(" tokens/s, 1 actor")
    asked.clear()
    told.clear()
    (Path(artifact.folder) / PLANNED[1].path).unlink()
    assert make_shards("mine", artifact, PLANNED, make, told.append) == first
    assert asked == [PLANNED[1].path]
    assert [progress.done for progress in told] == [6, 9]
    asked.clear()
    assert make_shards("mine", artifact, PLANNED, make, told.append) == first
    assert asked == []


def test_unless_more_are_said_to_be_there_one_actor_works(tmp_path: Path) -> None:
    planned = [ShardRecord(shard_path("train", n), 2, 0, "", {}) for n in range(9)]
    told: list[Progress] = []
    for place, actors in (("plain", {}), ("two", {"actors": 2})):
        artifact = Artifact(run=str(tmp_path / place), stage="fused", source="math")

        def make(todo: list[ShardRecord], artifact: Artifact = artifact) -> Iterator[Mapping[str, Any]]:
            for number, shard in enumerate(todo):
                record = write_shard(artifact.folder, shard.path, table(shard.rows), artifact.fingerprint, FACTS)
                yield asdict(record) | {"actor": f"actor-{number}"}

        make_shards("mine", artifact, planned, make, told.append, **actors)
        # The rate is measured over four shards for each actor.
        assert told[-1].detail.endswith(" 8 actors" if actors else " 4 actors")
