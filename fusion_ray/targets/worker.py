"""What runs inside each worker of a Ray Train group: read the fused shards, train, export, report."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.train
import torch
from pyarrow import fs

from fusion_ray.errors import FusionRayError
from fusion_ray.on_ray.board import put_on
from fusion_ray.progress import Progress
from fusion_ray.recipe import UNTAUGHT_ARMS, Targets
from fusion_ray.storage.artifacts import Artifact, model_folder, read_manifest
from fusion_ray.storage.filesystem import join, locate, write_bytes
from fusion_ray.storage.model_files import trained_model
from fusion_ray.storage.peak import read_peak
from fusion_ray.storage.run_folder import METRICS
from fusion_ray.storage.shards import ShardRecord, read_shard
from fusion_ray.targets.control_arms import as_anchored, as_self, as_sft, as_shuffled
from fusion_ray.targets.export import export_model
from fusion_ray.targets.preemption import PreemptionWatch, end_if_terminated
from fusion_ray.targets.rows import COLUMNS, TrainingRows
from fusion_ray.targets.trackers import TrackedRun
from fusion_ray.targets.trainer import Trainer, read_history
from fusion_ray.targets.training_reports import ReportedRun, report_training


@dataclass(frozen=True, eq=False)
class TargetTask:
    """Everything a worker needs to know to train one target.

    Attributes:
        artifact: The target to make.
        board: Actor that takes progress reports.
        run: The recipe's name.
    """

    artifact: Artifact
    settings: Targets
    seed: int
    trust_remote_code: bool
    board: Any
    run: str


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train one target, or give back the error that would stop every further attempt too."""
    task: TargetTask = config["task"]
    try:
        return {"facts": _train(task)}
    except FusionRayError as error:
        # Returned and not raised: Ray retries what is raised, and this would fail again in the same way.
        return {"error": error}


def _train(task: TargetTask) -> dict[str, Any]:
    settings, started = task.settings, time.monotonic()
    torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
    train, validation = read_rows(task, "train"), read_rows(task, "validation")
    put_on(task.board, Progress(str(task.artifact), 0, 1, "loading"))
    trainer = Trainer(_start(task.artifact), settings, seed=task.seed, trust_remote_code=task.trust_remote_code)
    checkpoint = ray.train.get_checkpoint()
    with (
        checkpoint.as_directory() if checkpoint else tempfile.TemporaryDirectory() as folder,
        report_training(_reported(task), read_history(Path(folder)) if checkpoint else []) as report,
    ):
        history = trainer.fit(
            train,
            validation if validation.answers_N.sum() else None,
            report=report,
            save=_hand_to_ray,
            wants_checkpoint=PreemptionWatch(),
            resume_from=Path(folder) if checkpoint else None,
            part=tuple(task.artifact.settings.get(name, 1) for name in ("round", "rounds")),
        )
    _export(task, trainer)
    measured = [(line.step, line.bits_per_byte) for line in history if line.bits_per_byte is not None]
    return {
        "steps": len(history),
        "steps_planned": history[-1].total,
        "kept_step": trainer.kept_step,
        "tokens": sum(line.tokens for line in history),
        "answer_tokens": int(train.answers_N.sum()),
        "anchored_tokens": train.n_anchored,
        "rows": int((train.answers_N > 0).sum()),
        "rows_cut": train.n_cut,
        "first_loss": history[0].loss,
        "last_loss": history[-1].loss,
        "validation_bits_per_byte": [{"step": step, "bits_per_byte": value} for step, value in measured],
        "workers": trainer.workers,
        "zero_stage": trainer.engine.stage,
        "worker_peak_bytes": read_peak(),
        "worker_seconds": round(time.monotonic() - started, 3),
    }


def _start(artifact: Artifact) -> str:
    """The folder of the model that the target starts as a copy of."""
    start = artifact.start
    return trained_model(str(start), model_folder(start)).folder if start else artifact.models["pivot"].folder


def _reported(task: TargetTask) -> ReportedRun:
    artifact, settings = task.artifact, task.settings
    name = f"{task.run}/{artifact.name}"
    identity = f"{name}-{artifact.fingerprint}".replace("/", "-")
    tracked = TrackedRun(name, identity, settings.model_dump(mode="json") | {"seed": task.seed})
    return ReportedRun(task.run, artifact, task.board, settings.trackers, tracked)


def read_rows(task: TargetTask, split: str) -> TrainingRows:
    """The rows of one split of the fused set, as the artifact's arm wants them."""
    return TrainingRows(_tables(task, split), max_length=task.settings.max_length)


def _tables(task: TargetTask, split: str) -> Iterator[pa.Table]:
    artifact = task.artifact
    arm = artifact.model if artifact.role == "control" else ""
    fused = artifact.input_of("fused")
    pivot = _Scored(fused.scores["pivot"])
    anchors = artifact.inputs_of("distributions", "anchor")
    anchor = _Scored(anchors[0]) if anchors and split == "train" and arm != "longer" else None
    for record in read_manifest(fused.folder).shards_of(split):
        table = read_shard(fused.folder, record, COLUMNS)
        if arm in UNTAUGHT_ARMS:
            table = as_sft(table)
        elif arm == "self":
            table = as_self(table, pivot.rows_of(record))
        elif arm == "shuffled":
            table = as_shuffled(table, task.seed, record.path)
        if anchor:
            table = as_anchored(table, anchor.rows_of(record))
        if split == "validation":  # Bits per byte need the bytes, which only the distributions know.
            table = table.append_column("n_bytes", pivot.rows_of(record, ["n_bytes"])["n_bytes"])
        yield table
    for answers in artifact.inputs_of("fused", "answers") if split == "train" else ():
        shards = read_manifest(answers.folder).shards
        yield from (read_shard(answers.folder, record, COLUMNS) for record in shards)


class _Scored:
    """Distributions, by the fused shards whose rows they have."""

    def __init__(self, artifact: Artifact) -> None:
        self.folder = artifact.folder
        self.records = {record.path: record for record in read_manifest(artifact.folder).shards}

    def rows_of(self, fused: ShardRecord, columns: list[str] | None = None) -> pa.Table:
        return read_shard(self.folder, self.records[fused.path], columns)


def _hand_to_ray(folder: Path, step: int) -> None:
    ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))
    end_if_terminated()


def _export(task: TargetTask, trainer: Trainer) -> None:
    pivot = task.artifact.models["pivot"].folder
    target, first = locate(task.artifact.folder), trainer.rank == 0
    with tempfile.TemporaryDirectory(prefix="fusion_ray_export_") as temporary:
        folder = Path(target.path) if target.is_local else Path(temporary)
        export_model(trainer.engine, pivot, folder, dtype=task.settings.save_dtype)
        if first and not target.is_local:
            fs.copy_files(str(folder), target.path, fs.LocalFileSystem(), target.filesystem)
    if first:
        lines = "".join(json.dumps(asdict(line)) + "\n" for line in trainer.history)
        write_bytes(join(task.artifact.folder, METRICS), lines.encode())
