"""From a mergekit config to a plan: which layers of which models make which layer of the output."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fusion_ray.errors import MergeError
from fusion_ray.merged.mergekit_config import MergekitConfig, Slice, SliceInput, needs_base
from fusion_ray.merged.mergekit_parameters import Scope, resolve_parameters
from fusion_ray.merged.plan import (
    DTYPES,
    MergePlan,
    TensorJob,
    check_architectures,
    check_inputs,
    check_targets,
    divide,
    merged_names,
)
from fusion_ray.recipe.merge_methods import METHODS
from fusion_ray.storage.checkpoints import FLOATS, Checkpoint, StoredTensor

_LAYER = re.compile(r"^((?:.*?\.)?(?:layers|h|blocks|block|layer)\.)(\d+)(\..*)$")
_FIRST_NAMES = ("embed_tokens", "wte", "wpe", "embed_in", "word_embeddings")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Member:
    """A model that takes part, with its tensors sorted into layers."""

    name: str
    checkpoint: Checkpoint

    @cached_property
    def layers(self) -> dict[int, dict[str, str]]:
        """By layer, the names of its tensors; their keys have a gap for the layer's number, so layers share them."""
        found: dict[int, dict[str, str]] = {}
        for name in merged_names(self.checkpoint):
            if match := _LAYER.match(name):
                prefix, number, suffix = match.groups()
                found.setdefault(int(number), {})[f"{prefix}{{}}{suffix}"] = name
        return found

    @cached_property
    def others(self) -> list[str]:
        """Names of the tensors that are in no layer."""
        return [name for name in merged_names(self.checkpoint) if not _LAYER.match(name)]

    @property
    def count(self) -> int:
        """Number of layers."""
        return max(self.layers, default=-1) + 1


@dataclass(frozen=True)
class Draft:
    """A plan and what changes in the config of the output.

    Attributes:
        plan: The plan.
        donor: The model whose config and tokenizer the output takes.
        changes: Keys of config.json that differ from the donor's.
    """

    plan: MergePlan
    donor: Checkpoint
    changes: Mapping[str, Any] = field(default_factory=dict)


def plan_config(
    config: MergekitConfig,
    checkpoints: Mapping[str, Checkpoint],
    *,
    file_bytes: int = 5 << 30,
    block_bytes: int = 1 << 20,
    seed: int = 0,
    embeddings: Mapping[str, Mapping[str, StoredTensor]] | None = None,
) -> Draft:
    """Plan one document.

    Args:
        config: The document.
        checkpoints: Every model that it names, opened.
        file_bytes: Upper bound of one output file.
        block_bytes: See MergePlan.
        seed: See MergePlan.
        embeddings: By model and name, embeddings over a joint vocabulary, to be read instead of the model's own.

    Raises:
        MergeError: The models do not fit together as the document wants.
    """
    members = {name: Member(name, checkpoint) for name, checkpoint in checkpoints.items()}
    check_targets(checkpoints)
    check_architectures(checkpoints)
    names = list(members)
    jobs = []
    for made in _output_tensors(config, members):
        stored = tuple(m.checkpoint.tensors[name] for m, name in zip(made.members, made.names, strict=True))
        dtype = _written_type(config, stored)
        inputs = tuple(
            (embeddings or {}).get(member.name, {}).get(tensor.name, tensor)
            for member, tensor in zip(made.members, stored, strict=True)
        )
        check_inputs(made.name, inputs)
        chosen = tuple(names.index(member.name) for member in made.members)
        jobs.append(
            TensorJob(
                made.name,
                inputs[0].shape,
                dtype,
                inputs,
                chosen,
                config.merge_method,
                made.parameters,
                made.has_base,
            )
        )
    donor = members[config.model_names()[0]].checkpoint
    plan = MergePlan(tuple(names), config.base_model is not None, divide(jobs, file_bytes), seed, block_bytes)
    return Draft(plan, donor, _config_changes(config, donor))


@dataclass(frozen=True)
class _OutputTensor:
    """One tensor of the output: what it is made of (the base first, if there is one), its names there, how."""

    name: str
    members: Sequence[Member]
    names: Sequence[str]
    parameters: Mapping[str, Any]
    has_base: bool


def _output_tensors(config: MergekitConfig, members: Mapping[str, Member]) -> Iterator[_OutputTensor]:
    slices = config.slices or (_as_slice(config, members),)
    first, last = _Reader(config, slices[0], members), _Reader(config, slices[-1], members)
    # What comes before the layers is made as the first slice says, what comes after as the last.
    for name in first.lead.others:
        reader = first if any(part in name for part in _FIRST_NAMES) else last
        yield reader.describe(name, [name] * len(reader.inputs), 0.0)
    written = 0
    for part in slices:
        reader = _Reader(config, part, members)
        length = part.sources[0].layer_range[1] - part.sources[0].layer_range[0]
        for offset in range(length):
            t = offset / (length - 1) if length > 1 else 1.0
            for pattern in reader.patterns(offset):
                yield reader.describe(pattern.format(written), reader.find(pattern, offset), t)
            written += 1


