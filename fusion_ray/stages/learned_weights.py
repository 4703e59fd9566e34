"""The learned weights of a merge: in one Ray task, on the rows of the fused sets that no target was trained on.

Reads:  the validation split of all fused sets, half to descend on and half to choose by; the pivot; the targets.
Writes: learned.json in the merged folder: every point of the descent, and the one that was chosen.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from fusion_ray.algorithms.merge.learned import with_pivot
from fusion_ray.algorithms.merge.varm import group_of, weigh_groups
from fusion_ray.engines.learned_weights import Point, best_point, learn_weights
from fusion_ray.engines.mixture import Mixture
from fusion_ray.engines.training_data import COLUMNS, TrainingRows
from fusion_ray.merge_methods import Learned
from fusion_ray.merging.plan import MergePlan
from fusion_ray.merging.statistics import Squares
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import Recipe
from fusion_ray.stages import cluster
from fusion_ray.stages.board import open_board, put_on, read_board
from fusion_ray.storage.artifacts import Artifact, read_manifest
from fusion_ray.storage.filesystem import exists, join, read_bytes, write_bytes
from fusion_ray.storage.models import ModelFiles
from fusion_ray.storage.shards import ShardRecord, read_shard

LEARNED = "learned.json"


def resolve_learned(recipe: Recipe, artifact: Artifact, plan: MergePlan, squares: Squares, tell: Tell) -> MergePlan:
    """Learn the weights of every tensor and put them into the plan; weights learned before are taken as they are.

    Raises:
        MethodError: The loss became NaN or infinite.
        RecipeError: There are no rows to learn on or to choose by.
        EngineError: The pivot cannot be loaded, or not mixed by tensor.
    """
    method = recipe.merged.method
    assert isinstance(method, Learned)
    points = _load(artifact) or _learn(recipe, artifact, plan, squares, method, tell)
    _save(artifact, plan, points)
    chosen = best_point(points)
    still = {name for name, moved in squares.items() if not any(moved.values())}
    weights = {
        name: None if name in still else tuple(with_pivot(np.array(chosen.weights[part])).tolist())
        for name, part in _parts(squares, method).items()
    }
    return plan.with_parameters({name: {"weights": found} for name, found in weights.items()})


def _parts(squares: Squares, method: Learned) -> dict[str, str]:
    return {name: group_of(name, method.granularity) for name in squares}


def _learn(
    recipe: Recipe, artifact: Artifact, plan: MergePlan, squares: Squares, method: Learned, tell: Tell
) -> list[Point]:
    settings = recipe.targets
    cluster.require("merged", cpus=settings.cpus_per_worker, gpus=settings.gpus_per_worker)
    jobs = {job.name: job.inputs for file in plan.files for job in file.jobs if job.name in squares}
    begin = _begin(squares, plan, method)
    fused = [artifact.inputs[target].inputs["fused"] for target in plan.targets]
    board = open_board()

    def learn(pivot: ModelFiles) -> dict[str, Any]:
        torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
        device = "cuda" if settings.gpus_per_worker else "cpu"
        trust = recipe.pivot.trust_remote_code
        mixture = Mixture(pivot.folder, jobs, settings, device=device, trust_remote_code=trust)
        descended, judged = (
            TrainingRows(_sample(fused, method, judged=judged), max_length=settings.max_length)
            for judged in (False, True)
        )

        def report(point: Point) -> None:
            detail = f"learning weights, {point.bits_per_byte:.4f} bits per byte on validation"
            # Waited for: else the last report may reach the board after it was read.
            ray.get(put_on(board, Progress(str(artifact), point.step, method.steps, detail)))

        points = learn_weights(mixture, _parts(squares, method), begin, descended, judged, settings, method, report)
        return {"points": [asdict(point) for point in points]}

    tell(Progress(str(artifact), 0, method.steps, "learning weights"))
    (result,) = cluster.stream(
        [artifact.models["pivot"]], learn, cpus=settings.cpus_per_worker, gpus=settings.gpus_per_worker
    )
    read_board(board, tell)
    return [_point(point) for point in result["points"]]


def _begin(squares: Squares, plan: MergePlan, method: Learned) -> dict[str, tuple[float, ...]]:
    """VaRM's weights of each part; nothing for any target where none moved, which leaves the pivot."""
    ordered = {name: np.array([moved[target] for target in plan.targets]) for name, moved in squares.items()}
    nothing = (0.0,) * len(plan.targets)
    found = weigh_groups(ordered, method.granularity)
    parts = _parts(squares, method)
    return {parts[name]: nothing if w_J is None else tuple(w_J.tolist()) for name, w_J in found.items()}


# --- rows ------------------------------------------------------------------------------------------------------


def _sample(fused: list[Artifact], method: Learned, *, judged: bool) -> Iterator[pa.Table]:
    """Draw rows from one half of the validation chats: to descend on, equally many of each fused set; to choose by,
    of the first set alone, since all hold the same chats and choosing does not look at who teaches.
    """
    used = fused[:1] if judged else fused
    for number, made in enumerate(used):
        random = np.random.default_rng([method.seed, judged])  # The same chats of each set.
        left = method.rows // len(used) + (number < method.rows % len(used))
        shards = read_manifest(made.folder).shards_of("validation")
        for index in random.permutation(len(shards)):
            table = _read(made, shards[index])
            mine = [is_judged(chat, method.seed) == judged for chat in table["id"].to_pylist()]
            drawn = np.sort(random.permutation(np.flatnonzero(mine))[:left])
            left -= len(drawn)
            yield table.take(drawn)
            if not left:
                break


def is_judged(chat: str, seed: int) -> bool:
    """Whether a validation chat is one to choose by, and not to descend on: half of them are, by their ids."""
    return hashlib.sha256(f"{seed}:{chat}".encode()).digest()[0] % 2 == 1


def _read(fused: Artifact, record: ShardRecord) -> pa.Table:
    """The usable rows of a shard, with the bytes of their answers, which the pivot's distributions know."""
    pivot = fused.inputs["pivot"]
    scored = {other.path: other for other in read_manifest(pivot.folder).shards}
    counted = read_shard(pivot.folder, scored[record.path], ["n_bytes"])
    table = read_shard(fused.folder, record, COLUMNS).append_column("n_bytes", counted["n_bytes"])
    return table.filter(table["reason"].is_null())


# --- what was learned ------------------------------------------------------------------------------------------


def _save(artifact: Artifact, plan: MergePlan, points: list[Point]) -> None:
    data = {
        "fingerprint": artifact.fingerprint,
        "targets": list(plan.targets),
        "chosen_step": best_point(points).step,
        "points": [asdict(point) for point in points],
    }
    write_bytes(join(artifact.folder, LEARNED), (json.dumps(data, indent=1) + "\n").encode())


def _load(artifact: Artifact) -> list[Point]:
    """The points of a descent that this very merge made before it was stopped; none where there was none."""
    uri = join(artifact.folder, LEARNED)
    if not exists(uri):
        return []
    try:
        data = json.loads(read_bytes(uri))
        return [_point(point) for point in data["points"]] if data["fingerprint"] == artifact.fingerprint else []
    except (ValueError, KeyError, TypeError):
        return []  # A damaged file only costs learning again.


def _point(data: Mapping[str, Any]) -> Point:
    weights = {part: tuple(values) for part, values in data["weights"].items()}
    return Point(int(data["step"]), float(data["bits_per_byte"]), weights)
