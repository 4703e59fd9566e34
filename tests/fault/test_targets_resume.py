"""Training that is killed or warned, a process or a whole node of it, ends with the weights of undisturbed training.

A run has 400 updates and a checkpoint every 10; each kind of trouble comes in the middle of it.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file
from toys.targets import toy_artifacts, toy_recipe

from fusion_ray.on_ray import cluster
from fusion_ray.progress import Progress
from fusion_ray.storage.artifacts import Artifact, read_manifest
from fusion_ray.targets.stage import WORKING, build_targets

# Ray sets its own deprecated options while it makes its defaults.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.slow,
]
Weights = dict[str, torch.Tensor]
MEMORY = {"object_store_memory": 100 << 20}


def the_run(folder: Path, **changes: Any) -> tuple[Any, Artifact]:
    recipe = toy_recipe(folder, **{"epochs": 80, "checkpoint_every_steps": 10, "retries": 2, **changes})
    return recipe, toy_artifacts(recipe, ("math",))[0]


def weights_of(artifact: Artifact) -> Weights:
    assert read_manifest(artifact.folder).facts["steps"] == 400
    return load_file(Path(artifact.folder) / "model.safetensors")


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def _no_ray_before_or_after() -> Iterator[None]:
    ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    cluster.connect("local", num_cpus=2)
    recipe, artifact = the_run(tmp_path_factory.mktemp("undisturbed"))
    build_targets(recipe, [artifact], lambda _: None)
    ray.shutdown()
    return weights_of(artifact)


class Trouble:
    """Calls `make` once, in the middle of a training that has saved a checkpoint."""

    def __init__(self, artifact: Artifact, make: Callable[[], None]) -> None:
        self.working = Path(artifact.folder) / WORKING
        self.make = make
        self.made_at: float | None = None

    def __call__(self, progress: Progress) -> None:
        in_the_middle = 0 < progress.done < 0.7 * progress.total
        if self.made_at is None and in_the_middle and saved_steps(self.working):
            self.made_at = progress.done
            self.make()


def saved_steps(working: Path) -> list[int]:
    """Steps of the checkpoints there are now."""
    steps = []
    for path in working.rglob("progress.json"):
        try:
            steps.append(json.loads(path.read_text())["step"])
        except (OSError, ValueError):  # Being written, or just pruned.
            continue
    return sorted(steps)


def starts(seen: list[float]) -> list[float]:
    """The first update after each start of the workers, which they announce as 0 updates done."""
    return [after for before, after in itertools.pairwise(seen) if before == 0 < after]


def workers() -> list[psutil.Process]:
    """Training workers of the Rays that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_changes_nothing_in_the_weights(
    undisturbed: Weights, tmp_path: Path, how: signal.Signals
) -> None:
    cluster.connect("local", num_cpus=2)
    # After SIGTERM there is a checkpoint between those that come in turn: with none of these, it is the only one.
    recipe, artifact = the_run(tmp_path, checkpoint_every_steps=10 if how == signal.SIGKILL else 150)
    trouble = Trouble(artifact, lambda: [process.send_signal(how) for process in workers()])
    seen: list[float] = []
    build_targets(recipe, [artifact], lambda progress: [seen.append(progress.done), trouble(progress)])
    assert trouble.made_at is not None
    first, again = starts(seen)
    assert first < 10
    if how == signal.SIGTERM:
        assert again > trouble.made_at, "it went on from where SIGTERM had come"
    assert equal(weights_of(artifact), undisturbed)


def test_a_killed_driver_goes_on_when_started_again(undisturbed: Weights, tmp_path: Path) -> None:
    _, artifact = the_run(tmp_path)
    command = [sys.executable, "-W", "ignore", __file__, str(tmp_path)]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    process = subprocess.Popen(command, start_new_session=True, env={**os.environ, "PYTHONPATH": paths})
    working, until = Path(artifact.folder) / WORKING, time.monotonic() + 300
    while max(saved_steps(working), default=0) < 50:
        assert process.poll() is None, "the driver ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (Path(artifact.folder) / "MANIFEST.json").exists()
    cluster.connect("local", num_cpus=2)
    recipe, artifact = the_run(tmp_path)
    seen: list[float] = []
    build_targets(recipe, [artifact], lambda progress: seen.append(progress.done))
    # Of the checkpoints on disk Ray knows those that it had put on record when it was killed.
    assert starts(seen)[0] > 10, "it went on, and did not start anew"
    assert equal(weights_of(artifact), undisturbed)


@pytest.fixture
def two_nodes() -> Iterator[tuple[Cluster, Any]]:
    """A head without CPUs, on which nothing trains, and a node that can go."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **MEMORY})
    node = made.add_node(num_cpus=1, **MEMORY)
    made.wait_for_nodes()
    cluster.connect(made.address)
    yield made, node
    ray.shutdown()
    made.shutdown()


def test_a_lost_node_changes_nothing_in_the_weights(
    undisturbed: Weights, tmp_path: Path, two_nodes: tuple[Cluster, Any]
) -> None:
    made, node = two_nodes

    def lose() -> None:
        made.remove_node(node, allow_graceful=False)
        made.add_node(num_cpus=1, **MEMORY)

    recipe, artifact = the_run(tmp_path)
    trouble = Trouble(artifact, lose)
    build_targets(recipe, [artifact], trouble)
    assert trouble.made_at is not None
    assert equal(weights_of(artifact), undisturbed)


def test_a_node_about_to_be_taken_away_leads_to_a_checkpoint_from_which_another_goes_on(
    tmp_path: Path, two_nodes: tuple[Cluster, Any]
) -> None:
    made, node = two_nodes
    recipe, artifact = the_run(tmp_path, checkpoint_every_steps=10_000, epochs=240)
    drained, gone, saved, seen = False, False, list[tuple[int, float]](), list[float]()

    def watch(progress: Progress) -> None:
        nonlocal drained, gone
        seen.append(progress.done)
        if not drained and progress.done > 10:
            drained = True
            drain(made, node)
        if not saved:
            saved.extend((step, time.monotonic()) for step in saved_steps(Path(artifact.folder) / WORKING))
        elif not gone and time.monotonic() - saved[0][1] > 3:  # Ray has put the checkpoint on record.
            gone = True
            made.add_node(num_cpus=1, **MEMORY)
            made.remove_node(node, allow_graceful=False)

    build_targets(recipe, [artifact], watch)
    assert saved, "a checkpoint came although none was due"
    first, again = starts(seen)
    assert first < 10
    assert again == saved[0][0] + 1
    assert read_manifest(artifact.folder).facts["steps"] == 1200


def drain(made: Cluster, node: Any) -> None:
    """What a cloud provider's notice makes Ray do; the node itself stays."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    preemption = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + 600) * 1000)
    accepted, why = GcsClient(address=made.address).drain_node(node.node_id, preemption, "spot", deadline_ms)
    assert accepted, why


if __name__ == "__main__":
    cluster.connect("local", num_cpus=2)
    the_recipe, the_artifact = the_run(Path(sys.argv[1]))
    build_targets(the_recipe, [the_artifact], lambda _: None)
