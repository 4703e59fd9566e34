"""The plan of a merge: which tensors of which checkpoints make which tensor of which output file, and how.

A plan is plain data: it travels to tasks, and its fingerprint says whether a file that is already there belongs to it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fusion_ray.errors import MergeError
from fusion_ray.recipe.merge_methods import METHODS
from fusion_ray.storage.checkpoint_writer import Slot, shard_name
from fusion_ray.storage.checkpoints import FLOATS, Checkpoint, StoredTensor
from fusion_ray.storage.filesystem import locate

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
# Buffers that old Transformers versions saved and current ones compute; a model may have them or not.
_COMPUTED_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", "position_ids")
_OUTPUT_EMBEDDINGS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class TensorJob:
    """One tensor of the output.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: The type it is written in, as safetensors spells it.
        inputs: The tensors it is made of, the base first where there is one.
        models: For each input, the number of its model in the plan.
        method: Name of the merge method.
        parameters: The method's parameters, plain data; those for each target are tuples, without a value for the base.
        has_base: Whether the first input is a base.
        weights: Of the targets, where a first pass over the whole model found them (VaRM); see methods.registry.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    inputs: tuple[StoredTensor, ...]
    models: tuple[int, ...]
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    has_base: bool = True
    weights: tuple[float, ...] | None = None

    @property
    def slot(self) -> Slot:
        """Its place in the output file."""
        return Slot(self.name, self.dtype, self.shape)


