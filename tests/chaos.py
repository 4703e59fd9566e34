"""Random kills at seeded moments over a whole run on a cluster of several nodes; the end must be the same bytes.

    python tests/chaos.py --kills 50 --seed 0        (`make chaos`)

Each round starts from an empty run folder, suffers some of the kills, and is driven until it ends by itself; a kill
that found nobody of its kind at its moment is left to a later round. Who is killed, by kind: `driver` the process that
drives the run, with its whole group; `actor` a worker process that holds a scoring model, or any busy worker where the
stage has none; `training` a process of a training group, likewise; `node` a worker node with all its processes, and a
new one joins; `write` whoever is at work while a file is unfinished.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

KINDS = ("driver", "actor", "training", "node", "write")
STAGES = ("corpus", "distributions", "fused", "targets", "merged", "report")
# Kills come at most so many seconds after their stage has begun: while it is still at work.
LATEST_S = {"corpus": 0.3, "distributions": 3.0, "fused": 1.0, "targets": 12.0, "merged": 0.3, "report": 3.0}
CONTENT = ("*.parquet", "*.safetensors", "weights.json")
_NAMES = {"actor": "_Score", "training": "RayTrainWorker"}
_ALWAYS_THERE = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
_NODES = 3
_POLL_S = 0.05
_SYSTEM = {"health_check_period_ms": 1000, "health_check_timeout_ms": 20_000}  # A lost node is noticed in 5 s, not 15.
_MOST_S = 1800.0
_FRESH_S = 1.0


@dataclass(frozen=True)
class Kill:
    """A kill that is planned: of what kind, in which stage, and how long after the stage was first seen at work."""

    kind: str
    stage: str
    delay_s: float


@dataclass
class Outcome:
    """What became of one round."""

    kills: list[str]
    starts: int
    failures: list[str]
    seconds: float
    identical: bool
    missed: list[Kill]


def small_recipe(folder: Path) -> Path:
    """Two random models, sixty chats: every stage has something to do, and nothing takes long."""
    settings = {"controls": [], "epochs": 2, "dtype": "float32", "zero_stage": 0, "learning_rate": 1e-3}
    settings |= {"tokens_per_step": 512, "tokens_per_batch": 512, "max_length": 128, "checkpoint_every_steps": 2}
    from toys.run import make_recipe

    recipe = make_recipe(folder, targets=settings, merged={"method": "varm"})
    path = folder / "toy.json"
    path.write_text(recipe.model_dump_json())
    return path


def plan_kills(count: int, seed: int) -> list[Kill]:
    """`count` kills, every kind in every stage as evenly as the count allows, in a random order with random delays."""
    choice = random.Random(seed)
    pairs = [(kind, stage) for stage in STAGES for kind in KINDS]
    picked: list[tuple[str, str]] = []
    while len(picked) < count:
        choice.shuffle(pairs)
        picked += pairs
    return [Kill(kind, stage, round(choice.uniform(0.0, LATEST_S[stage]), 3)) for kind, stage in picked[:count]]


def patiently(start: Callable[[], Any]) -> Any:
    """Start something of Ray's again when it did not come up within its 30 s, as happens on a busy machine."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:  # Ray raises a bare Exception.
            if "timed out during startup" not in str(error):
                raise
            last = error
    raise last


