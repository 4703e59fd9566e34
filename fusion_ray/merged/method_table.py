"""The table of merge methods in docs/merged.md, made from their sections so that it cannot go stale."""

from typing import Any

import yaml
from pydantic.fields import FieldInfo

from fusion_ray.recipe.merge_methods import METHODS, MergeMethod

_HEAD = "| kind | in a sentence | parameters and defaults | base | passes |\n|---|---|---|---|---|\n"


def method_table() -> str:
    """Every merge method in Markdown: name, first line of its docstring, parameters, base and passes."""
    return _HEAD + "\n".join(_row(kind, section) for kind, section in METHODS.items())


def _row(kind: str, section: type[MergeMethod]) -> str:
    sentence = (section.__doc__ or "").partition("\n")[0].removesuffix(".")
    fields = [_describe(name, field) for name, field in section.model_fields.items() if name != "kind"]
    return f"| {kind} | {sentence} | {', '.join(fields)} | {section.base} | {section.passes} |"


def _describe(name: str, field: FieldInfo) -> str:
    return name if field.is_required() else f"{name} {_spell(field.default)}"


def _spell(default: Any) -> str:
    """A default as YAML spells it."""
    return yaml.safe_dump(default, default_flow_style=True).split("\n")[0]
