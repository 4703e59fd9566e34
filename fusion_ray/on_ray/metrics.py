"""How far a stage is, as numbers for Ray's metrics (Prometheus, Grafana) and as one line for people.

The metrics are gauges named `fusion_ray_NAME`, with the tags `run`, `stage` and `model`; docs/operations.md lists them.
"""

import time
from collections import deque
from functools import lru_cache
from typing import NamedTuple

from ray.util.metrics import Gauge

from fusion_ray.progress import Progress, Tell
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.shards import ShardRecord

GAUGES = {
    "rows_done": "Rows that are finished, those of earlier runs included",
    "rows_total": "Rows in all",
    "rows_rejected": "Finished rows that could not be used",
    "tokens_done": "Tokens worked on in this run",
    "tokens_per_s": "Tokens a second, over the last shards",
    "actors": "Actors that finished one of the last shards",
    "seconds_left": "Time to go at this speed",
    "bytes_per_s": "Bytes written a second, over this artifact",
    "steps_done": "Updates of a training run that are done",
    "steps_total": "Updates in all",
    "loss": "Training loss of the last update, nats per answer token",
    "loss_gold": "Its part from the tokens of the corpus",
    "loss_soft": "Its part from the teachers' distributions",
    "bits_per_byte": "Of the validation rows, when last measured",
}
_TAGS = ("run", "stage", "model")

# Shards over which the rate is measured, for each actor that there may be.
_SHARDS_PER_ACTOR = 4


def set_metrics(run: str, artifact: Artifact, **values: float) -> None:
    """Set gauges of an artifact that is being made.

    Args:
        run: The recipe's name.
        artifact: Its stage and name become tags.
        values: By name, one of GAUGES.
    """
    for name, value in values.items():
        _gauge(name).set(value, {"run": run, "stage": artifact.stage, "model": artifact.name})


def set_shard_metrics(run: str, artifact: Artifact, records: list[ShardRecord], rows: int, seconds: float) -> None:
    """Set the gauges that follow from the shards finished so far.

    Args:
        run: The recipe's name.
        artifact: What is being made.
        records: Its finished shards, those of earlier runs included.
        rows: Rows in all.
        seconds: How long this run has been at it.
    """
    values = {"rows_done": sum(record.rows for record in records), "rows_total": rows}
    values["rows_rejected"] = sum(len(record.facts["rejected"]) for record in records)
    bytes_per_s = sum(record.bytes for record in records) / max(seconds, 1e-9)
    set_metrics(run, artifact, **values, bytes_per_s=bytes_per_s)


@lru_cache
def _gauge(name: str) -> Gauge:
    return Gauge(f"fusion_ray_{name}", GAUGES[name], _TAGS)


class _Finished(NamedTuple):
    """One shard: when it was finished, by whom, and what was in it."""

    at: float
    actor: str
    rows: int
    tokens: int


class Meter:
    """Counts the shards of one artifact as they are finished, and tells people and Ray's metrics.

    Args:
        run: The recipe's name.
        artifact: What is being made.
        tell: Receives the line.
        rows_done: Rows finished by earlier runs.
        rows_total: Rows in all.
        actors: The most there can be.
    """

    def __init__(
        self, run: str, artifact: Artifact, tell: Tell, *, rows_done: int, rows_total: int, actors: int
    ) -> None:
        self.run, self.artifact, self.tell = run, artifact, tell
        self.rows_done, self.rows_total, self.rows_rejected, self.tokens_done = rows_done, rows_total, 0, 0
        self.last = deque([_Finished(time.monotonic(), "", 0, 0)], maxlen=1 + _SHARDS_PER_ACTOR * actors)
        tell(Progress(str(artifact), rows_done, rows_total))

    def add(self, actor: str, rows: int, tokens: int, rejected: int, shard: str = "") -> None:
        """Count a shard that an actor has finished."""
        self.rows_done += rows
        self.rows_rejected += rejected
        self.tokens_done += tokens
        self.last.append(_Finished(time.monotonic(), actor, rows, tokens))
        first, *others = self.last
        seconds = max(others[-1].at - first.at, 1e-9)
        tokens_per_s = sum(shard.tokens for shard in others) / seconds
        rows_per_s = sum(shard.rows for shard in others) / seconds
        left_s = (self.rows_total - self.rows_done) / rows_per_s if rows_per_s else 0.0
        actors = len({shard.actor for shard in others})
        self._set(tokens_per_s=tokens_per_s, actors=actors, seconds_left=left_s)
        line = f"{self.rows_done:,} of {self.rows_total:,} rows, {tokens_per_s:,.0f} tokens/s, "
        line += f"{actors} actor{'s' * (actors != 1)}"
        self.tell(Progress(str(self.artifact), self.rows_done, self.rows_total, line, shard, left_s))

    def close(self) -> None:
        """Nothing is being worked on any more."""
        self._set(tokens_per_s=0.0, actors=0, seconds_left=0.0)

    def _set(self, **values: float) -> None:
        counts = ("rows_done", "rows_total", "rows_rejected", "tokens_done")
        set_metrics(self.run, self.artifact, **{name: getattr(self, name) for name in counts}, **values)
