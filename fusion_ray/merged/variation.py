"""VaRM's statistics: how far each target moved each tensor, found in a first pass and kept for the next merge.

A target's numbers depend on the target and the base alone, so a merge that gains a target measures only the new one.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.sums import delta_squares
from fusion_ray.merged.methods.varm import weigh_groups
from fusion_ray.merged.plan import DTYPES, MergePlan, OutputFile, TensorJob, describe_file
from fusion_ray.merged.reading import StoredModels
from fusion_ray.merged.threads import over_tensors
from fusion_ray.storage.checkpoints import FLOATS, TensorReader
from fusion_ray.storage.filesystem import exists, join, read_bytes, write_bytes

STATISTICS = "statistics.json"

# The sum of squares of each target's delta, by tensor and target.
Squares = dict[str, dict[str, float]]


class Measuring(NamedTuple):
    """One unit of the first pass: the tensors of a file, and the numbers in the plan of the targets to measure."""

    file: OutputFile
    targets: tuple[int, ...]


def plan_measuring(plan: MergePlan, known: Mapping[str, Mapping[str, float]]) -> list[Measuring]:
    """What a first pass has to measure: nothing if every tensor can be merged by itself, or if all is known."""
    found = {_granularity(job) for file in plan.files for job in file.jobs}
    if found <= {None, "element"} or (not known and found <= {None, "matrix"}):
        return []
    tensors = [job.name for file in plan.files for job in file.jobs if job.inputs[0].dtype in FLOATS]
    unknown = [
        number
        for number, target in enumerate(plan.models)
        if target in plan.targets and not all(target in known.get(name, {}) for name in tensors)
    ]
    return [Measuring(file, tuple(unknown)) for file in plan.files] if unknown else []


def _granularity(job: TensorJob) -> str | None:
    """VaRM's granularity; None of any other method, which needs nothing of what is measured here."""
    return job.parameters["granularity"] if job.method == "varm" else None


def measure_file(plan: MergePlan, work: Measuring, threads: int = 1) -> Squares:
    """First pass over the tensors of one file."""
    names = [plan.models[number] for number in work.targets]
    jobs = [job for job in work.file.jobs if job.inputs[0].dtype in FLOATS]

    def measure(number: int, reader: TensorReader) -> dict[str, float]:
        job = jobs[number]
        inputs = (job.inputs[0], *(job.inputs[job.models.index(target)] for target in work.targets))
        squares_J = delta_squares(StoredModels(job.name, inputs, reader, plan.block_bytes))
        return dict(zip(names, squares_J.tolist(), strict=True))

    found = over_tensors(jobs, measure, threads)
    return {job.name: squares for job, squares in zip(jobs, found, strict=True)}


def resolve_weights(plan: MergePlan, squares: Mapping[str, Mapping[str, float]]) -> MergePlan:
    """Put the weights that follow from the squares into the plan.

    Raises:
        MergeError: The tensors have different granularities.
    """
    jobs = [job for file in plan.files for job in file.jobs if job.name in squares]
    found = {_granularity(job) for job in jobs} - {None}
    if not found:
        return plan
    if len(found) > 1:
        raise MergeError(f"varm: granularities {sorted(map(str, found))} in one merge; give one for all tensors.")
    ordered = {
        job.name: np.array([squares[job.name][plan.models[number]] for number in job.models[1:]]) for job in jobs
    }
    weights = weigh_groups(ordered, found.pop())  # type: ignore[arg-type]
    return plan.with_weights({name: tuple(weights_J.tolist()) for name, weights_J in weights.items()})


def join_squares(parts: Sequence[Mapping[str, Mapping[str, float]]]) -> Squares:
    """Join the squares that several merges or passes found."""
    joined: Squares = {}
    for part in parts:
        for tensor, values in part.items():
            joined.setdefault(tensor, {}).update(values)
    return joined


def save_squares(plan: MergePlan, squares: Mapping[str, Mapping[str, float]], folder: str) -> None:
    """Keep the statistics beside the merged model, with the state of the files that they were made from."""
    if squares:
        data = {"models": _describe_models(plan), "squares": squares} | _describe_merge(plan)
        write_bytes(join(folder, STATISTICS), json.dumps(data).encode())


def _describe_merge(plan: MergePlan) -> dict[str, Any]:
    """What is needed to merge the same models the same way again."""
    jobs = [job for file in plan.files for job in file.jobs if job.inputs[0].dtype in FLOATS]
    job = jobs[0]
    kept = all(job.dtype == job.inputs[0].dtype for job in jobs)
    names = {stored: name for name, stored in DTYPES.items()}
    return {
        "method": job.method,
        "folders": {plan.models[n]: t.uri.rpartition("/")[0] for n, t in zip(job.models, job.inputs, strict=True)},
        "granularity": job.parameters["granularity"],
        "dtype": "pivot" if kept else names[job.dtype],
    }


def load_squares(plan: MergePlan, folder: str) -> Squares:
    """What an earlier merge in this folder found, of the targets that are as they were; nothing if the base is not."""
    if not exists(join(folder, STATISTICS)):
        return {}
    try:
        data = json.loads(read_bytes(join(folder, STATISTICS)))
        then, squares = data["models"], data["squares"]
    except (ValueError, KeyError, TypeError):
        return {}  # Damaged statistics only cost measuring again.
    now = _describe_models(plan)
    base = plan.models[0]
    if then.get(base) != now[base]:
        return {}
    same = {name for name in plan.targets if then.get(name) == now[name]}
    return (
        {tensor: {t: v for t, v in values.items() if t in same} for tensor, values in squares.items()} if same else {}
    )


def _describe_models(plan: MergePlan) -> dict[str, list[str]]:
    uris: dict[str, set[str]] = {name: set() for name in plan.models}
    for file in plan.files:
        for job in file.jobs:
            for number, tensor in zip(job.models, job.inputs, strict=True):
                uris[plan.models[number]].add(tensor.uri)
    return {name: sorted(describe_file(uri) for uri in found) for name, found in uris.items()}
