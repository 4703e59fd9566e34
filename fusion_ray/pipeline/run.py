"""Make exactly what is stale or missing, stage after stage."""

import importlib
from collections.abc import Callable
from itertools import groupby
from typing import cast

from fusion_ray.errors import ArtifactError, RecipeError
from fusion_ray.pipeline.graph import NO_HELDOUT, build_graph
from fusion_ray.pipeline.status import Status, find_status
from fusion_ray.progress import Progress, Tell, silent
from fusion_ray.recipe import Recipe
from fusion_ray.storage.artifacts import Artifact, read_manifest
from fusion_ray.storage.filesystem import join, write_bytes
from fusion_ray.storage.run_folder import STAGES

_Build = Callable[[Recipe, list[Artifact], Tell], None]


def run(recipe: Recipe, tell: Tell = silent, *, until: str = "report", address: str | None = None) -> list[Status]:
    """Make exactly what is stale or missing, stage after stage.

    Args:
        recipe: The run.
        tell: Receives progress reports.
        until: Last stage to run.
        address: Ray cluster to use; default RAY_ADDRESS, else a local one.

    Returns:
        What stood where before the run.

    Raises:
        FusionRayError: Whatever stopped it; all that was finished before stays.
    """
    if until not in STAGES:
        raise RecipeError(f"stage '{until}': expected one of {', '.join(STAGES)}.")
    if until == "report" and not recipe.corpus.heldout:
        raise RecipeError(NO_HELDOUT)
    before = [find_status(artifact) for artifact in build_graph(recipe)]
    write_bytes(join(recipe.folder, "recipe.json"), recipe.resolved.model_dump_json(indent=1).encode())
    wanted = STAGES[: STAGES.index(until) + 1]
    for (phase, stage), group in groupby(before, key=lambda status: (_phase(status.artifact), status.artifact.stage)):
        if phase not in wanted:
            break
        statuses = list(group)
        todo = [status.artifact for status in statuses if status.state != "done"]
        for status in statuses:
            if status.state == "done":
                tell(Progress(str(status.artifact), 1, 1, "done before"))
        if todo:
            _connect(address)
            _builder(stage)(recipe, todo, tell)
            _check_made(todo)
    return before


def _phase(artifact: Artifact) -> str:
    """The stage that `--until` counts it to: what later rounds start from counts to the targets."""
    of_round = artifact.stage == "merged" and artifact.round
    return "targets" if of_round or artifact.role == "anchor" else artifact.stage


def _builder(stage: str) -> _Build:
    # Imported by name and only now, because stages import Ray and torch, for which `plan` and `--help` must not wait.
    module = importlib.import_module(f"fusion_ray.{stage}.stage")
    return cast(_Build, getattr(module, f"build_{stage}"))


def _connect(address: str | None) -> None:
    importlib.import_module("fusion_ray.on_ray.cluster").connect(address)


def _check_made(artifacts: list[Artifact]) -> None:
    for artifact in artifacts:
        if read_manifest(artifact.folder).fingerprint != artifact.fingerprint:
            raise ArtifactError(f"{artifact}: its stage ended without making it; this is a bug worth reporting.")
