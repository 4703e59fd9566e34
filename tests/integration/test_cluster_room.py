"""What a stage asks of a cluster: refused at once where it cannot grow, waited for where it can; and its errors."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from fusion_ray.errors import ClusterError, EngineError
from fusion_ray.on_ray import cluster, streams

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.usefixtures("machines"),
]


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    """Two nodes of two CPUs, without GPUs."""
    ray.shutdown()
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    machines.add_node(num_cpus=2)
    cluster.connect(machines.address)
    yield machines
    ray.shutdown()
    machines.shutdown()


@pytest.mark.parametrize("asked", [{"cpus": 2, "count": 2}, {"cpus": 0.5, "count": 8}, {"cpus": 0, "count": 9}])
def test_what_fits_is_let_through(asked: dict[str, float]) -> None:
    cluster.require("distributions", **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"cpus": 3}, "asks for 3 CPU and 0 GPU on one node; this cluster has: 2 CPU, 0 GPU; 2 CPU, 0 GPU"),
        ({"cpus": 1, "gpus": 1}, "asks for 1 CPU and 1 GPU on one node"),
        ({"cpus": 2, "count": 3}, "asks for 3 times 2 CPU and 0 GPU on one node"),
    ],
)
def test_a_fixed_cluster_refuses_at_once(asked: dict[str, float], words: str) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match=words):
        cluster.require("distributions", wait_s=60, **asked)  # type: ignore[arg-type]
    assert time.monotonic() - started < 10


def test_a_cluster_that_can_grow_is_waited_for_and_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTOSCALING", "1")
    words = r"1 GPU on one node; this cluster has after 2 s \(distributions.wait_s\): 2 CPU, 0 GPU; 2 CPU, 0 GPU"
    with pytest.raises(ClusterError, match=words):
        cluster.require("distributions", cpus=1, gpus=1, wait_s=2)


def test_a_node_that_comes_in_time_is_enough(machines: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTOSCALING", "1")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cluster.require, "distributions", cpus=1, gpus=1, wait_s=120)
        while not _pending():  # as an autoscaler, which adds a node for the demand that it can see
            assert not asked.done(), "nothing was asked of the autoscaler"
            time.sleep(0.05)
        machines.add_node(num_cpus=1, num_gpus=1)
        asked.result()
    assert ray.cluster_resources()["GPU"] == 1
    assert _pending() == []


def _pending() -> list[dict[str, object]]:
    return [group for group in ray.util.placement_group_table().values() if group["state"] == "PENDING"]


def _fail_first(item: tuple[int, str]) -> int:
    number, folder = item
    if number == 0:
        raise EngineError("shard 3: no.")
    time.sleep(2)
    Path(folder, str(number)).touch()
    return number


def test_an_error_in_a_task_comes_back_as_itself_and_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^shard 3: no\.$"):
        list(streams.stream([(number, str(tmp_path)) for number in range(40)], _fail_first, cpus=1))
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        time.sleep(0.05)
    assert len(list(tmp_path.iterdir())) < 20
