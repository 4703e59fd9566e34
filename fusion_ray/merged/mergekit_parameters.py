"""Find the value of every parameter for one tensor of a mergekit config: filters, gradients over layers, precedence."""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fusion_ray.errors import MergeError
from fusion_ray.merged.mergekit_config import Setting, Settings, explain, spelt
from fusion_ray.recipe import Section
from fusion_ray.recipe.merge_methods import METHODS, REQUIRED_BY_MERGEKIT


class Scope(Section):
    """Where the parameters of one tensor are looked up.

    Attributes:
        method: Name of the merge method.
        shared: The parameters of the slice, then those of the document.
        by_model: The own parameters of each model that takes part, without a base.
        t: Place of the tensor's layer among those of its slice, 0 for the first and 1 for the last; for gradients.
    """

    method: str
    shared: tuple[dict[str, Setting], ...]
    by_model: tuple[dict[str, Setting], ...]
    t: float


def resolve_parameters(scope: Scope, name: str, input_names: Sequence[str]) -> dict[str, Any]:
    """The parameters of one tensor as plain data, those for each model as tuples.

    A model's own parameters come before shared ones.

    Args:
        scope: Where to look.
        name: The tensor's name in the output, which the filters of shared parameters match.
        input_names: Its name in each model of `scope.by_model`, which the filters of the model's parameters match.

    Raises:
        MergeError: A parameter that has no default is missing, or a value does not fit.
    """
    section = METHODS[scope.method]
    values: dict[str, Any] = {}
    for field, info in section.model_fields.items():
        if field == "kind":
            continue
        key = spelt(field)
        if field in section.per_target():
            found = [
                _first(key, (own, *scope.shared), input_name, scope.t)
                for own, input_name in zip(scope.by_model, input_names, strict=True)
            ]
            if _is_required(info) and None in found:
                raise MergeError(
                    f"merge: tensor {name}: model {found.index(None) + 1} has no '{key}'. Give it there or under "
                    "'parameters'."
                )
            values[field] = tuple(info.default if value is None else value for value in found)
        else:
            value = _first(key, scope.shared, name, scope.t)
            if _is_required(info) and value is None:
                raise MergeError(f"{scope.method}: tensor {name}: no value for '{key}'. Give it under 'parameters'.")
            values |= {} if value is None else {field: value}
    try:
        return section(**values).parameters(input_names)
    except ValidationError as error:
        raise MergeError(f"{scope.method}: tensor {name}: {explain(error.errors()[0])}.") from None


def _is_required(field: FieldInfo) -> bool:
    return field.is_required() or REQUIRED_BY_MERGEKIT in field.metadata


def _first(key: str, settings: Iterable[Settings], name: str, t: float) -> Any:
    for scope in settings:
        if key in scope:
            value = evaluate(scope[key], name, t)
            if value is not None:
                return value
    return None


def evaluate(setting: Setting, name: str, t: float) -> Any:
    """The value of a setting for one tensor.

    >>> evaluate([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}], "layers.3.mlp.up_proj.weight", 0.25)
    0.25
    """
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return _as_number(setting)
    if not setting:
        return None
    if isinstance(setting[0], dict):
        return _first_match(setting, name, t)
    values = [_as_number(value) for value in setting]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return values[int(t * (len(values) - 1))]
    place = t * (len(values) - 1)
    before = int(place)
    after = min(before + 1, len(values) - 1)
    return (1 - (place - before)) * values[before] + (place - before) * values[after]


def _first_match(conditions: Sequence[Any], name: str, t: float) -> Any:
    for condition in conditions:
        if not isinstance(condition, dict) or not {"value"} <= condition.keys() <= {"value", "filter"}:
            raise MergeError(f"merge: {condition!r} is no condition; expected {{filter: text, value: ...}}.")
        wanted = condition.get("filter")
        if wanted in (None, "*") or (name and wanted in name):
            return evaluate(condition["value"], name, t)
    return None


def _as_number(value: Any) -> Any:
    if isinstance(value, str):  # YAML 1.1 reads 1e-5 as text; everyone else reads it as a number.
        try:
            return float(value)
        except ValueError:
            return value
    return value
