"""The progress of a stage, as gauges of Ray's metrics (Prometheus, Grafana) and as one line for people.

The metrics are gauges named `fusion_ray_NAME`, with the tags `run`, `stage` and `model`; docs/operations.md lists them.
"""

import time
from collections import deque
from collections.abc import Sequence
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
        found: Its shards that earlier runs have finished.
        rows: In all.
        actors: The most there can be.
    """

    def __init__(
        self, run: str, artifact: Artifact, tell: Tell, *, found: Sequence[ShardRecord] = (), rows: int, actors: int = 1
    ) -> None:
        self.run, self.artifact, self.tell, self.rows_total = run, artifact, tell, rows
        self.rows_done = sum(record.rows for record in found)
        self.rows_rejected = sum(len(record.facts["rejected"]) for record in found)
        self.tokens_done = self.bytes_done = 0
        self.started = time.monotonic()
        self.last = deque([_Finished(self.started, "", 0, 0)], maxlen=1 + _SHARDS_PER_ACTOR * actors)
        tell(Progress(str(artifact), self.rows_done, rows))

    def add(self, record: ShardRecord, actor: str = "") -> None:
        """Count a shard, which an actor has finished where actors do the work."""
        tokens = record.facts.get("answer_tokens", 0)
        self.rows_done += record.rows
        self.rows_rejected += len(record.facts["rejected"])
        self.tokens_done += tokens
        self.bytes_done += record.bytes
        self.last.append(_Finished(time.monotonic(), actor, record.rows, tokens))
        first, *others = self.last
        seconds = max(others[-1].at - first.at, 1e-9)
        rows_per_s = sum(shard.rows for shard in others) / seconds
        left_s = (self.rows_total - self.rows_done) / rows_per_s if rows_per_s else 0.0
        values = {"seconds_left": left_s, "bytes_per_s": self.bytes_done / max(others[-1].at - self.started, 1e-9)}
        line = f"{self.rows_done:,} of {self.rows_total:,} rows"
        if self.tokens_done:
            values["tokens_per_s"] = sum(shard.tokens for shard in others) / seconds
            line += f", {values['tokens_per_s']:,.0f} tokens/s"
        if actor:
            values["actors"] = len({shard.actor for shard in others})
            line += f", {values['actors']} actor{'s' * (values['actors'] != 1)}"
        self._set(**values)
        self.tell(Progress(str(self.artifact), self.rows_done, self.rows_total, line, record.path, left_s))

    def close(self) -> None:
        """Nothing is being worked on any more."""
        self._set(tokens_per_s=0.0, bytes_per_s=0.0, actors=0, seconds_left=0.0)

    def _set(self, **values: float) -> None:
        counts = ("rows_done", "rows_total", "rows_rejected", "tokens_done")
        set_metrics(self.run, self.artifact, **{name: getattr(self, name) for name in counts}, **values)
