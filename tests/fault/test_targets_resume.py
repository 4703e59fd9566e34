"""A training worker that is killed outright, and a run that is cut and started again, end with the same weights."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from toy_targets import toy_artifacts, toy_recipe

from fusion_ray.progress import Progress
from fusion_ray.stages import cluster
from fusion_ray.stages.targets import WORKING, build_targets
from fusion_ray.storage.artifacts import Artifact, read_manifest

# Ray sets its own deprecated options while it makes its defaults.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    cluster.connect("local", num_cpus=2)
    yield


class Killer:
    """Kills the training workers of this process's Ray once, in the middle of training."""

    def __init__(self, artifact: Artifact) -> None:
        self.working = Path(artifact.folder) / WORKING
        self.killed: list[int] = []

    def __call__(self, progress: Progress) -> None:
        in_the_middle = 0 < progress.done < 0.9 * progress.total
        if self.killed or not in_the_middle or not list(self.working.rglob("worker-0.safetensors")):
            return
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                self.killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)


def test_a_killed_worker_changes_nothing_in_the_weights(tmp_path: Path) -> None:
    weights = {}
    for how in ("undisturbed", "killed"):
        recipe = toy_recipe(tmp_path / how, epochs=80, checkpoint_every_steps=10, retries=2)
        (artifact,) = toy_artifacts(recipe, ("math",))
        killer = Killer(artifact)
        build_targets(recipe, [artifact], killer if how == "killed" else lambda _: None)
        weights[how] = load_file(Path(artifact.folder) / "model.safetensors")
    assert killer.killed
    assert read_manifest(artifact.folder).facts["steps"] == 400
    for name, tensor in weights["undisturbed"].items():
        assert torch.equal(tensor, weights["killed"][name]), name
