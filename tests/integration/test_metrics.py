"""What a stage tells while it works: a line for people, gauges for Prometheus."""

import re
import time
import urllib.request

import pytest
import ray

from fusion_ray.progress import Progress
from fusion_ray.stages import cluster
from fusion_ray.stages.metrics import GAUGES, Meter
from fusion_ray.storage.artifacts import Artifact

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_the_line_counts_rows_tokens_and_actors_and_says_how_long_is_left() -> None:
    told: list[Progress] = []
    artifact = Artifact("distributions", "math", "/nowhere", {})
    meter = Meter("toy", artifact, told.append, rows_done=100, rows_total=1000, actors=2)
    for shard in range(9):
        meter.add(f"actor-{shard % 2}", rows=100, tokens=5000, rejected=1)
    assert [progress.done for progress in told] == list(range(100, 1001, 100))
    assert {(progress.what, progress.total) for progress in told} == {("distributions/math", 1000)}
    assert told[1].detail.startswith("200 of 1,000 rows, ") and told[1].detail.endswith(" tokens/s, 1 actor")
    assert told[2].detail.endswith(" tokens/s, 2 actors")
    rate = float(re.search(r"([\d,]+) tokens/s", told[5].detail)[1].replace(",", ""))
    assert told[5].left_s == pytest.approx(400 * 50 / rate, rel=1e-3)
    assert told[-1].left_s == 0
    assert (meter.rows_rejected, meter.tokens_done) == (9, 45_000)


@pytest.mark.slow
def test_every_gauge_can_be_read_by_prometheus_with_its_tags() -> None:
    cluster.connect("local", num_cpus=1)
    meter = Meter(
        "toy", Artifact("distributions", "math", "/", {}), lambda _: None, rows_done=0, rows_total=9, actors=1
    )
    meter.add("actor", rows=3, tokens=77, rejected=1)
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {f"ray_fusion_ray_{name}" for name in GAUGES}
    found: dict[str, str] = {}
    deadline = time.monotonic() + 60
    while found.keys() != wanted and time.monotonic() < deadline:
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = {line.split("{")[0]: line for line in lines if line.startswith("ray_fusion_ray_")}
    assert found.keys() == wanted
    for line in found.values():
        assert all(tag in line for tag in ('run="toy"', 'stage="distributions"', 'model="math"'))
    assert found["ray_fusion_ray_tokens_done"].endswith(" 77.0")
    ray.shutdown()
