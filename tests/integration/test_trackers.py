"""Weights & Biases and MLflow themselves, which start processes of their own."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toys.training import RUN, curve_line

from fusion_ray.errors import EngineError
from fusion_ray.targets.trackers import curve_values, open_trackers


def test_wandb_offline_writes_a_run_of_our_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    *_, wandb = open_trackers(("wandb",), RUN, tmp_path, [])
    wandb.log(1, curve_values(curve_line(1)))
    wandb.close()
    (written,) = tmp_path.glob("wandb/offline-run-*/run-mine-math-0123.wandb")
    # A process of its own writes the file, on a busy machine after `finish` has come back.
    wait_until(lambda: b"gradient_norm" in written.read_bytes() and b"mine/math" in written.read_bytes(), seconds=120)


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.1)


@pytest.mark.slow
def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for step in (1, 2):
        *_, tracker = open_trackers(("mlflow",), RUN, tmp_path, [])
        tracker.log(step, curve_values(curve_line(step)))
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
