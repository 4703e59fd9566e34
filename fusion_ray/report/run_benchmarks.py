"""The report's benchmarks: lm-evaluation-harness on every model of the run, one Ray task a model.

Writes in the report's folder: benchmarks/<model>.json, so that a run that was stopped does only what is missing.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fusion_ray.progress import Tell
from fusion_ray.recipe import OpenAIEngine, Recipe
from fusion_ray.report.benchmarks import compare_benchmarks
from fusion_ray.report.evaluated_models import EvaluatedModel
from fusion_ray.report.harness import run_harness
from fusion_ray.report.kept import keep, make_missing, read_kept
from fusion_ray.report.numbers import derive_seed
from fusion_ray.storage.filesystem import join


def run_benchmarks(
    recipe: Recipe, folder: str, contents: Mapping[str, str], evaluated: list[EvaluatedModel], tell: Tell
) -> dict[str, Any] | None:
    """Run the recipe's benchmarks; None where it has none.

    Args:
        recipe: The run.
        folder: The report's.
        contents: Hashes of the files that the tasks read.
        evaluated: Every model of the run; those behind a server are left out.
        tell: Receives progress.

    Raises:
        RecipeError: A task is unknown or its data cannot be read.
        EngineError: A model or the harness failed; what was finished is kept.
    """
    if recipe.evaluate is None:
        return None
    settings, evaluate = recipe.distributions, recipe.evaluate
    here = [model for model in evaluated if not isinstance(model.engine, OpenAIEngine)]

    def run(model: EvaluatedModel) -> dict[str, Any]:
        assert not isinstance(model.engine, OpenAIEngine)
        return run_harness(
            model.folder,
            model.engine,
            evaluate,
            seed=derive_seed(recipe.seed, "report benchmarks") % 2**31,
            trust_remote_code=model.model.trust_remote_code,
            threads=max(1, int(settings.cpus_per_actor)),
        )

    def read(model: EvaluatedModel) -> dict[str, Any] | None:
        found: dict[str, Any] | None = read_kept(_file(folder, model.label), _fingerprint(recipe, contents, model))
        return found

    def write(model: EvaluatedModel, results: dict[str, Any]) -> None:
        keep(_file(folder, model.label), _fingerprint(recipe, contents, model), results)

    complete = make_missing(here, read, run, write, settings, tell, "benchmarks")
    seed = derive_seed(recipe.seed, "report benchmarks")
    return {
        "tasks": compare_benchmarks(complete, recipe.report.bootstrap, seed),
        "left_out": [model.label for model in evaluated if model not in here],
    }


def _fingerprint(recipe: Recipe, contents: Mapping[str, str], model: EvaluatedModel) -> str:
    """What a model's results depend on."""
    assert recipe.evaluate is not None
    settings = recipe.evaluate.model_dump(mode="json", exclude={"batch_size"})
    parts = [settings, dict(contents), recipe.seed, model.fingerprint, model.engine.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _file(folder: str, label: str) -> str:
    return join(folder, "benchmarks", f"{label.replace(':', '-')}.json")
