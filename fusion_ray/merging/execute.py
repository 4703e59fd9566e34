"""Carry out a plan: read the slices a tensor needs, merge them block by block, write the output files one by one.

Every function here runs in one process; `stages/merged.py` runs the same functions as Ray tasks. The bytes of a file
depend on the plan alone, so it does not matter who writes it, how many write at once, or how often it is retried.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fusion_ray.algorithms.merge.blocks import Block, as_rows
from fusion_ray.algorithms.merge.sums import delta_squares
from fusion_ray.algorithms.merge.varm import weigh_groups
from fusion_ray.errors import MergeError
from fusion_ray.merging.methods import merge_tensor
from fusion_ray.merging.plan import MergePlan, OutputFile, TensorJob
from fusion_ray.progress import Progress, Tell, silent
from fusion_ray.storage.checkpoint_writer import CheckpointWriter, write_index
from fusion_ray.storage.checkpoints import FLOATS, StoredTensor, TensorReader
from fusion_ray.storage.filesystem import delete, exists, join, list_files, locate, read_bytes, write_bytes

WORK = "_merge"  # Folder of the records of finished files; removed when the merge is whole.


@dataclass(frozen=True)
class StoredModels:
    """A tensor of several checkpoints as a BlockedTensor; a tensor that fits in one block is read once."""

    name: str
    inputs: tuple[StoredTensor, ...]
    reader: TensorReader
    block_bytes: int
    _kept: list[Block] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in every model."""
        return self.inputs[0].shape

    @property
    def n_models(self) -> int:
        """Number of inputs."""
        return len(self.inputs)

    def blocks(self) -> Iterator[Block]:
        """Blocks of as many whole rows as the bound allows, at least one."""
        rows, columns = as_rows(self.shape)
        step = max(1, self.block_bytes // (4 * max(1, columns) * self.n_models))
        if self._kept:
            yield from self._kept
            return
        for start in range(0, rows, step):
            block = self._read_block(start, min(rows, start + step), columns)
            if step >= rows:
                self._kept.append(block)
            yield block

    def _read_block(self, start: int, stop: int, columns: int) -> Block:
        values_MRC = np.empty((self.n_models, stop - start, columns), dtype=np.float32)
        for model, tensor in enumerate(self.inputs):
            self.reader.read_into(tensor, start * columns, values_MRC[model].reshape(-1))
        return Block(start, values_MRC)


@dataclass(frozen=True)
class FileRecord:
    """What writing one output file gave.

    Attributes:
        file: Its name.
        plan: Fingerprint of the plan it belongs to.
        nbytes: Its size on disk.
        tensors: Name and bytes of each tensor in it.
        weights: Weight of each model by tensor; None where the method has no single number.
    """

    file: str
    plan: str
    nbytes: int
    tensors: Mapping[str, int]
    weights: Mapping[str, Mapping[str, float] | None]


def merge_to_folder(plan: MergePlan, folder: str, tell: Tell = silent) -> list[FileRecord]:
    """Carry out a plan in this process: measure, write every file, then the index.

    A merge that was interrupted goes on where it was.
    """
    plan = resolve_weights(plan, [measure_file(plan, file) for file in files_to_measure(plan)])
    records = []
    for done, file in enumerate(plan.files, start=1):
        records.append(write_file(plan, file, folder))
        tell(Progress("merge", done, len(plan.files), file.name))
    finish_weights(records, folder)
    return records


def files_to_measure(plan: MergePlan) -> list[OutputFile]:
    """The files whose tensors need a first pass, because their weights are shared with other tensors."""
    return [file for file in plan.files if any(_shares_weights(job) for job in file.jobs)]


def _shares_weights(job: TensorJob) -> bool:
    parameters = job.parameters
    shared = job.method == "varm" and parameters["granularity"] in ("model", "layer", "module")
    return shared and "weights" not in parameters and job.inputs[0].dtype in FLOATS


def measure_file(plan: MergePlan, file: OutputFile) -> dict[str, list[float]]:
    """First pass: each target's summed squared delta from the pivot, by tensor."""
    with TensorReader() as reader:
        jobs = [job for job in file.jobs if job.inputs[0].dtype in FLOATS]
        tensors = [StoredModels(job.name, job.inputs, reader, plan.block_bytes) for job in jobs]
        return {tensor.name: [float(square) for square in delta_squares(tensor)] for tensor in tensors}


def resolve_weights(plan: MergePlan, measured: list[dict[str, list[float]]]) -> MergePlan:
    """Put the weights that the first pass found into the plan."""
    if not measured:
        return plan
    squares = {name: np.array(values) for part in measured for name, values in part.items()}
    granularity, *others = {job.parameters["granularity"] for file in plan.files for job in file.jobs}
    if others:
        raise MergeError(f"varm: granularities {[granularity, *others]} in one merge; give one for all tensors.")
    weights = weigh_groups(squares, granularity)
    return plan.with_parameters(
        {name: {"weights": None if found is None else tuple(found.tolist())} for name, found in weights.items()}
    )


def write_file(plan: MergePlan, file: OutputFile, folder: str) -> FileRecord:
    """Merge the tensors of one output file and write it, unless it is already there and whole."""
    finished = find_record(plan, file, folder)
    if finished:
        return finished
    uri = join(folder, file.name)
    weights = {}
    with TensorReader() as reader, CheckpointWriter(uri, [job.slot for job in file.jobs]) as writer:
        for job in file.jobs:
            weights[job.name] = _write_tensor(plan, job, reader, writer)
    record = FileRecord(
        file.name, plan.fingerprint, _size(uri), {job.name: job.slot.nbytes for job in file.jobs}, weights
    )
    write_bytes(_record_uri(folder, file), json.dumps(asdict(record)).encode())
    return record


def _write_tensor(
    plan: MergePlan, job: TensorJob, reader: TensorReader, writer: CheckpointWriter
) -> dict[str, float] | None:
    if job.inputs[0].dtype not in FLOATS:
        writer.write_raw(_agreed(job, reader))
        return None
    tensor = StoredModels(job.name, job.inputs, reader, plan.block_bytes)
    names = [plan.models[model] for model in job.models]
    merged = merge_tensor(job.method, tensor, job.parameters, seed=plan.seed, names=names)
    for block in merged.blocks:
        writer.write(block.reshape(-1))
    if merged.weights is None:
        return None
    return dict(zip(names[-len(merged.weights) :], merged.weights, strict=True))


def _agreed(job: TensorJob, reader: TensorReader) -> np.ndarray:
    """A tensor that is not of a floating type, which all models must have alike."""
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
    """Write the index that makes several files one checkpoint, and remove the records of the work."""
    if len(records) > 1:
        places = {name: record.file for record in records for name in record.tensors}
        write_index(folder, places, sum(sum(record.tensors.values()) for record in records))
    for name in list_files(folder):
        if name.startswith(".model") and name.endswith(".tmp"):
            delete(join(folder, name))  # Left by a task that was killed while it wrote.
    delete(join(folder, WORK))
