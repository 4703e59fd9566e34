"""Training curves for those who watch: TensorBoard event files always, Weights & Biases and MLflow on request."""

import importlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fusion_ray.errors import EngineError
from fusion_ray.targets.trainer import StepReport

_CURVES = ("loss", "gold", "soft", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_s")
_PROJECT = "fusion_ray"


@dataclass(frozen=True)
class TrackedRun:
    """What trackers are told of a run.

    Attributes:
        name: For people, such as `mine/math`.
        identity: The same when a run goes on after a pause, and only then.
        settings: Plain data.
    """

    name: str
    identity: str
    settings: Mapping[str, Any]


class Tracker(Protocol):
    """One place that curves go to."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one update's numbers."""

    def close(self) -> None:
        """Write out what is waiting."""


def open_trackers(names: Iterable[str], run: TrackedRun, folder: Path, before: list[StepReport]) -> list[Tracker]:
    """Open TensorBoard and the trackers named.

    Args:
        names: `wandb`, `mlflow`; they read their addresses and keys from environment variables of their own.
        run: What is tracked.
        folder: For local files; a folder of TensorBoard's own in it is made anew.
        before: Updates done before a pause. TensorBoard shows them from the new files; the others know them.

    Raises:
        EngineError: A tracker is not installed, or refuses.
    """
    opened: list[Tracker] = [_TensorBoard(folder / "tensorboard", before)]
    for name in names:
        try:
            opened.append(_Wandb(run, folder) if name == "wandb" else _Mlflow(run))
        except EngineError:
            raise
        except Exception as error:  # Each raises kinds of its own, few of which name the tracker.
            raise EngineError(
                f"targets.trackers: {name} refused ({type(error).__name__}: {error}). Log in or set its environment "
                f"variables on every node, or take {name} out of targets.trackers."
            ) from error
    return opened


def curve_values(line: StepReport) -> dict[str, float]:
    """The numbers of an update that are worth a curve; what was not measured is left out."""
    return {name: value for name, value in asdict(line).items() if name in _CURVES and value is not None}


class _TensorBoard:
    def __init__(self, folder: Path, before: list[StepReport]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Written anew: a run that was killed has logged updates that its checkpoint does not have.
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        for line in before:
            self.log(line.step, curve_values(line))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run: TrackedRun, folder: Path) -> None:
        wandb = _import("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            id=run.identity,
            resume="allow",
            config=dict(run.settings),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            settings=wandb.Settings(silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    _IDENTITY = "fusion_ray.run"

    def __init__(self, run: TrackedRun) -> None:
        mlflow = _import("mlflow")
        self._client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        found = self._client.search_runs([experiment], f"tags.`{self._IDENTITY}` = '{run.identity}'")
        if not found:
            found = [self._client.create_run(experiment, run_name=run.name, tags={self._IDENTITY: run.identity})]
            for key, value in run.settings.items():
                self._client.log_param(found[0].info.run_id, key, value)
        self._id = found[0].info.run_id
        self._client.update_run(self._id, "RUNNING")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(
            f"targets.trackers: {name} is not installed here ({error}). Install it on every node: "
            f"pip install 'fusion-ray[trackers]', or take {name} out of targets.trackers."
        ) from error
