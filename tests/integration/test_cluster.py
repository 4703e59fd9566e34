"""One recipe on clusters: as a job on a head that asks for a token, on a bucket, and through lost nodes and processes.

Every way must end in the bytes of a plain local run.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from chaos import STAGES, Kill, Nodes, cluster, content, plan_kills, small_recipe, suffer
from pyarrow import fs
from toys.head import RAY, TOKEN, head
from toys.small_disk import small_disk
from toys.store import BUCKET, KEY, SECRET, object_store
from toys.store import TOKEN as STORE_TOKEN

from fusion_ray.storage.filesystem import copy_folder, list_files, locate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[2]


class Toy(NamedTuple):
    """A recipe, where it is, and what an undisturbed local run of it leaves."""

    path: Path
    folder: Path
    expected: dict[str, str]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = tmp_path_factory.mktemp("toy")
    path = small_recipe(folder)
    _run(_command(path, folder / "quiet"))
    expected = content(folder / "quiet")
    assert len(expected) > 15
    return Toy(path, folder, expected)


def _command(path: Path, runs: Path | str, *more: str) -> list[str]:
    return [sys.executable, "-m", "fusion_ray", "run", str(path), "--set", f"runs={runs}", *more]


def _run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; Ray that did not come up on a busy machine (exit 6) is started again."""
    for _ in range(4):
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=1200)
        if done.returncode != 6:
            break
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done


# --- a job -----------------------------------------------------------------------------------------------------


