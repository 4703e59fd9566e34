"""The report's benchmarks: lm-evaluation-harness on every model of the run, one Ray task a model.

Writes in the report's folder: benchmarks/<model>.json, so that a run that was stopped does only what is missing.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fusion_ray.on_ray import streams
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import OpenAIEngine, Recipe
from fusion_ray.report.benchmarks import compare_benchmarks
from fusion_ray.report.evaluated_models import Entrant
from fusion_ray.report.harness import run_harness
from fusion_ray.report.numbers import derive_seed
from fusion_ray.storage.filesystem import exists, join, read_bytes, write_bytes


def run_benchmarks(
    recipe: Recipe, folder: str, contents: Mapping[str, str], entrants: list[Entrant], tell: Tell
) -> dict[str, Any] | None:
    """Run the recipe's benchmarks; None where it has none.

    Args:
        recipe: The run.
        folder: The report's.
        contents: Hashes of the files that the tasks read.
        entrants: Every model of the run; those behind a server are left out.
        tell: Receives progress.

    Raises:
        RecipeError: A task is unknown or its data cannot be read.
        EngineError: A model or the harness failed; what was finished is kept.
    """
    if recipe.evaluate is None:
        return None
    settings, evaluate = recipe.distributions, recipe.evaluate
    here = [entrant for entrant in entrants if not isinstance(entrant.engine, OpenAIEngine)]
    marks = {entrant.label: _fingerprint(recipe, contents, entrant) for entrant in here}
    found = {entrant.label: _read(folder, entrant.label, marks[entrant.label]) for entrant in here}
    todo = [entrant for entrant in here if found[entrant.label] is None]

    def run(entrant: Entrant) -> dict[str, Any]:
        assert not isinstance(entrant.engine, OpenAIEngine)
        made = run_harness(
            entrant.folder,
            entrant.engine,
            evaluate,
            seed=derive_seed(recipe.seed, "report benchmarks") % 2**31,
            trust_remote_code=entrant.model.trust_remote_code,
            threads=max(1, int(settings.cpus_per_actor)),
        )
        return {"label": entrant.label, "results": made}

    for done, result in enumerate(streams.stream_with_models(todo, run, settings), start=1):
        label = result["label"]
        found[label] = result["results"]
        text = json.dumps({"fingerprint": marks[label], "results": result["results"]}, sort_keys=True)
        write_bytes(_file(folder, label), (text + "\n").encode())
        tell(Progress("report", done, len(todo) + 1, f"benchmarks of {label}"))
    complete = {label: results for label, results in found.items() if results is not None}
    seed = derive_seed(recipe.seed, "report benchmarks")
    return {
        "tasks": compare_benchmarks(complete, recipe.report.bootstrap, seed),
        "left_out": [entrant.label for entrant in entrants if entrant not in here],
    }


def _fingerprint(recipe: Recipe, contents: Mapping[str, str], entrant: Entrant) -> str:
    """What a model's results depend on."""
    assert recipe.evaluate is not None
    settings = recipe.evaluate.model_dump(mode="json", exclude={"batch_size"})
    parts = [settings, dict(contents), recipe.seed, entrant.fingerprint, entrant.engine.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _file(folder: str, label: str) -> str:
    return join(folder, "benchmarks", f"{label.replace(':', '-')}.json")


def _read(folder: str, label: str, mark: str) -> dict[str, Any] | None:
    """Results on disk, if they were made from the same model, tasks and data."""
    uri = _file(folder, label)
    found = json.loads(read_bytes(uri)) if exists(uri) else {}
    return dict(found["results"]) if found.get("fingerprint") == mark else None
