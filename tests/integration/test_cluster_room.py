"""What a stage asks of a cluster: refused at once where it cannot grow, waited for where it can; and its errors."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
import ray.data
from ray.cluster_utils import Cluster

from fusion_ray.errors import ClusterError, EngineError
from fusion_ray.stages import cluster

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


def _fail(_: object) -> None:
    raise EngineError("shard 3: no.")


class _FailsAt:
    """An actor that fails where it is told to."""

    def __init__(self, place: str) -> None:
        if place == "start":
            _fail(place)

    def __call__(self, _: object) -> None:
        _fail(_)


def test_an_error_in_a_task_comes_back_as_itself() -> None:
    with pytest.raises(EngineError, match=r"^shard 3: no\.$"):
        list(cluster.stream([1], _fail, cpus=1))


@pytest.mark.parametrize("place", ["start", "work"])
def test_an_error_in_an_actor_comes_back_as_itself(place: str) -> None:
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=1)
    rows = cluster.numbers(1).map_batches(_FailsAt, fn_constructor_args=(place,), compute=pool, batch_size=1)
    with pytest.raises(EngineError, match=r"^shard 3: no\.$"):
        list(cluster.results_of(rows))
