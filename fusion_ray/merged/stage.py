"""Stage `merged`: make one model of the pivot's shape from the targets, a Ray task for each output file.

Reads:  the pivot's folder; the model folder of every target that was taught by a source, and of the SFT control where
        it is the base.
Writes: a Hugging Face model folder: config, tokenizer, safetensors, model card, weights.json; MANIFEST.json.

Model tensors never travel between processes: a task reads the slices it needs, by offset, where it runs.
"""

import time
from typing import Any

from fusion_ray.merged.execute import FileRecord, finish_weights, write_file
from fusion_ray.merged.folder import Card, config_dtype, copy_tokenizer, finish_folder
from fusion_ray.merged.plan import DTYPES, MergePlan, OutputFile, plan_merge
from fusion_ray.merged.variation import (
    Measuring,
    Squares,
    join_squares,
    load_squares,
    measure_file,
    plan_measuring,
    resolve_weights,
    save_squares,
)
from fusion_ray.on_ray import cluster, streams
from fusion_ray.on_ray.metrics import set_metrics
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import Recipe
from fusion_ray.storage.artifacts import Artifact, model_folder, retract_manifest, write_manifest
from fusion_ray.storage.checkpoints import open_checkpoint
from fusion_ray.storage.filesystem import join, list_files, sha256_of_file
from fusion_ray.storage.run_folder import MANIFEST


def build_merged(recipe: Recipe, artifacts: list[Artifact], tell: Tell) -> None:
    """Make the merged model; see the module for what it reads and writes.

    Raises:
        MergeError: The targets cannot be merged with each other as the recipe asks.
        ArtifactError: A checkpoint is missing or damaged.
    """
    (artifact,) = artifacts
    started = time.monotonic()
    retract_manifest(artifact.folder)
    pivot = artifact.models["pivot"]
    plan = _plan(recipe, artifact)
    known = load_squares(plan, artifact.folder)
    measured = _measure(plan, known, artifact, tell)
    plan = resolve_weights(plan, join_squares([known, *measured]))
    records = _write(recipe.name, plan, artifact, tell)
    save_squares(plan, join_squares([known, *measured, *(record.squares for record in records)]), artifact.folder)
    finish_weights(records, artifact.folder)
    card = Card(
        name=recipe.name,
        method=recipe.merged.method.kind,
        base_models=[pivot.reference, *(source.model for source in recipe.sources)],
        config=recipe.resolved.merged.model_dump(mode="json"),
    )
    dtype = _dtype(recipe, artifact)
    changes = {} if dtype == "pivot" else config_dtype(DTYPES[dtype])
    copy_tokenizer(pivot.place, artifact.folder)
    finish_folder(artifact.folder, pivot.place, card, records, changes)
    names = [name for name in list_files(artifact.folder) if name != MANIFEST]
    files = {name: sha256_of_file(join(artifact.folder, name)) for name in names}
    facts = {"targets": list(plan.targets), "tensors": sum(len(record.tensors) for record in records)}
    write_manifest(artifact, seconds=time.monotonic() - started, files=files, facts=facts)


def _dtype(recipe: Recipe, artifact: Artifact) -> str:
    """The type that is written; between rounds small moves would be lost in bfloat16."""
    return "float32" if artifact.round else recipe.merged.dtype


def _plan(recipe: Recipe, artifact: Artifact) -> MergePlan:
    merged = recipe.resolved.merged
    targets = {made.model: open_checkpoint(model_folder(made)) for made in artifact.inputs_of("targets")}
    base = artifact.start
    return plan_merge(
        open_checkpoint(artifact.models["pivot"].readable),
        targets,
        base_name=merged.resolved_base,
        base=open_checkpoint(model_folder(base)) if base else None,
        method=merged.method.kind,
        parameters=merged.method.parameters(list(targets)),
        dtype=_dtype(recipe, artifact),
        file_bytes=int(merged.shard_gib * 2**30),
        block_bytes=int(merged.block_mib * 2**20),
        seed=recipe.seed,
    )


def _measure(plan: MergePlan, known: Squares, artifact: Artifact, tell: Tell) -> list[Squares]:
    works = plan_measuring(plan, known)
    threads = _threads(len(works))

    def measure(work: Measuring) -> dict[str, Any]:
        _ = artifact.models["pivot"].readable
        return {"name": work.file.name, "squares": measure_file(plan, work, threads)}

    found = []
    for done, result in enumerate(streams.stream(works, measure, cpus=threads), start=1):
        found.append(result["squares"])
        tell(Progress(str(artifact), done, len(works), "measuring"))
    return found


def _threads(tasks: int) -> int:
    """Threads of each task where there are fewer tasks than CPUs; a task stays on one node."""
    if cluster.can_autoscale():  # Its largest node may be one with GPUs, which this stage must not ask for.
        return 1
    return max(1, int(min(cluster.total("CPU") // max(1, tasks), cluster.largest_node("CPU"))))


def _write(run: str, plan: MergePlan, artifact: Artifact, tell: Tell) -> list[FileRecord]:
    threads = _threads(len(plan.files))

    def write(file: OutputFile) -> dict[str, Any]:
        _ = artifact.models["pivot"].readable
        return write_file(plan, file, artifact.folder, threads).__dict__

    records, started = [], time.monotonic()
    for done, result in enumerate(streams.stream(list(plan.files), write, cpus=threads), start=1):
        records.append(FileRecord(**result))
        tell(Progress(str(artifact), done, len(plan.files), "merging"))
        set_metrics(run, artifact, bytes_per_s=sum(r.nbytes for r in records) / (time.monotonic() - started))
    return sorted(records, key=lambda record: record.file)
