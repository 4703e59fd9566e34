"""Curves reach TensorBoard, Weights & Biases and MLflow, and go on after a pause."""

import subprocess
import sys
from pathlib import Path

import pytest

from fusion_ray.errors import EngineError
from fusion_ray.targets.trackers import TrackedRun, curve_values, open_trackers
from fusion_ray.targets.trainer import StepReport

RUN = TrackedRun("mine/math", "mine-math-0123", {"epochs": 3})


def line(step: int, bits_per_byte: float | None = None) -> StepReport:
    return StepReport(step, 4, step / 2, 3.0 - step, 2.0, 1.0, 1e-3, 0.5, 100, 50.0, bits_per_byte)


def scalars(folder: Path, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(f"train/{name}")}


def test_tensorboard_shows_every_update_once_also_those_before_a_pause(tmp_path: Path) -> None:
    (first,) = open_trackers((), RUN, tmp_path, [])
    for step in (1, 2, 3):
        first.log(step, curve_values(line(step)))
    first.close()  # Killed after update 3; its checkpoint knows 2.
    (second,) = open_trackers((), RUN, tmp_path, [line(1), line(2, 1.5)])
    for step in (3, 4):
        second.log(step, curve_values(line(step)))
    second.close()
    assert scalars(tmp_path, "loss") == {1: 2.0, 2: 1.0, 3: 0.0, 4: -1.0}
    assert scalars(tmp_path, "bits_per_byte") == {2: 1.5}


def test_training_loads_mlflow_only_where_it_tracks() -> None:
    code = """
import sys
from fusion_ray.targets.deepspeed import _import_deepspeed
_import_deepspeed()
assert "mlflow" not in sys.modules
import mlflow
_import_deepspeed()
assert sys.modules["mlflow"] is mlflow
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tracker_that_is_not_installed_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EngineError, match=r"wandb is not installed.*pip install 'fusion-ray\[trackers\]'"):
        open_trackers(("wandb",), RUN, tmp_path, [])


def test_wandb_offline_writes_a_run_of_our_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    *_, wandb = open_trackers(("wandb",), RUN, tmp_path, [])
    wandb.log(1, curve_values(line(1)))
    wandb.close()
    (written,) = tmp_path.glob("wandb/offline-run-*/run-mine-math-0123.wandb")
    content = written.read_bytes()
    assert b"gradient_norm" in content and b"mine/math" in content


@pytest.mark.slow
def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for step in (1, 2):
        *_, tracker = open_trackers(("mlflow",), RUN, tmp_path, [])
        tracker.log(step, curve_values(line(step)))
        tracker.close()
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("fusion_ray").experiment_id
    (run,) = client.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == ("mine/math", "FINISHED")
    assert run.data.params == {"epochs": "3"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]


@pytest.mark.slow
def test_a_tracker_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://here")
    with pytest.raises(EngineError, match=r"mlflow refused.*targets\.trackers"):
        open_trackers(("mlflow",), RUN, tmp_path, [])
