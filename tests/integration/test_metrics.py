"""What a stage tells while it works: a line for people, gauges for Prometheus."""

import json
import re
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from toys.run import make_recipe

from fusion_ray.on_ray import cluster
from fusion_ray.on_ray.metrics import GAUGES
from fusion_ray.pipeline.run import run
from fusion_ray.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.slow
def test_prometheus_gets_every_gauge_that_the_dashboard_shows_from_a_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    settings = {"controls": [], "epochs": 60, "dtype": "float32", "zero_stage": 0, "learning_rate": 1e-3}
    settings |= {"tokens_per_step": 256, "tokens_per_batch": 256, "max_length": 128, "measure_every_steps": 20}
    recipe = make_recipe(tmp_path, targets=settings, merged={"method": "varm"})
    cluster.connect("local", num_cpus=2)
    (node,) = ray.nodes()
    reading = _Reading(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics")
    reading.start()
    run(recipe)
    reading.stop()
    ray.shutdown()
    board = (Path(__file__).resolve().parents[2] / "cluster" / "grafana.json").read_text()
    shown = set(re.findall(r"ray_fusion_ray_\w+", board))
    assert reading.found.keys() == shown == {f"ray_fusion_ray_{name}" for name in GAUGES}
    stages = {re.search('stage="([^"]*)"', line)[1] for lines in reading.found.values() for line in lines}
    assert stages == {"corpus", "distributions", "fused", "targets", "merged", "report"}
    assert all('run="toy"' in line and "model=" in line for lines in reading.found.values() for line in lines)
    losses = {float(line.split()[-1]) for line in reading.found["ray_fusion_ray_loss"]}
    assert losses <= {json.loads(line)["loss"] for line in _history(recipe)}


def _history(recipe: Recipe) -> list[str]:
    return Path(recipe.folder, "4_targets", "math", "metrics.jsonl").read_text().splitlines()


class _Reading(threading.Thread):
    """Reads a node's metrics twice a second, as Prometheus would, and keeps ours."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address, self.ended = address, threading.Event()
        self.found: dict[str, set[str]] = {}

    def run(self) -> None:
        while not self.ended.wait(0.5):
            with urllib.request.urlopen(self.address, timeout=30) as answer:
                lines = answer.read().decode().splitlines()
            for line in lines:
                if line.startswith("ray_fusion_ray_"):
                    self.found.setdefault(line.split("{")[0], set()).add(line)

    def stop(self) -> None:
        """End after one more reading, for what was set last."""
        time.sleep(2)
        self.ended.set()
        self.join()
