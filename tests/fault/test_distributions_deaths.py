"""Scoring survives the death of its driver, an actor, a node and an engine, and ends with the same bytes."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from toys.dying import Once, dying_recipe, fail, opens, vanish, wait

from fusion_ray.distributions.stage import build_distributions
from fusion_ray.errors import EngineError
from fusion_ray.models.opening import OpenScorer, open_scorer
from fusion_ray.on_ray import cluster
from fusion_ray.pipeline.graph import build_graph
from fusion_ray.pipeline.run import run
from fusion_ray.progress import silent
from fusion_ray.recipe import Recipe
from fusion_ray.storage.artifacts import Artifact, read_manifest
from fusion_ray.storage.shards import read_shard

# Ray sets its own deprecated options while it makes its defaults.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PLANTED_AT = 37
DRIVER = """
import os, sys
from pathlib import Path
from toys.dying import KillDriver, dying_recipe, opens
from test_distributions_deaths import score
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "driver.pid").write_text(str(os.getpid()))
    score(dying_recipe(folder, sys.argv[2], (37,)), opens(KillDriver(folder / "driver.pid")))
"""


def score(recipe: Recipe, open_scorer: OpenScorer = open_scorer) -> Artifact:
    """Make the corpus, and the pivot's distributions with the scorer given."""
    if not ray.is_initialized():
        cluster.connect("local", num_cpus=2)
    run(recipe, until="corpus")
    artifact = pivot_of(recipe)
    build_distributions(recipe, [artifact], silent, open_scorer)
    return artifact


def pivot_of(recipe: Recipe) -> Artifact:
    return next(artifact for artifact in build_graph(recipe) if str(artifact) == "distributions/pivot")


def shards_of(artifact: Artifact) -> dict[str, bytes]:
    root = Path(artifact.folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


def reasons_of(artifact: Artifact) -> dict[str, str]:
    tables = [read_shard(artifact.folder, shard) for shard in read_manifest(artifact.folder).shards]
    rows = [row for table in tables for row in zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True)]
    return {identity: reason for identity, reason in rows if reason is not None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deaths")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Iterator[dict[str, bytes]]:
    """The shards of a run in which nothing happens."""
    yield shards_of(score(dying_recipe(folder, "undisturbed", (PLANTED_AT,))))
    ray.shutdown()


def test_an_actor_killed_in_the_middle_changes_no_byte(folder: Path, undisturbed: dict[str, bytes]) -> None:
    once = Once(folder / "actor killed", vanish)
    artifact = score(dying_recipe(folder, "actor", (PLANTED_AT,)), opens(once))
    assert once.file.exists(), "the actor was never killed"
    assert shards_of(artifact) == undisturbed
    assert not (Path(artifact.folder) / "attempts").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("death", "why"), [(vanish, "ended without a word"), (fail, "illegal memory access")])
def test_a_row_that_kills_the_engine_again_and_again_is_rejected_by_id(folder: Path, undisturbed, death, why) -> None:
    artifact = score(dying_recipe(folder, death.__name__, (PLANTED_AT,)), opens(death))
    reasons = reasons_of(artifact)
    assert list(reasons) == [f"row-{PLANTED_AT}"]
    assert why in reasons[f"row-{PLANTED_AT}"]
    assert read_manifest(artifact.folder).facts["rejected"] == 1
    shards = shards_of(artifact)
    assert shards.keys() == undisturbed.keys()
    assert sum(shards[path] != undisturbed[path] for path in shards) == 1


@pytest.mark.slow
def test_an_engine_that_dies_on_every_row_fails_the_run_and_not_the_rows(folder: Path) -> None:
    recipe = dying_recipe(folder, "broken", tuple(range(10)), rows=10)
    with pytest.raises(EngineError, match=r"it is the engine and not the rows.*illegal memory access"):
        score(recipe, opens(fail))


@pytest.mark.slow
def test_a_driver_killed_in_the_middle_is_gone_on_from_where_it_was(folder: Path, undisturbed) -> None:
    command = [sys.executable, "-c", DRIVER, str(folder), "driver"]
    paths = {"PYTHONPATH": ":".join([*sys.path, str(Path(__file__).parent)])}
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == -9, done.stderr[-2000:]
    recipe = dying_recipe(folder, "driver", (PLANTED_AT,))
    artifact = pivot_of(recipe)
    root = Path(artifact.folder)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")}
    assert 0 < len(before) < len(undisturbed)
    assert not (root / "MANIFEST.json").exists()
    assert shards_of(score(recipe)) == undisturbed
    assert before == {path: path.stat().st_mtime_ns for path in before}, "a shard that was done was scored again"


@pytest.mark.slow
def test_a_node_lost_in_the_middle_changes_no_byte(folder: Path, undisturbed: dict[str, bytes]) -> None:
    ray.shutdown()
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [machines.add_node(num_cpus=2) for _ in range(2)]
    cluster.connect(machines.address)
    once = Once(folder / "node lost", wait)
    killer = threading.Thread(target=remove_the_node, args=(machines, nodes, once.file), daemon=True)
    try:
        killer.start()
        artifact = score(dying_recipe(folder, "node", (PLANTED_AT,)), opens(once))
        killer.join()
        assert sum(node["Alive"] for node in ray.nodes()) == 2, "no node was lost"
        assert shards_of(artifact) == undisturbed
    finally:
        ray.shutdown()
        machines.shutdown()


def remove_the_node(machines: Cluster, nodes: list[Any], told: Path) -> None:
    """Kill the node whose actor has told that it is in the middle of a shard."""
    while not told.exists() or "@" not in told.read_text():
        time.sleep(0.05)
    (node,) = [node for node in nodes if node.node_id == told.read_text().split("@")[1]]
    machines.remove_node(node, allow_graceful=False)
