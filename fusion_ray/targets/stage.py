"""Stage `targets`: the pivot is fine-tuned into one target per fused set, and into the control arms, side by side.

Reads:  the fused shards (train, and validation for bits per byte on the way); the pivot's distributions for `self`.
Writes: <name>/ a model folder (safetensors, config, tokenizer), metrics.jsonl, tensorboard/, and last MANIFEST.json.

Every target is a Ray Train run of its own, named by its fingerprint, so that running again goes on from its last
checkpoint. Checkpoints lie in the hidden folder `.training` beside the model, and go when the manifest is written.
"""

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.util.placement_group import placement_group, remove_placement_group

from fusion_ray.errors import ClusterError, EngineError, FusionRayError, StaleArtifactError
from fusion_ray.on_ray import cluster
from fusion_ray.on_ray.board import open_board, read_board
from fusion_ray.progress import Tell
from fusion_ray.recipe import Recipe, Targets
from fusion_ray.storage.artifacts import Artifact, retract_manifest, write_manifest
from fusion_ray.storage.filesystem import delete, join, list_files, locate, read_bytes, sha256_of_file
from fusion_ray.storage.peak import note_worker
from fusion_ray.storage.run_folder import MANIFEST
from fusion_ray.targets.preemption import WatchingTorch
from fusion_ray.targets.worker import TargetTask, train_worker

WORKING = ".training"
_POLL_S = 0.2


def build_targets(recipe: Recipe, artifacts: list[Artifact], tell: Tell) -> None:
    """Train the targets, several side by side while the cluster has room, the others after them.

    A target that fails leaves the others alone; what is wrong is raised once all have ended.

    Raises:
        ClusterError: The cluster can never hold one target's workers, or did not have room in time.
        FusionRayError: A target failed; the message says which, why, and how to go on.
    """
    settings = recipe.targets
    _require_room(settings)
    for artifact in artifacts:
        _check_pivot(artifact)
    board = open_board()
    with ThreadPoolExecutor(_side_by_side(settings, len(artifacts))) as pool:
        running = {artifact.name: pool.submit(_build_one, recipe, artifact, board) for artifact in artifacts}
        while wait(running.values(), timeout=_POLL_S).not_done:
            read_board(board, tell)
        read_board(board, tell)
    failures = {name: error for name, future in running.items() if (error := future.exception())}
    if failures:
        raise _summary(failures, list(running))


def _require_room(settings: Targets) -> None:
    cluster.require("targets", cpus=settings.cpus_per_worker, gpus=settings.gpus_per_worker, nodes=settings.nodes)
    for resource, each in (("CPU", settings.cpus_per_worker), ("GPU", settings.gpus_per_worker)):
        needed, there = each * settings.workers, cluster.total(resource)
        if needed > there and not cluster.can_autoscale():
            raise ClusterError(
                f"targets: {settings.workers} workers need {needed:g} {resource}, the whole cluster has {there:g}. "
                "Lower targets.workers or what each takes, or add nodes."
            )