class Nodes:
    """A Ray of several nodes on this machine; a node can be lost and another comes in its place."""

    def __init__(self, labels: list[dict[str, str]] | None = None) -> None:
        from ray.cluster_utils import Cluster

        folder = tempfile.mkdtemp(prefix="fr")
        head = {"num_cpus": 0, "object_store_memory": 150 << 20, "include_dashboard": False}
        head |= {"temp_dir": folder, "_system_config": _SYSTEM}
        os.environ.setdefault("RAY_worker_niceness", "0")  # Else a busy machine starves the workers.
        self.cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.address: str = self.cluster.address
        self.labels = {self._add(each): each for each in labels or [{}] * _NODES}

    def _add(self, labels: dict[str, str]) -> Any:
        args = {"num_cpus": 1, "object_store_memory": 150 << 20, "labels": labels}
        return patiently(lambda: self.cluster.add_node(**args))

    def names_by_label(self, key: str) -> dict[str, list[str]]:
        """What is at work now on the nodes that carry each value of a label."""
        return {self.labels[node][key]: [_name(p) for p in found] for node, found in self.at_work().items()}

    def at_work(self) -> dict[Any, list[psutil.Process]]:
        """Processes that are at work now, by node."""
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in self.labels}
        found: dict[Any, list[psutil.Process]] = {node: [] for node in self.labels}
        for process in psutil.process_iter(["ppid"]):
            node = raylets.get(process.info["ppid"])
            if node is not None and _is_busy(process):
                found[node].append(process)
        return found

    def busy(self) -> list[psutil.Process]:
        return [process for found in self.at_work().values() for process in found]

    def lose_one(self, choice: random.Random) -> str:
        """Lose the busiest node: all its processes are killed at once. Another one joins."""
        at_work = list(self.at_work().items())
        choice.shuffle(at_work)
        node, processes = max(at_work, key=lambda item: len(item[1]))
        names = [_name(process) for process in processes]
        self.cluster.remove_node(node, allow_graceful=False)
        labels = self.labels.pop(node)
        self.labels[self._add(labels)] = labels
        return f"node with {', '.join(names) or 'nothing'}"

    def shutdown(self) -> None:
        self.cluster.shutdown()


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()[:60]
    except psutil.Error:
        return "gone"


def _is_busy(process: psutil.Process) -> bool:
    name = _name(process)
    return name.startswith("ray::") and not name.startswith(_ALWAYS_THERE)


class Round:
    """One run from an empty folder to its end, and the kills that it suffers on the way."""

    def __init__(self, recipe: Path, folder: Path, nodes: Nodes, kills: list[Kill], seed: int) -> None:
        self.folder = folder
        self.nodes = nodes
        self.waiting = list(kills)
        self.choice = random.Random(seed)
        self.seen: dict[str, float] = {}
        self.killed: list[str] = []
        command = [sys.executable, "-m", "fusion_ray", "run", str(recipe), "--address", nodes.address]
        self.command = [*command, "--set", f"runs={folder}", "--set", "distributions.actors.max=2"]

    def go(self) -> tuple[int, list[str]]:
        """Run and kill until the run ends by itself; how often it was started, and with which errors it ended."""
        started, failures, until = 0, [], time.monotonic() + _MOST_S
        while True:
            started += 1
            self.seen.clear()
            with tempfile.TemporaryFile() as output:
                driver = subprocess.Popen(self.command, stdout=output, stderr=output, start_new_session=True)
                ended = self._watch(driver, until)
                output.seek(0)
                text = output.read().decode()
            if ended == 0:
                return started, failures
            if ended != -signal.SIGKILL:
                failures.append(f"exit {ended}: {text[-1500:]}")
            if time.monotonic() > until or len(failures) > 5:
                raise TimeoutError(f"the run did not end: {self.killed}, {failures}")

    def _watch(self, driver: "subprocess.Popen[bytes]", until: float) -> int:
        while driver.poll() is None:
            if time.monotonic() > until:
                os.killpg(driver.pid, signal.SIGKILL)
            self._strike(driver)
            time.sleep(_POLL_S)
        return int(driver.returncode)

    def _strike(self, driver: "subprocess.Popen[bytes]") -> None:
        stage = current_stage(self.folder)
        if not any(kill.stage == stage for kill in self.waiting):
            return
        if stage not in self.seen and self.nodes.busy():
            self.seen[stage] = time.monotonic()
        for kill in [kill for kill in self.waiting if kill.stage == stage]:
            if time.monotonic() - self.seen.get(stage, float("inf")) >= kill.delay_s and self._kill(kill, driver):
                self.waiting.remove(kill)
                self.seen.pop(stage, None)  # The next kill of this stage waits until it is at work again.
                return

    def _kill(self, kill: Kill, driver: "subprocess.Popen[bytes]") -> bool:
        """Do it if there is someone of that kind to kill at this moment."""
        if kill.kind == "driver":
            os.killpg(driver.pid, signal.SIGKILL)
            victim: str | None = "driver"
        elif kill.kind == "node":
            victim = self.nodes.lose_one(self.choice)
        elif kill.kind == "write":
            victim = self._kill_writers()
        else:
            victim = self._kill_worker(_NAMES[kill.kind])
        if victim is not None:
            self.killed.append(f"{kill.stage}: {kill.kind}: {victim}")
        return victim is not None

    def _kill_worker(self, wanted: str) -> str | None:
        busy = self.nodes.busy()
        victims = [process for process in busy if wanted in _name(process)] or busy
        return _end(self.choice.choice(victims)) if victims else None

    def _kill_writers(self) -> str | None:
        """Kill all that are at work at a moment when a file is not whole yet; such moments are short, so look hard."""
        busy, until = self.nodes.busy(), time.monotonic() + 0.3
        while busy and time.monotonic() < until:
            if unfinished := unfinished_file(self.folder):
                return f"{', '.join(_end(process) for process in busy)} while {unfinished} was written"
        return None


