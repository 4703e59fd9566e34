"""Read a recipe from a file or plain data, apply overrides, and say what is wrong with it in words."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from fusion_ray.errors import RecipeError
from fusion_ray.recipe.corpus import Columns
from fusion_ray.recipe.recipe import Recipe
from fusion_ray.recipe.section import Section

Part = TypeVar("Part", bound=Section)


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe from YAML or JSON, then apply `section.key=value` overrides.

    Raises:
        RecipeError: The file is missing, is not YAML, or a key or value in it is wrong.

    >>> load_recipe("jobs/recipes/demo.yaml", ("targets.epochs=1",)).targets.epochs
    1.0
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: the recipe cannot be read ({error}). Give the path of a YAML file.") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    except RecursionError:
        raise RecipeError(f"{path}: nested too deeply for a recipe.") from None
    return parse_recipe(data, where=str(path), overrides=overrides)


def parse_recipe(data: Any, where: str = "recipe", overrides: tuple[str, ...] = ()) -> Recipe:
    """Validate a recipe given as plain data; see `load_recipe`."""
    if not isinstance(data, dict):
        raise RecipeError(
            f"{where}: expected a mapping with name, pivot, sources and corpus, got {type(data).__name__}."
        )
    for override in overrides:
        _apply_override(data, override)
    return _validated(Recipe, data, where)


def parse_columns(data: Any) -> Columns:
    """The section `corpus.columns` by itself, for what reads rows without a recipe.

    Raises:
        RecipeError: It is none.

    >>> parse_columns({"prompt": "ask", "answer": "reply"}).id
    'id'
    """
    return _validated(Columns, data, "inspect")


def _validated(kind: type[Part], data: Any, where: str) -> Part:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(_explain(item) for item in _first_causes(error.errors()))) from None


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    *parents, last = key.split(".")
    if not separator or not last:
        raise RecipeError(f"--set {override}: expected section.key=value, such as targets.learning_rate=1e-5.")
    for parent in parents:
        data = _enter(data, parent, override)
    try:
        data[last] = _parse_value(value)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"--set {override:.200}: the value is not valid YAML ({error}).") from None


def _parse_value(value: str) -> Any:
    parsed = yaml.safe_load(value) if value else None
    # YAML 1.1 reads 1e-5 as text; everyone else reads it as a number, unless it is quoted.
    if isinstance(parsed, str) and not value.lstrip().startswith(("'", '"')):
        try:
            return float(parsed)
        except ValueError:
            return parsed
    return parsed


def _enter(data: dict[str, Any], key: str, override: str) -> Any:
    if key == "sources":
        return _SourcesByName({source.get("name"): source for source in data.get("sources", [])})
    if isinstance(data, _SourcesByName) and key not in data:
        raise RecipeError(f"--set {override}: no source named '{key}'; there are: {', '.join(map(str, data))}.")
    inner = data.setdefault(key, {})
    if isinstance(inner, str):
        inner = data[key] = {"kind": inner}
    if not isinstance(inner, dict):
        raise RecipeError(f"--set {override}: '{key}' holds {inner!r}, not a section.")
    return inner


class _SourcesByName(dict[str, Any]):
    """The recipe's list of sources as overrides address it."""


def _first_causes(items: list[Any]) -> list[Any]:
    """The errors without those that only follow from others: a list is too short once its bad items are dropped."""
    return [item for item in items if item["type"] != "too_short" or len(items) == 1]


def _explain(item: Any) -> str:
    place = ".".join(map(str, item["loc"])) + ": " if item["loc"] else ""  # Else it is the whole recipe's.
    message = item["msg"].removeprefix("Value error, ")
    return f"{place}{message}" + ("" if item["type"] == "value_error" else f" (got {item.get('input')!r:.80})")
