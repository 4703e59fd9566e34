"""Merge methods by name. A method is a section of the recipe and the one function that is bound to it.

    @method(Ties)
    def merge_ties(tensor: BlockedTensor, parameters: Ties, context: Context) -> MergedTensor: ...

The function lies in the file of its kind, here `ties.py`, which is imported when the method is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.draws import key_of
from fusion_ray.recipe.merge_methods import METHODS, MergeMethod, PerTarget, spread

Parameters = TypeVar("Parameters", bound=MergeMethod)


@dataclass(frozen=True)
class Context:
    """What a method may know besides the tensor and its parameters.

    Attributes:
        models: Names of the models that the tensor comes from.
        has_base: Whether model 0 is a base; the other models, or else all of them, are the targets.
        seed: Seeds random choices, together with the names of the tensor and of the targets.
        weights: Of the targets, where they were found in an earlier pass over the whole model (VaRM); empty where no
            target moved what shares the weights. None where there was no such pass.
    """

    models: Sequence[str]
    has_base: bool = True
    seed: int = 0
    weights: Sequence[float] | None = None

    @property
    def targets(self) -> Sequence[str]:
        """Names of the targets."""
        return self.models[1:] if self.has_base else self.models

    def per_target(self, value: PerTarget) -> tuple[float, ...]:
        """The value that a parameter has for each target."""
        return spread(value, self.targets, "merge")

    def keys(self, tensor: BlockedTensor) -> list[int]:
        """The key of each target's random draws for this tensor."""
        return [key_of(self.seed, tensor.name, target) for target in self.targets]


MergeFunction = Callable[[BlockedTensor, Parameters, Context], MergedTensor]

_FUNCTIONS: dict[str, MergeFunction[Any]] = {}


def method(section: type[Parameters]) -> Callable[[MergeFunction[Parameters]], MergeFunction[Parameters]]:
    """Make a function the merge method that a section of the recipe describes.

    The function is given the tensor in every model that the method looks at, the base first where there is one, the
    method's parameters, and a Context.
    """
    kind = section.model_fields["kind"].default
    assert METHODS.get(kind) is section, f"{section.__name__} is missing from AnyMethod in recipe/merge_methods.py"

    def register(function: MergeFunction[Parameters]) -> MergeFunction[Parameters]:
        assert kind not in _FUNCTIONS, f"{kind} has two functions"
        _FUNCTIONS[kind] = function
        return function

    return register


def find_method(kind: str) -> MergeFunction[Any]:
    """The function of a merge method.

    Raises:
        MergeError: There is no such method.
    """
    if kind not in METHODS:
        raise MergeError(f"merge: unknown method '{kind}'; known: {', '.join(sorted(METHODS))}.")
    import_module(f"{__package__}.{kind}")  # Where another thread is about to import it, this waits for the whole file.
    return _FUNCTIONS[kind]


def merge_tensor(kind: str, tensor: BlockedTensor, parameters: Mapping[str, Any], context: Context) -> MergedTensor:
    """Merge one tensor.

    Args:
        kind: Name of the method.
        tensor: The tensor in every model that the method looks at, the base first where there is one.
        parameters: The method's parameters, plain data.
        context: See Context.

    Raises:
        MergeError: There is no such method, or it cannot compute with these tensors or parameters.
    """
    merge = find_method(kind)
    return merge(tensor, METHODS[kind](**parameters), context)