def _side_by_side(settings: Targets, wanted: int) -> int:
    """How many targets fit at once, so that none holds resources that another one waits for."""
    fits = [wanted]
    for resource, each in (("CPU", settings.cpus_per_worker), ("GPU", settings.gpus_per_worker)):
        if each and not cluster.can_autoscale():
            fits.append(int(cluster.total(resource) // (each * settings.workers)))
    return max(1, min(fits)) if settings.side_by_side is None else max(1, min(wanted, settings.side_by_side))


def _check_pivot(artifact: Artifact) -> None:
    fused_for = artifact.input_of("fused").models["pivot"].fingerprint
    if fused_for != artifact.models["pivot"].fingerprint:
        raise StaleArtifactError(
            f"{artifact}: its fused set was made for another pivot ({fused_for}, expected "
            f"{artifact.models['pivot'].fingerprint}). Delete the fused set and run again."
        )


def _build_one(recipe: Recipe, artifact: Artifact, board: Any) -> None:
    started = time.monotonic()
    _clear(artifact)
    _wait_for_room(artifact, recipe.targets)
    code = recipe.pivot.trust_remote_code
    facts = _fit(TargetTask(artifact, recipe.targets, recipe.seed, code, board, recipe.name))
    note_worker(facts["worker_peak_bytes"])
    names = [name for name in list_files(artifact.folder) if name != MANIFEST]
    files = {name: sha256_of_file(join(artifact.folder, name)) for name in names}
    write_manifest(artifact, seconds=time.monotonic() - started, files=files, facts=facts)
    delete(join(artifact.folder, WORKING))


def _clear(artifact: Artifact) -> None:
    """Remove what an older recipe left; checkpoints of this very target stay, and training goes on from them.

    If Ray Train's list of checkpoints is damaged (cut off by a full disk or a kill), Ray Train would fail on it every
    time, so they are removed, and training begins anew.
    """
    retract_manifest(artifact.folder)
    for name in list_files(artifact.folder):
        delete(join(artifact.folder, name))
    ours = f"{_run_name(artifact)}/"
    working = join(artifact.folder, WORKING)
    strangers = {path.split("/")[0] for path in list_files(working, recursive=True) if not path.startswith(ours)}
    damaged = {_run_name(artifact)} if _is_damaged(join(working, _run_name(artifact))) else set()
    for name in strangers | damaged:
        delete(join(working, name))


def _is_damaged(run: str) -> bool:
    try:
        for name in list_files(run):
            if name.endswith(".json"):
                json.loads(read_bytes(join(run, name)))
    except ValueError:
        return True
    return False


def _run_name(artifact: Artifact) -> str:
    return f"{artifact.name}-{artifact.fingerprint[:8]}".replace("/", "-")


def _wait_for_room(artifact: Artifact, settings: Targets) -> None:
    """Return once the cluster could start the workers now; asking also makes an autoscaling cluster grow."""
    labels = [cluster.label_selector(settings.nodes)] * settings.workers
    group = placement_group([_resources(settings)] * settings.workers, bundle_label_selector=labels)
    try:
        if not group.wait(settings.wait_s):
            raise ClusterError(
                f"{artifact}: no room for its {settings.workers} workers within {settings.wait_s:g} s "
                "(targets.wait_s). Free or add nodes, or ask for fewer workers, and run again."
            )
    finally:
        remove_placement_group(group)


def _resources(settings: Targets) -> dict[str, float]:
    gpus = {"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {}
    return {"CPU": settings.cpus_per_worker} | gpus


def _fit(task: TargetTask) -> dict[str, Any]:
    """Drive one Ray Train run to its end, through lost workers and nodes; returns what the manifest will say."""
    settings, folder = task.settings, locate(task.artifact.folder)
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]
        train_loop_config={"task": task},
        torch_config=WatchingTorch(backend="nccl" if settings.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers,
            use_gpu=bool(settings.gpus_per_worker),
            resources_per_worker=_resources(settings),
            label_selector=cluster.label_selector(settings.nodes) or None,  # type: ignore[call-arg]
        ),
        run_config=ray.train.RunConfig(
            name=_run_name(task.artifact),
            storage_path=f"{folder.path}/{WORKING}",
            storage_filesystem=folder.filesystem,
            failure_config=ray.train.FailureConfig(
                max_failures=settings.retries,
                controller_failure_limit=settings.retries,  # type: ignore[call-arg]
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        outcome: dict[str, Any] = trainer.fit().return_value  # type: ignore[attr-defined]
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        raise _explain(task, error) from error
    if "error" in outcome:
        raise outcome["error"]
    return outcome["facts"]  # type: ignore[no-any-return]


def _explain(task: TargetTask, error: Exception) -> EngineError:
    causes = getattr(error, "worker_failures", None) or {}
    why = "; ".join(f"worker {rank}: {_last_line(cause)}" for rank, cause in causes.items()) or _last_line(error)
    return EngineError(
        f"{task.artifact}: training failed {task.settings.retries + 1} times ({why}). Its last checkpoint is kept in "
        f"{join(task.artifact.folder, WORKING)}; mend the cause and run again to go on from there."
    )


def _summary(failures: Mapping[str, BaseException], names: list[str]) -> BaseException:
    """One error for all failed targets, of the first one's kind; a bug of ours is raised as it is."""
    for failure in failures.values():
        if not isinstance(failure, FusionRayError):
            return failure
    done = [name for name in names if name not in failures]
    failed = " ".join(f"[{name}] {failure}" for name, failure in failures.items())
    kind = type(next(iter(failures.values())))
    return kind(
        f"{len(failures)} of {len(names)} targets failed: {failed} Done: {', '.join(done) or 'none'}. Run the same "
        f"command again to make only {', '.join(failures)}."
    )


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