def _as_slice(config: MergekitConfig, members: Mapping[str, Member]) -> Slice:
    """Whole models as one slice with all their layers; a base that is not among the models is added at the end."""
    inputs = [(model.model, model.parameters) for model in config.models or ()]
    if config.base_model and config.base_model not in dict(inputs):
        inputs.append((config.base_model, {}))
    counts = {name: members[name].count for name, _ in inputs}
    if len(set(counts.values())) > 1:
        raise MergeError(f"merge: the models have different numbers of layers: {counts}. Merge slices of them.")
    for name, _ in inputs:
        missing = sorted(
            set(merged_names(members[inputs[0][0]].checkpoint)) ^ set(merged_names(members[name].checkpoint))
        )
        if missing:
            raise MergeError(
                f"merge: {inputs[0][0]} and {name} do not have the same tensors; {missing[0]} is in one only "
                f"({len(missing)} such tensors). Merge models of one architecture."
            )
    whole = (0, max(1, next(iter(counts.values()))))
    return Slice(sources=tuple(SliceInput(model=name, parameters=own, layer_range=whole) for name, own in inputs))


class _Reader:
    """One slice: its members in the order that the method wants, the base first."""

    def __init__(self, config: MergekitConfig, part: Slice, members: Mapping[str, Member]) -> None:
        self._config = config
        self._shared = (part.parameters, config.parameters)
        names = [source.model for source in part.sources]
        if len(set(names)) < len(names):
            raise MergeError(f"merge: a slice names the model {max(names, key=names.count)} twice. Name it once.")
        base = part.base_model or config.base_model
        method = config.merge_method
        if base not in names:
            if needs_base(method):
                raise MergeError(f"merge: {method} needs the base model {base} among the sources of every slice.")
            base = None
        self._has_base = base is not None and METHODS[method].base != "none"
        order = sorted(part.sources, key=lambda source: self._has_base and source.model != base)
        self.inputs = order
        self.lead = members[names[0]]
        self._members = [members[source.model] for source in order]

    def patterns(self, offset: int) -> list[str]:
        """The names of the tensors of a layer, with a gap for the layer's number."""
        source, member = self.inputs[0], self._members[0]
        layer = source.layer_range[0] + offset
        if layer not in member.layers:
            if member.count == 0:
                return []
            raise MergeError(f"merge: {member.name} has {member.count} layers; layer {layer} is asked for.")
        return list(member.layers[layer])

    def find(self, pattern: str, offset: int) -> list[str]:
        """The name of one tensor of a layer in every member."""
        names = []
        for source, member in zip(self.inputs, self._members, strict=True):
            layer = source.layer_range[0] + offset
            name = member.layers.get(layer, {}).get(pattern)
            if name is None:
                raise MergeError(
                    f"merge: {member.name} has no tensor {pattern.format(layer)}, which another model has."
                )
            names.append(name)
        return names

    def describe(self, name: str, names: Sequence[str], t: float) -> _OutputTensor:
        """One tensor of the output: its name there and in every member, and the place of its layer, for gradients."""
        own = self.inputs[1:] if self._has_base else self.inputs
        for member, its_name in zip(self._members, names, strict=True):
            if its_name not in member.checkpoint.tensors:
                raise MergeError(f"merge: {member.name} has no tensor {its_name}, which another model has.")
        scope = Scope(
            method=self._config.merge_method,
            shared=self._shared,
            by_model=tuple(source.parameters for source in own),
            t=t,
        )
        parameters = resolve_parameters(scope, name, names[len(names) - len(own) :])
        return _OutputTensor(name, self._members, names, parameters, self._has_base)


def _written_type(config: MergekitConfig, inputs: Sequence[StoredTensor]) -> str:
    types = {tensor.dtype for tensor in inputs}
    if not types <= FLOATS:
        return inputs[0].dtype
    asked = config.out_dtype or config.dtype
    if asked:
        return DTYPES[asked]
    if len(types) == 1:
        return inputs[0].dtype
    return "F64" if "F64" in types else "F32"


def _config_changes(config: MergekitConfig, donor: Checkpoint) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if config.out_dtype or config.dtype:
        name = config.out_dtype or config.dtype
        changes |= {"dtype": name, "torch_dtype": name}
    if not config.slices:
        return changes
    count = sum(part.sources[0].layer_range[1] - part.sources[0].layer_range[0] for part in config.slices)
    for key in _LAYER_COUNTS:
        if key in donor.config:
            changes[key] = count
    kinds = donor.config.get("layer_types")
    if isinstance(kinds, list):
        ranges = [part.sources[0].layer_range for part in config.slices]
        changes["layer_types"] = [kind for start, stop in ranges for kind in kinds[start:stop]]
    return changes
