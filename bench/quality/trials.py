"""One trial: a testbed, an arm, a run of the pipeline; what an earlier one made from the same is taken over."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from arms import Arm
from testbeds import Testbed, recipe_of, thin_chats

from fusion_ray.demo.making import make_materials
from fusion_ray.pipeline.graph import build_graph
from fusion_ray.progress import Tell, silent
from fusion_ray.recipe import Recipe, parse_recipe
from fusion_ray.report.statistics.rates import Scores

CONTROLS = ("sft", "self", "shuffled")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a trial measured: the held-out documents and the report's numbers."""

    ids: tuple[str, ...]
    scores: Scores
    report: dict[str, Any]


def run_trial(
    folder: Path, testbed: Testbed, arm: Arm, controls: bool, tell: Tell = silent, gpus: float = 0
) -> Outcome:
    """Run one arm on one testbed, or read what it measured before.

    Args:
        folder: Where all trials lie: `testbeds/`, `runs/`.
        testbed: What is fused.
        arm: Changes to testbed and recipe.
        controls: Train the control arms as well.
        tell: Receives the progress of making the models.
        gpus: For each actor and worker; where it runs is no part of what a trial is.
    """
    testbed = changed(testbed, arm)
    recipe = on_gpus(arm_recipe(folder, testbed, arm, controls), gpus)
    place = _place(folder, testbed)
    make_materials(place, testbed.plan(), testbed.seed, tell, sorted((folder / "testbeds").glob("*")))
    thin_chats(testbed, place, recipe.corpus)
    if not is_done(recipe):
        take_over(recipe, folder / "runs")
        run_recipe(recipe)
        assert is_done(recipe), f"{recipe.folder}: what was run is not what was asked for"
    return read_outcome(recipe)


def changed(testbed: Testbed, arm: Arm) -> Testbed:
    """The testbed that an arm asks for."""
    return replace(
        testbed, **{key.removeprefix("testbed."): value for key, value in arm.items() if key.startswith("testbed.")}
    )


def arm_recipe(folder: Path, testbed: Testbed, arm: Arm, controls: bool) -> Recipe:
    """The recipe of one arm on a testbed that is as the arm asks for."""
    data = recipe_of(testbed, _place(folder, testbed))
    data["targets"] |= {"controls": list(CONTROLS if controls else ("sft",))}
    for key, value in arm.items():
        section, _, name = key.partition(".")
        if section != "testbed":
            data[section] = data.get(section, {}) | {name: value}
    # The page's examples take time, and nobody looks at them here.
    data |= {"runs": f"{folder.as_posix()}/runs", "report": {"samples": 0, "views": 0}}
    return parse_recipe(data | {"name": _digest({"testbed": _facts(testbed), "recipe": data})})


def on_gpus(recipe: Recipe, gpus: float) -> Recipe:
    """The same recipe with so much of a GPU for each actor that scores and each worker that trains."""
    data = recipe.model_dump(mode="json")
    data["distributions"]["gpus_per_actor"] = data["targets"]["gpus_per_worker"] = gpus
    return parse_recipe(data)


def _place(folder: Path, testbed: Testbed) -> Path:
    return folder / "testbeds" / _digest(_facts(replace(testbed, learn_from=None)))


def _facts(testbed: Testbed) -> dict[str, Any]:
    return {key: value for key, value in asdict(testbed).items() if value is not None}


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def is_done(recipe: Recipe) -> bool:
    """Whether the report is there and made from exactly this."""
    manifest = Path(recipe.folder) / "6_report" / "MANIFEST.json"
    return manifest.is_file() and json.loads(manifest.read_text())["fingerprint"] == build_graph(recipe)[-1].fingerprint


def take_over(recipe: Recipe, runs: Path) -> None:
    """Link what other trials made with the same fingerprint; the report's scored shards carry theirs themselves."""
    made = {json.loads(path.read_text())["fingerprint"]: path.parent for path in runs.glob("*/[1-5]_*/MANIFEST.json")}
    nested = runs.glob("*/[1-5]_*/*/**/MANIFEST.json")
    made |= {json.loads(path.read_text())["fingerprint"]: path.parent for path in nested}
    for artifact in build_graph(recipe):
        found, target = made.get(artifact.fingerprint), Path(artifact.folder)
        if found is not None and not (target / "MANIFEST.json").is_file():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(found, target, copy_function=os.link)
    sft = next(artifact for artifact in build_graph(recipe) if (artifact.role, artifact.model) == ("control", "sft"))
    scored = Path(recipe.folder) / "6_report" / "scores"
    for run in runs.glob("*/4_targets/sft/MANIFEST.json"):
        before = run.parents[2] / "6_report" / "scores"
        same = json.loads(run.read_text())["fingerprint"] == sft.fingerprint
        if same and before.is_dir() and not scored.exists():
            shutil.copytree(before, scored, copy_function=os.link)


def run_recipe(recipe: Recipe) -> None:
    """Run a recipe in a process of its own; it and its output stay beside the run's folder."""
    folder = Path(recipe.folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = write_recipe(recipe)
    log = Path(f"{recipe.folder}.log")
    with log.open("w") as output:
        command = [sys.executable, "-m", "fusion_ray", "run", str(file)]
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{file} ended with {done.returncode}:\n{log.read_text()[-2000:]}")


def write_recipe(recipe: Recipe) -> Path:
    """The recipe as a file beside its run, with all its defaults."""
    file = Path(f"{recipe.folder}.yaml")
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return file


def read_outcome(recipe: Recipe) -> Outcome:
    """What the report of a run says."""
    folder = Path(recipe.folder) / "6_report"
    table = pq.read_table(folder / "documents.parquet")
    models = [name for name in table.column_names if name not in ("id", "domain", "n_bytes")]
    nll_MN = np.stack([table[name].to_numpy() for name in models])
    scores = Scores(tuple(models), nll_MN, table["n_bytes"].to_numpy(), np.array(table["domain"].to_pylist()))
    return Outcome(tuple(table["id"].to_pylist()), scores, json.loads((folder / "report.json").read_text()))
