"""Reports of a training run while it goes: the live line, Ray's metrics, and the trackers' curves."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray.train
import ray.train.collective
from pyarrow import fs

from fusion_ray.errors import EngineError
from fusion_ray.on_ray.board import put_on
from fusion_ray.on_ray.metrics import set_metrics
from fusion_ray.progress import Progress
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.filesystem import locate
from fusion_ray.targets.trackers import TrackedRun, Tracker, curve_values, open_trackers
from fusion_ray.targets.trainer import StepReport

_TELL_EVERY_S = 0.5


class ReportedRun(NamedTuple):
    """A training run, and where its reports go.

    Attributes:
        run: The recipe's name.
        artifact: The target that is being made.
        board: Actor that takes progress reports.
    """

    run: str
    artifact: Artifact
    board: Any
    trackers: tuple[str, ...]
    tracked: TrackedRun


@contextmanager
def report_training(reported: ReportedRun, before: list[StepReport]) -> Iterator[Callable[[StepReport], None]]:
    """Give the function that every worker calls after every update; only the first worker's calls report.

    Args:
        reported: The run.
        before: Updates that its checkpoint has behind it.

    Raises:
        EngineError: A tracker is missing or refuses; raised in every worker, so that none waits for the first.
    """
    if ray.train.get_context().get_world_rank() == 0:
        with _reporting_worker(reported, before) as report:
            yield report
    else:
        _agree(None)
        yield lambda _: None


@contextmanager
def _reporting_worker(reported: ReportedRun, before: list[StepReport]) -> Iterator[Callable[[StepReport], None]]:
    place, trackers = locate(reported.artifact.folder), list[Tracker]()
    with tempfile.TemporaryDirectory(prefix="fusion_ray_curves_") as temporary:
        folder = Path(place.path) if place.is_local else Path(temporary)
        try:
            trackers = open_trackers(reported.trackers, reported.tracked, folder, before)
        except EngineError as error:
            _agree(error)
        _agree(None)
        live_line = _LiveLine(reported)

        def tell_all(report: StepReport) -> None:
            live_line.show(report)
            _set_gauges(reported, report)
            for tracker in trackers:
                tracker.log(report.step, curve_values(report))

        try:
            yield tell_all
        finally:
            for tracker in trackers:
                tracker.close()
        if not place.is_local:
            fs.copy_files(str(folder), place.path, fs.LocalFileSystem(), place.filesystem)


def _agree(error: EngineError | None) -> None:
    """Raise the first worker's error in all of them."""
    agreed = ray.train.collective.broadcast_from_rank_zero(error)
    if agreed is not None:
        raise agreed


class _LiveLine:
    """Sends progress to the driver, but not more often than people can read."""

    def __init__(self, reported: ReportedRun) -> None:
        self._reported = reported
        self._told_at = 0.0
        self._bits_per_byte: float | None = None

    def show(self, line: StepReport) -> None:
        self._bits_per_byte = self._bits_per_byte if line.bits_per_byte is None else line.bits_per_byte
        now = time.monotonic()
        if now - self._told_at < _TELL_EVERY_S and line.step < line.total:
            return
        self._told_at = now
        detail = f"loss {line.loss:.3f} (gold {line.gold:.3f}, soft {line.soft:.3f})"
        if self._bits_per_byte is not None:
            detail += f", {self._bits_per_byte:.3f} bits per byte"
        detail += f", {line.tokens_per_s:,.0f} tokens/s"
        if line.step < line.total:
            detail += f", {_clock(_left_s(line))} left"
        put_on(self._reported.board, Progress(str(self._reported.artifact), line.step, line.total, detail))


def _set_gauges(reported: ReportedRun, line: StepReport) -> None:
    values = {"loss": line.loss, "loss_gold": line.gold, "loss_soft": line.soft, "tokens_per_s": line.tokens_per_s}
    values |= {"steps_done": line.step, "steps_total": line.total, "seconds_left": _left_s(line)}
    values |= {} if line.bits_per_byte is None else {"bits_per_byte": line.bits_per_byte}
    set_metrics(reported.run, reported.artifact, **values)


def _left_s(line: StepReport) -> float:
    return (line.total - line.step) * line.tokens / max(line.tokens_per_s, 1e-9)


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    >>> _clock(59), _clock(3661)
    ('0:59', '1:01:01')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
