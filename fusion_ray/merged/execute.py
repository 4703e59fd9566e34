"""Carry out a plan: read the slices a tensor needs, merge them block by block, write the output files one by one.

`merge_to_folder` does it in one process; `merged/stage.py` calls the functions below it from Ray tasks. The bytes of a
file depend on the plan alone, so it does not matter who writes it, how many write at once, or how often it is retried.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import MergedTensor
from fusion_ray.merged.methods.registry import Context, merge_tensor
from fusion_ray.merged.plan import MergePlan, OutputFile, TensorJob
from fusion_ray.merged.reading import StoredModels
from fusion_ray.merged.threads import over_tensors
from fusion_ray.merged.variation import (
    join_squares,
    load_squares,
    measure_file,
    plan_measuring,
    resolve_weights,
    save_squares,
)
from fusion_ray.progress import Progress, Tell, silent
from fusion_ray.storage.checkpoint_writer import CheckpointWriter, Part, write_index
from fusion_ray.storage.checkpoints import FLOATS, INDEX, TensorReader
from fusion_ray.storage.filesystem import delete, exists, join, list_files, locate, read_bytes, write_bytes

WORK = "_merge"  # Folder of the records of finished files; removed when the merge is whole.


@dataclass(frozen=True)
class FileRecord:
    """What is known of an output file once it is written.

    Attributes:
        file: Its name.
        plan: Fingerprint of the plan it belongs to.
        nbytes: Its size on disk.
        tensors: Bytes of each tensor in it, by name.
        weights: By tensor, the weight of each model; None where the method has no single number for each.
        squares: By tensor and target, VaRM's sum of squares, where it was found while writing.
    """

    file: str
    plan: str
    nbytes: int
    tensors: Mapping[str, int]
    weights: Mapping[str, Mapping[str, float] | None]
    squares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def merge_to_folder(plan: MergePlan, folder: str, tell: Tell = silent, *, threads: int = 1) -> list[FileRecord]:
    """Carry out a plan in this process: measure, write every file, then the index.

    A merge that was interrupted goes on where it was. The bytes do not depend on the number of threads.
    """
    known = load_squares(plan, folder)
    measured = [measure_file(plan, work, threads) for work in plan_measuring(plan, known)]
    plan = resolve_weights(plan, join_squares([known, *measured]))
    records = []
    for done, file in enumerate(plan.files, start=1):
        records.append(write_file(plan, file, folder, threads))
        tell(Progress("merge", done, len(plan.files), file.name))
    save_squares(plan, join_squares([known, *measured, *(record.squares for record in records)]), folder)
    finish_weights(records, folder)
    return records


def write_file(plan: MergePlan, file: OutputFile, folder: str, threads: int = 1) -> FileRecord:
    """Merge the tensors of one output file and write it, unless it is already there and whole.

    A file on a remote store is written from its start to its end, by one thread.
    """
    finished = find_record(plan, file, folder)
    if finished:
        return finished
    uri = join(folder, file.name)
    with CheckpointWriter(uri, [job.slot for job in file.jobs]) as writer:

        def write(number: int, reader: TensorReader) -> MergedTensor | None:
            return _write_tensor(plan, file.jobs[number], reader, writer.parts[number])

        made = over_tensors(file.jobs, write, threads if writer.any_order else 1)
    weights: dict[str, dict[str, float] | None] = {}
    squares: dict[str, dict[str, float]] = {}
    for job, merged in zip(file.jobs, made, strict=True):
        names = [plan.models[number] for number in job.models]
        weights[job.name] = _by_name(names, merged.weights) if merged and merged.weights else None
        if merged and merged.squares:
            squares[job.name] = _by_name(names, merged.squares)
    tensors = {job.name: job.slot.nbytes for job in file.jobs}
    record = FileRecord(file.name, plan.fingerprint, _size(uri), tensors, weights, squares)
    write_bytes(_record_uri(folder, file), json.dumps(asdict(record)).encode())
    return record


def _by_name(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Values by the names of the models they are of: all models, or without the first ones."""
    return dict(zip(names[-len(values) :], values, strict=True))


def _write_tensor(plan: MergePlan, job: TensorJob, reader: TensorReader, part: Part) -> MergedTensor | None:
    if job.inputs[0].dtype not in FLOATS:
        part.write_raw(_agreed(job, reader))
        return None
    tensor = StoredModels(job.name, job.inputs, reader, plan.block_bytes)
    models = [plan.models[number] for number in job.models]
    context = Context(models, job.has_base, plan.seed, job.weights)
    merged = merge_tensor(job.method, tensor, job.parameters, context)
    for block in merged.blocks:
        part.write(block.reshape(-1))
    return replace(merged, blocks=iter(()))  # So that nothing of the tensor stays in memory.


def _agreed(job: TensorJob, reader: TensorReader) -> np.ndarray:
    """A tensor of integers or the like, which must be equal in all models."""
    first, *others = (reader.read_raw(tensor) for tensor in job.inputs)
    for tensor, other in zip(job.inputs[1:], others, strict=True):
        if not np.array_equal(first, other):
            raise MergeError(
                f"merge: tensor {job.name} is of type {tensor.dtype} and differs between {job.inputs[0].uri} and "
                f"{tensor.uri}; only equal ones can be kept. Make them equal, or leave one model out."
            )
    return first


def find_record(plan: MergePlan, file: OutputFile, folder: str) -> FileRecord | None:
    """The record of a file that is already whole and belongs to this plan."""
    uri = _record_uri(folder, file)
    if not exists(uri) or not exists(join(folder, file.name)):
        return None
    try:
        data: dict[str, Any] = json.loads(read_bytes(uri))
        record = FileRecord(**data)
    except (ValueError, TypeError):
        return None  # A damaged record only costs writing its file again.
    return record if record.plan == plan.fingerprint and record.nbytes == _size(join(folder, file.name)) else None


def _record_uri(folder: str, file: OutputFile) -> str:
    return join(folder, WORK, f"{file.name}.json")


def _size(uri: str) -> int:
    place = locate(uri)
    return int(place.filesystem.get_file_info(place.path).size)


def finish_weights(records: list[FileRecord], folder: str) -> None:
    """Write the index that makes several files one checkpoint, and remove what only the work needed."""
    if len(records) > 1:
        places = {name: record.file for record in records for name in record.tensors}
        write_index(folder, places, sum(sum(record.tensors.values()) for record in records))
    for name in list_files(folder):
        if name.startswith(".model") and name.endswith(".tmp"):
            delete(join(folder, name))  # Left by a task that was killed while it wrote.
    written = {record.file for record in records} | ({INDEX} if len(records) > 1 else set())
    for name in list_files(folder):
        if (name.endswith(".safetensors") or name == INDEX) and name not in written:
            delete(join(folder, name))  # Of an earlier merge into this folder, cut into other files.
    delete(join(folder, WORK))
