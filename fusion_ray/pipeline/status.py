"""Where each artifact of a recipe stands: done, stale, to do, or blocked. Starts nothing."""

from typing import Literal, NamedTuple

from fusion_ray.errors import FusionRayError
from fusion_ray.pipeline.graph import build_graph
from fusion_ray.recipe import Recipe
from fusion_ray.storage.artifacts import Artifact, read_manifest
from fusion_ray.storage.filesystem import exists, join
from fusion_ray.storage.run_folder import MANIFEST

State = Literal["done", "stale", "to do", "blocked"]


class Status(NamedTuple):
    """Where one artifact stands, and why it must be made if it must."""

    artifact: Artifact
    state: State
    why: str


def list_statuses(recipe: Recipe) -> list[Status]:
    """Say for every artifact whether it is done, stale, to do, or blocked by something missing; starts nothing."""
    return [find_status(artifact) for artifact in build_graph(recipe, need_inputs=False)]


def find_status(artifact: Artifact) -> Status:
    """Say it for one artifact."""
    missing = [model.hashes["missing"] for model in artifact.models.values() if "missing" in model.hashes]
    missing += [text for label, text in artifact.contents.items() if label == "missing"]
    if missing:
        return Status(artifact, "blocked", missing[0])
    if not exists(join(artifact.folder, MANIFEST)):
        return Status(artifact, "to do", "")
    try:
        changes = artifact.why_stale(read_manifest(artifact.folder))
    except FusionRayError as error:
        return Status(artifact, "stale", str(error))
    return Status(artifact, "stale", "; ".join(changes)) if changes else Status(artifact, "done", "")