@dataclass(frozen=True)
class OutputFile:
    """One file of the output and its tensors."""

    name: str
    jobs: tuple[TensorJob, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(job.slot.nbytes for job in self.jobs)


@dataclass(frozen=True)
class MergePlan:
    """A whole merge.

    Attributes:
        models: Names of the models, the base first where there is one.
        has_base: Whether model 0 is the base.
        files: The output.
        seed: Seeds the random choices of DARE and DELLA, together with the names of tensor and model.
        block_bytes: Bound on the float32 block of all models that is held at once.
    """

    models: tuple[str, ...]
    has_base: bool
    files: tuple[OutputFile, ...]
    seed: int = 0
    block_bytes: int = 1 << 20

    @cached_property
    def fingerprint(self) -> str:
        """Hash over everything the output depends on; inputs by file, size and time of change."""
        uris = sorted({tensor.uri for file in self.files for job in file.jobs for tensor in job.inputs})
        text = json.dumps([asdict(self), [describe_file(uri) for uri in uris]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the models without the base."""
        return self.models[1:] if self.has_base else self.models

    def with_weights(self, weights: Mapping[str, tuple[float, ...]]) -> "MergePlan":
        """The same plan with the weights of the targets for some tensors, by name."""
        files = tuple(
            replace(file, jobs=tuple(replace(job, weights=weights.get(job.name, job.weights)) for job in file.jobs))
            for file in self.files
        )
        return replace(self, files=files)


def describe_file(uri: str) -> str:
    """A file with its size and time of change, which tell one state of it from another without reading it."""
    place = locate(uri)
    info = place.filesystem.get_file_info(place.path)
    return f"{uri}:{info.size}:{info.mtime_ns}"


def plan_merge(
    pivot: Checkpoint,
    targets: Mapping[str, Checkpoint],
    *,
    method: str,
    parameters: Mapping[str, Any],
    dtype: str = "pivot",
    base_name: str = "pivot",
    base: Checkpoint | None = None,
    file_bytes: int = 5 << 30,
    block_bytes: int = 1 << 20,
    seed: int = 0,
) -> MergePlan:
    """Plan the merge of targets that have the pivot's architecture, one method for all tensors.

    Args:
        pivot: The base, unless another is given; its types are those of the output.
        targets: The models to merge, by name.
        method: Name of the merge method.
        parameters: Its parameters, plain data; those for each target are tuples.
        dtype: Type of the output, or `pivot` for each tensor's type in the pivot.
        base_name: What the base is called in the records of the output.
        base: The model that deltas are taken from, if it is not the pivot.
        file_bytes: Upper bound of one output file.
        block_bytes: See MergePlan.
        seed: See MergePlan.

    Raises:
        MergeError: The checkpoints do not match, or there is no target.
    """
    check_targets(targets)
    checkpoints = {base_name: base or pivot, **targets}
    names = common_tensors({"pivot": pivot} | checkpoints)
    has_base = METHODS[method](**parameters).has_base
    used = tuple(range(0 if has_base else 1, len(checkpoints)))
    jobs = []
    for name in names:
        inputs = tuple(checkpoint.tensors[name] for checkpoint in checkpoints.values())
        check_inputs(name, inputs)
        own = pivot.tensors[name].dtype
        written = own if own not in FLOATS or dtype == "pivot" else DTYPES[dtype]
        read = tuple(inputs[number] for number in used)
        jobs.append(TensorJob(name, inputs[0].shape, written, read, used, method, dict(parameters), has_base))
    return MergePlan(tuple(checkpoints), True, divide(jobs, file_bytes), seed, block_bytes)


def check_targets(targets: Mapping[str, Checkpoint]) -> None:
    """Refuse a merge of no target, and one folder given twice, however its name is spelt.

    Raises:
        MergeError: There is none, or two are the same folder.
    """
    if not targets:
        raise MergeError("merge: no target to merge. Give at least one.")
    seen: dict[str, str] = {}
    for name, checkpoint in targets.items():
        place = locate(checkpoint.folder)
        folder = str(Path(place.path).resolve()) if place.is_local else checkpoint.folder.rstrip("/")
        if folder in seen:
            raise MergeError(
                f"merge: '{seen[folder]}' and '{name}' are the same folder {folder}; that would count it twice. "
                "Give every model once, by one name, and a weight if one should count more."
            )
        seen[folder] = name


def common_tensors(checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """Names of the tensors to merge, in the order of the first checkpoint.

    Left out are a tied output embedding, for which the model uses the input embedding, and buffers that the
    architecture computes itself.

    Raises:
        MergeError: The architectures differ, or a model lacks a tensor that another has.
    """
    check_architectures(checkpoints)
    tied = {name: checkpoint.ties_embeddings for name, checkpoint in checkpoints.items()}
    named = {name: merged_names(checkpoint) for name, checkpoint in checkpoints.items()}
    (first, reference), *others = named.items()
    for other, names in others:
        missing, extra = sorted(reference.keys() - names.keys()), sorted(names.keys() - reference.keys())
        if missing or extra:
            what = f"lacks {_few(missing)}" if missing else f"has {_few(extra)}, which {first} lacks"
            hint = f" (tie_word_embeddings is {tied[first]} in {first}, {tied[other]} in {other})"
            raise MergeError(
                f"merge: {other} {what}{hint if tied[first] != tied[other] else ''}. Every model must have the same "
                "tensors; use models fine-tuned from one pivot."
            )
    return list(reference)


def check_architectures(checkpoints: Mapping[str, Checkpoint]) -> None:
    """Refuse models whose config.json names different architectures.

    Raises:
        MergeError: They do.
    """
    found = {name: checkpoint.config.get("model_type") for name, checkpoint in checkpoints.items()}
    if len(set(found.values())) > 1:
        raise MergeError(
            f"merge: the models are of different architectures: {found}. Merge models of one architecture."
        )


def merged_names(checkpoint: Checkpoint) -> dict[str, None]:
    """Names of the tensors of a checkpoint that take part in a merge, in order."""
    tied = checkpoint.ties_embeddings
    return {
        name: None
        for name in checkpoint.tensors
        if not name.endswith(_COMPUTED_BUFFERS) and not (tied and name in _OUTPUT_EMBEDDINGS)
    }


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_inputs(name: str, inputs: Sequence[StoredTensor]) -> None:
    """Refuse tensors of one name that cannot be computed with each other.

    Raises:
        MergeError: Their shapes differ, or only some are of a floating type.
    """
    shapes = {tensor.shape for tensor in inputs}
    if len(shapes) > 1:
        found = "; ".join(f"{list(tensor.shape)} in {tensor.uri}" for tensor in inputs)
        hint = (
            " The vocabularies differ in size: pad them to one size, or name a tokenizer source in a mergekit config."
            if len({tensor.shape[1:] for tensor in inputs}) == 1
            else " Merge models of one shape."
        )
        raise MergeError(f"merge: tensor {name} has different shapes: {found}.{hint}")
    types = {tensor.dtype for tensor in inputs}
    if len(types) > 1 and not types <= FLOATS:
        found = "; ".join(f"{tensor.dtype} in {tensor.uri}" for tensor in inputs)
        raise MergeError(f"merge: tensor {name} has types that do not mix: {found}. Convert the models to bfloat16.")


def divide(jobs: Sequence[TensorJob], file_bytes: int) -> tuple[OutputFile, ...]:
    """Put tensors into as few files as the bound allows, of about equal bytes; a tensor above it has its own file.

    Tensors are placed from the largest to the smallest, each into the file that is emptiest so far. Within a file they
    keep their order.
    """
    total = sum(job.slot.nbytes for job in jobs)
    count = max(1, -(-total // file_bytes))
    while True:
        bins = _fill(jobs, count)
        largest = max(sum(jobs[i].slot.nbytes for i in members) for members in bins)
        single = max((job.slot.nbytes for job in jobs), default=0)
        if largest <= max(file_bytes, single) or count >= len(jobs):
            break
        count += 1
    used = [sorted(members) for members in bins if members]
    used.sort()
    return tuple(
        OutputFile(shard_name(index, len(used)), tuple(jobs[i] for i in members)) for index, members in enumerate(used)
    )


def _fill(jobs: Sequence[TensorJob], count: int) -> list[list[int]]:
    bins: list[list[int]] = [[] for _ in range(count)]
    sizes = [0] * count
    for index in sorted(range(len(jobs)), key=lambda i: (-jobs[i].slot.nbytes, i)):
        emptiest = sizes.index(min(sizes))
        bins[emptiest].append(index)
        sizes[emptiest] += jobs[index].slot.nbytes
    return bins