def _end(process: psutil.Process) -> str:
    name = _name(process)
    with suppress(psutil.NoSuchProcess):
        process.kill()
    return name


def current_stage(folder: Path) -> str:
    """The stage that a run is in: the last whose folder is there, and distributions once the corpus is done."""
    found = [stage for number, stage in enumerate(STAGES, start=1) if list(folder.glob(f"*/{number}_{stage}"))]
    if found == ["corpus"] and list(folder.glob("*/1_corpus/MANIFEST.json")):
        return "distributions"
    return found[-1] if found else "corpus"


def unfinished_file(folder: Path) -> str | None:
    """A file that is being written now under its temporary name, or a checkpoint that is being laid down."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".tmp") or (".training" in parent and name.endswith(".safetensors")):
                with suppress(FileNotFoundError):  # What an earlier kill has left is older.
                    if time.time() - Path(parent, name).stat().st_mtime < _FRESH_S:
                        return name
    return None


def content(folder: Path) -> dict[str, str]:
    """Hashes of all files that hold results, by their place in the run."""
    files = sorted(path for pattern in CONTENT for path in folder.rglob(pattern) if ".training" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextmanager
def cluster(labels: list[dict[str, str]] | None = None) -> Iterator[Nodes]:
    """Nodes for the time of a `with` block; with labels one node for each."""
    nodes = Nodes(labels)
    try:
        yield nodes
    finally:
        nodes.shutdown()


def suffer(
    nodes: Nodes, recipe: Path, folder: Path, kills: list[Kill], seed: int, expected: dict[str, str] | None
) -> Outcome:
    """One round. A kill that finds nobody of its kind at its moment is missed."""
    folder.mkdir(parents=True)
    started, there = time.monotonic(), Round(recipe, folder, nodes, kills, seed)
    starts, failures = there.go()
    found = content(folder)
    same = bool(found) and (expected is None or found == expected)
    return Outcome(there.killed, starts, failures, round(time.monotonic() - started, 1), same, there.waiting)


def again(kills: list[Kill], seed: int) -> list[Kill]:
    """Missed kills for the next round: each sooner than before, and another where it was as soon as can be."""
    others = plan_kills(len(kills), seed)
    return [replace(k, delay_s=k.delay_s / 4) if k.delay_s > 0.05 else o for k, o in zip(kills, others, strict=True)]


def main() -> None:
    """Make the models, run once undisturbed, then in rounds until every planned kill has been done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="leave out the first kills of the schedule")
    parser.add_argument("--per-round", type=int, default=10)
    parser.add_argument("--results", type=Path, default=Path("bench/results/chaos.jsonl"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as temporary, cluster() as nodes:
        recipe = small_recipe(Path(temporary))
        quiet = suffer(nodes, recipe, Path(temporary, "quiet"), [], 0, None)
        expected = content(Path(temporary, "quiet"))
        print(f"undisturbed: {quiet.seconds} s, {len(expected)} files", flush=True)
        waiting = plan_kills(arguments.kills, arguments.seed)[arguments.skip :]
        done, number, bad = 0, 0, 0
        while waiting:
            number += 1
            mine, waiting = waiting[: arguments.per_round], waiting[arguments.per_round :]
            folder = Path(temporary, f"round{number}")
            outcome = suffer(nodes, recipe, folder, mine, arguments.seed + number, expected)
            waiting += again(outcome.missed, arguments.seed + 1000 * number)
            done += len(outcome.kills)
            bad += not outcome.identical
            line = {"round": number, **asdict(outcome), "kinds": Counter(k.split(": ")[1] for k in outcome.kills)}
            print(json.dumps(line), flush=True)
            with arguments.results.open("a") as file:
                file.write(json.dumps({"bench": "chaos", "seed": arguments.seed, **line}) + "\n")
    print(f"{done} kills in {number} rounds; {bad} rounds ended in other bytes")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
