"""What a stage tells while it works: rows, tokens, actors, and how long is left."""

import re

import pytest

from fusion_ray.on_ray.metrics import Meter
from fusion_ray.progress import Progress
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.shards import ShardRecord


def test_the_line_counts_rows_tokens_and_actors_and_says_how_long_is_left() -> None:
    told: list[Progress] = []
    artifact = Artifact(run="/nowhere", stage="distributions", model="math")
    finished = ShardRecord("train/0.parquet", 100, 10, "", {"answer_tokens": 5000, "rejected": {"a": "why"}})
    meter = Meter("toy", artifact, told.append, found=[finished], rows=1000, actors=2)
    for shard in range(9):
        meter.add(finished, f"actor-{shard % 2}")
    assert [progress.done for progress in told] == list(range(100, 1001, 100))
    assert {(progress.what, progress.total) for progress in told} == {("distributions/math", 1000)}
    assert told[1].detail.startswith("200 of 1,000 rows, ") and told[1].detail.endswith(" tokens/s, 1 actor")
    assert told[2].detail.endswith(" tokens/s, 2 actors")
    rate = float(re.search(r"([\d,]+) tokens/s", told[5].detail)[1].replace(",", ""))
    assert told[5].left_s == pytest.approx(400 * 50 / rate, rel=1e-3)
    assert told[-1].left_s == 0
    assert (meter.rows_rejected, meter.tokens_done) == (10, 45_000)
