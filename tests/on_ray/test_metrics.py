"""What a stage tells while it works: rows, tokens, actors, and how long is left."""

import re
from types import SimpleNamespace

import pytest

from fusion_ray.on_ray import metrics
from fusion_ray.on_ray.metrics import Meter
from fusion_ray.progress import Progress
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.shards import ShardRecord


def test_the_line_counts_rows_tokens_and_actors_and_says_how_long_is_left() -> None:
    told: list[Progress] = []
    artifact = Artifact(run="/nowhere", stage="distributions", model="math")
    finished = ShardRecord("train/0.parquet", 100, 10, "", {"answer_tokens": 5000, "rejected": [["a", "why"]]})
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


def measured(
    monkeypatch: pytest.MonkeyPatch, *shards: tuple[float, str, int, int, int], rows: int = 1000, **more: int
) -> tuple[list[Progress], list[dict[str, float]]]:
    """What people and gauges are told of shards that are finished at a time by an actor: rows, tokens, bytes."""
    clock, told, values = [100.0], [], []  # type: ignore[var-annotated]
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(metrics, "set_metrics", lambda *_, **found: values.append(found))
    artifact = Artifact(run="/nowhere", stage="distributions", model="math")
    meter = Meter("toy", artifact, told.append, rows=rows, **more)
    for now, actor, n_rows, tokens, size in shards:
        clock[0] = 100.0 + now
        facts = {"rejected": [["a", "why"]]} | ({"answer_tokens": tokens} if tokens else {})
        meter.add(ShardRecord(f"train/{now}.parquet", n_rows, size, "", facts), actor)
    meter.close()
    return told, values


def test_rates_are_of_the_last_shards_and_bytes_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # Five shards in five seconds, then one after ninety-five more: of the rate five are seen, and four of them count.
    shards = [(float(n), "one", 10, 500, 4_000) for n in range(1, 6)] + [(100.0, "two", 150, 1_000, 80_000)]
    told, values = measured(monkeypatch, *shards)
    assert [progress.done for progress in told] == [0, 10, 20, 30, 40, 50, 200]
    assert told[1].detail == "10 of 1,000 rows, 500 tokens/s, 1 actor"
    assert told[-1].detail == "200 of 1,000 rows, 26 tokens/s, 2 actors"
    assert told[-1].shard == "train/100.0.parquet"
    # From the second shard on: 180 rows and 2,500 tokens in 98 seconds; 100,000 bytes in all 100.
    expected = {
        "seconds_left": 800 / (180 / 98), "bytes_per_s": 1_000.0, "tokens_per_s": 2_500 / 98, "actors": 2,
        "rows_done": 200, "rows_total": 1000, "rows_rejected": 6, "tokens_done": 3_500,
    }  # fmt: skip
    assert values[-2] == pytest.approx(expected)
    assert told[-1].left_s == pytest.approx(800 / (180 / 98))
    closed = dict.fromkeys(("tokens_per_s", "bytes_per_s", "actors", "seconds_left"), 0)
    assert values[-1] == {name: expected[name] for name in expected if name.startswith("rows_")} | {
        "tokens_done": 3_500, **closed,
    }  # fmt: skip


def test_without_tokens_actors_or_rows_nothing_is_said_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    told, values = measured(monkeypatch, (2.0, "", 0, 0, 10))
    assert told[-1].detail == "0 of 1,000 rows"
    assert told[-1].left_s == 0.0
    assert {"tokens_per_s", "actors"}.isdisjoint(values[0]) and values[0]["bytes_per_s"] == 5.0


def test_what_is_finished_at_once_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    _, values = measured(monkeypatch, (0.0, "", 10, 20, 10))
    assert values[0]["tokens_per_s"] == pytest.approx(20e9) and values[0]["bytes_per_s"] == pytest.approx(10e9)


def test_each_of_several_actors_adds_four_shards_to_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [(float(n), f"actor-{n}", 10, 100, 1) for n in range(1, 10)]
    told, _ = measured(monkeypatch, *shards, actors=2)
    assert told[-1].detail.endswith(", 8 actors")
    assert told[1].detail.endswith(" 1 actor")
