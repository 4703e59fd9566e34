"""What the run left behind besides scores: manifests, training logs, versions, settings."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusion_ray.errors import CorruptArtifactError
from fusion_ray.recipe import Model, Recipe
from fusion_ray.storage.artifacts import Artifact, Manifest, read_manifest, versions
from fusion_ray.storage.filesystem import exists, join, list_files, locate, read_bytes
from fusion_ray.storage.model_files import ModelFiles
from fusion_ray.storage.run_folder import METRICS

_MOST_POINTS = 400
_CREDENTIALS = re.compile(r"://[^/@\s]*@")


def describe_artifact(artifact: Artifact, manifest: Manifest) -> dict[str, Any]:
    """One line of the report's table of stages; the ids of rejected rows stay in the artifact."""
    place = locate(artifact.folder)
    infos = [
        place.filesystem.get_file_info(f"{place.path}/{name}") for name in list_files(artifact.folder, recursive=True)
    ]
    return {
        "stage": artifact.stage,
        "name": artifact.name,
        "seconds": manifest.seconds,
        "rows": manifest.rows,
        "bytes": sum(info.size or 0 for info in infos),
        "peak_bytes": dict(manifest.peak_bytes),
        "tokens": manifest.facts.get("tokens", manifest.facts.get("answer_tokens")),
        "fingerprint": manifest.fingerprint,
        "facts": dict(manifest.facts),
        "versions": dict(manifest.versions),
    }


def describe_report(
    artifact: Artifact, seconds: float, peak_bytes: Mapping[str, int], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The report's own line: what it has taken so far, before its files are written.

    Args:
        artifact: The report, not finished yet.
        seconds: Since its start.
        peak_bytes: Of driver and largest worker.
        facts: With `documents`, which stand as its rows.
    """
    so_far = Manifest(
        artifact.stage, artifact.name, artifact.fingerprint, artifact.parts, (), {}, facts, round(seconds, 3),
        versions(), peak_bytes,
    )  # fmt: skip
    return describe_artifact(artifact, so_far) | {"rows": facts["documents"]}


def describe_run(recipe: Recipe, artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """Everything about the run that needs no computing.

    Args:
        recipe: The run.
        artifacts: The report's inputs, in the order of the pipeline.
    """
    manifests = [read_manifest(artifact.folder) for artifact in artifacts]
    scored = {made.model: made for made in artifacts if made.stage == "distributions" and made.role == "main"}
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "recipe": hide_credentials(recipe.resolved.model_dump(mode="json")),
        "models": {
            name: _describe_model(model, scored[name].models["model"]) for name, model in recipe.models().items()
        },
        "remote_code": any(model.trust_remote_code for model in recipe.models().values()),
        "stages": [describe_artifact(*each) for each in zip(artifacts, manifests, strict=True)],
        "alignment": {
            artifact.name: dict(manifest.facts.get("alignment", {}))
            for artifact, manifest in zip(artifacts, manifests, strict=True)
            if artifact.stage == "fused"
        },
        "training": _curves(artifact for artifact in artifacts if artifact.stage == "targets"),
        "versions": versions(),
    }


def _curves(targets: Iterable[Artifact]) -> dict[str, list[dict[str, Any]]]:
    """The training of every target, its rounds one after another."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for target in targets:
        curves.setdefault(target.model, []).extend(read_curve(target.folder))
    return curves


def _describe_model(model: Model, files: ModelFiles) -> dict[str, Any]:
    return {
        "model": hide_credentials(model.model),
        "revision": files.revision,
        "fingerprint": files.fingerprint,
        "remote_code": model.trust_remote_code,
    }


def hide_credentials(data: Any) -> Any:
    """Plain data without the user and password that an address may carry; reports are made to be passed on.

    >>> hide_credentials({"path": "s3://key:secret@bucket/chats"})
    {'path': 's3://bucket/chats'}
    """
    if isinstance(data, str):
        return _CREDENTIALS.sub("://", data)
    if isinstance(data, dict):
        return {key: hide_credentials(value) for key, value in data.items()}
    if isinstance(data, list):
        return [hide_credentials(item) for item in data]
    return data


def read_curve(folder: str) -> list[dict[str, Any]]:
    """The points of a target's metrics.jsonl, thinned to some hundreds; empty where there is none.

    Raises:
        CorruptArtifactError: A line is not a JSON object.
    """
    uri = join(folder, METRICS)
    if not exists(uri):
        return []
    points = []
    for number, line in enumerate(read_bytes(uri).decode().splitlines(), start=1):
        try:
            points.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise CorruptArtifactError(
                f"{uri} line {number}: not a JSON object ({error}). Run targets again."
            ) from error
    step = -(-len(points) // _MOST_POINTS) or 1
    measured = "bits_per_byte"  # Logged once in a while: every such point stays.
    return [
        point
        for index, point in enumerate(points)
        if index % step == 0 or index == len(points) - 1 or point.get(measured) is not None
    ]