def _submit(environment: dict[str, str], name: str, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--submission-id", name, "--working-dir", str(ROOT)]
    command += ["--runtime-env", str(ROOT / "cluster" / "runtime_env.yaml"), "--", *entrypoint]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


def test_a_job_runs_behind_a_token_and_says_what_it_does_in_json(toy: Toy) -> None:
    with head() as environment:
        refused = _submit(environment | {"RAY_AUTH_TOKEN": "wrong"}, "stranger", "true")
        assert refused.returncode != 0
        assert "401" in refused.stderr or "token" in refused.stderr.lower()

        bad = _submit(environment, "bad", sys.executable, "jobs/fuse.py", "no/such/recipe.yaml")
        assert "exit code 2" in bad.stdout + bad.stderr

        runs = toy.folder / "job"
        job = [sys.executable, "jobs/fuse.py", str(toy.path), "--set", f"runs={runs}"]
        done = _submit(environment, "good", *job)
        assert done.returncode == 0, done.stdout[-3000:]
        assert content(runs) == toy.expected
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"time"')]
    assert [lines[0]["event"], lines[-1]["event"]] == ["started", "finished"]
    assert {line["run"] for line in lines[1:]} == {"toy"}
    told = [line for line in lines if line["event"] == "progress"]
    assert {line["stage"] for line in told} == {"corpus", "distributions", "fused", "targets", "merged", "report"}
    scored = {line["shard"] for line in told if line["artifact"] == "distributions/pivot" and line["shard"]}
    assert len(scored) == len(list((runs / "toy/2_distributions/pivot").rglob("*.parquet")))
    assert TOKEN not in done.stdout
    assert not [path for path in runs.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


# --- a bucket --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_run_in_a_bucket_ends_in_the_same_bytes_and_names_no_secret(toy: Toy, tmp_path: Path, kind: str) -> None:
    with object_store(refuse_every=50, kind=kind) as store:
        environment = {"FUSION_RAY_CACHE": str(tmp_path / "cache"), "HF_TOKEN": SECRET[::-1]}
        command = _command(toy.path, f"{store.root}/runs")
        done = _run(command, **environment)
        again = _run(command, **environment)
        assert again.stdout.count("done before") >= 6
        copy_folder(f"{store.root}/runs", str(tmp_path / "copy"), _fetchable(f"{store.root}/runs", tmp_path))
        assert store.counts().refused > 3
    assert content(tmp_path / "copy") == toy.expected
    texts = [done.stdout + done.stderr, *(p.read_bytes().decode(errors="ignore") for p in _files(tmp_path / "copy"))]
    assert not [text for text in texts for secret in (SECRET, KEY, STORE_TOKEN, SECRET[::-1]) if secret in text]
    names = {path.name for path in _files(tmp_path / "copy")}
    assert {"MANIFEST.json", "report.html", "report.json", "config.json", "recipe.json"} <= names


def _fetchable(uri: str, target: Path) -> list[str]:
    names = list_files(uri, recursive=True)
    for name in names:
        (target / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
    return names


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_models_and_chats_in_a_bucket_are_scored_as_local_ones_are(toy: Toy, tmp_path: Path) -> None:
    data = json.loads(toy.path.read_text())
    with object_store() as store:
        for model in (data["pivot"], *data["sources"]):
            here = model["model"]
            model["model"] = f"s3://{BUCKET}/models/{Path(here).name}"
            copy_folder(here, model["model"], list_files(here))
        place = locate(f"s3://{BUCKET}/chats.jsonl")
        fs.copy_files(data["corpus"]["path"], place.path, fs.LocalFileSystem(), place.filesystem)
        data["corpus"]["path"] = f"s3://{BUCKET}/chats.jsonl"
        path = tmp_path / "bucket.json"
        path.write_text(json.dumps(data))
        command = _command(path, tmp_path / "runs", "--until", "distributions")
        _run(command, FUSION_RAY_CACHE=str(tmp_path / "cache"), **store.environment)
    for name in ("pivot", "math"):
        there = _nll(toy.folder / "quiet" / "toy" / "2_distributions" / name)
        assert _nll(tmp_path / "runs" / "toy" / "2_distributions" / name) == there
    assert len(list((tmp_path / "cache" / "folders").iterdir())) == 2


def _nll(folder: Path) -> float:
    return float(json.loads((folder / "MANIFEST.json").read_text())["facts"]["nll_nats"])


# --- lost nodes and processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster(labels=[{"pool": "cpu"}, {"pool": "score"}, {"pool": "train"}]) as nodes:
        yield nodes


def _watch(toy: Toy, nodes: Nodes, name: str, *more: str) -> dict[str, set[str]]:
    """Run the recipe on the nodes; what was seen at work on each, by its label."""
    while nodes.busy():  # The run before has just ended.
        time.sleep(0.2)
    seen: dict[str, set[str]] = {}
    command = _command(toy.path, toy.folder / name, "--address", nodes.address, *more)
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while driver.poll() is None:
        for label, names in nodes.names_by_label("pool").items():
            seen.setdefault(label, set()).update(names)
        time.sleep(0.05)
    assert driver.stdout is not None
    assert driver.returncode == 0, driver.stdout.read()[-3000:]
    driver.stdout.close()
    return seen


def _holders(seen: dict[str, set[str]], what: str) -> set[str]:
    return {label for label, names in seen.items() if any(what in name for name in names)}


def test_scoring_spreads_over_the_nodes(toy: Toy, nodes: Nodes) -> None:
    seen = _watch(toy, nodes, "spread", "--set", "distributions.actors.max=2", "--until", "distributions")
    assert len(_holders(seen, "_Score")) >= 2, seen
    folder = "toy/2_distributions"
    made = {name: value for name, value in toy.expected.items() if name.startswith(folder)}
    assert {name: value for name, value in content(toy.folder / "spread").items() if folder in name} == made


def test_labels_decide_where_models_are_loaded(toy: Toy, nodes: Nodes) -> None:
    labels = ["--set", "distributions.nodes=pool=score", "--set", "targets.nodes=pool=train"]
    seen = _watch(toy, nodes, "labels", *labels, "--until", "targets")
    assert _holders(seen, "_Score") == {"score"}, seen
    assert _holders(seen, "RayTrainWorker") == {"train"}, seen


def test_a_node_lost_in_each_stage_changes_no_byte(toy: Toy, nodes: Nodes) -> None:
    _suffer_all(toy, nodes, "lost", [Kill("node", stage, 0.0) for stage in STAGES])


def test_a_seeded_kill_of_each_other_kind_changes_no_byte(toy: Toy, nodes: Nodes) -> None:
    first = {kill.kind: kill for kill in reversed(plan_kills(30, seed=3)) if kill.kind != "node"}
    assert first.keys() == {"driver", "actor", "training", "write"}
    _suffer_all(toy, nodes, "chaos", list(first.values()))


def _suffer_all(toy: Toy, nodes: Nodes, name: str, kills: list[Kill]) -> None:
    """Rounds until every kill has found somebody; each must end in the same bytes."""
    for number in range(4):
        outcome = suffer(nodes, toy.path, toy.folder / f"{name}{number}", kills, number, toy.expected)
        assert outcome.identical, outcome
        kills = [replace(kill, delay_s=kill.delay_s / 4) for kill in outcome.missed]
        if not kills:
            return
    raise AssertionError(f"nobody to kill: {kills}")


def test_a_run_on_a_disk_that_fills_up_goes_on_when_there_is_room(toy: Toy) -> None:
    needed = sum(path.stat().st_size for path in _files(toy.folder / "quiet")) >> 10
    with small_disk(toy.folder / "disk", needed // 2) as disk:
        command = _command(toy.path, disk.folder / "runs")
        stopped = subprocess.run(command, capture_output=True, text=True, timeout=1200)
        assert stopped.returncode in (3, 5), stopped.stderr[-3000:]
        assert re.search("disk is full|No space left on device", stopped.stderr)
        disk.grow(20 * needed)
        _run(command)
        assert content(disk.folder / "runs") == toy.expected


def test_results_larger_than_the_object_store_come_through_it() -> None:
    """Ray spills to disk what its store of 78 MiB, the smallest it allows, cannot hold."""
    script = """
import ray
from fusion_ray.stages import cluster
ray.init(address="local", num_cpus=2, object_store_memory=78 << 20, include_dashboard=False)
work = lambda number: {"number": number, "text": str(number) * (30 << 20)}
found = {result["number"]: len(result["text"]) for result in streams.stream(list(range(8)), work, cpus=1)}
assert found == {number: 30 << 20 for number in range(8)}, found
print("through", len(found))
"""
    assert "through" in _run([sys.executable, "-c", script]).stdout


def test_a_run_that_is_told_to_stop_is_gone_at_once_with_all_its_processes(toy: Toy) -> None:
    command = _command(toy.path, toy.folder / "stopped")
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert driver.stdout is not None
    assert any("distributions" in line for line in driver.stdout), "the run never came to distributions"
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(family) > 3
    driver.terminate()
    assert driver.wait(15) == 143
    driver.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=60)
    # Ray's two agents of the node try to tell a server that is gone too, and give up after a minute or so.
    assert all("Agent" in process.name() or "Agent" in process.cmdline()[0] for process in alive), alive
    _, alive = psutil.wait_procs(alive, timeout=120)
    assert not alive, alive
