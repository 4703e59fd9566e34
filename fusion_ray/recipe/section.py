"""The base of every part of the recipe."""

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Share = Annotated[float, Field(ge=0, lt=1)]
# A label that the nodes of a pool carry, such as `pool=train`; see cluster/README.md.
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*=[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Mark:
    """Says something of a setting where it is declared: `Annotated[int, PLACEMENT]`."""

    def __init__(self, says: str) -> None:
        self.says = says

    def __repr__(self) -> str:
        return self.says


# A setting of where or how fast something runs, or of where a file lies whose content is what counts. It changes no
# result, so changing it makes nothing stale. A setting without a mark counts.
PLACEMENT = Mark("placement")
# A setting of what teachers say and how much it weighs; an artifact without teachers does not depend on it.
TEACHING = Mark("teaching")


class Section(BaseModel):
    """A part of the recipe: unchangeable, and strict about its keys.

    Attributes:
        removed: Keys that an older version knew, and what to do about one.
    """

    removed: ClassVar[Mapping[str, str]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def __hash__(self) -> int:
        """By content, because options that are passed on to another library are dicts, which have no hash."""
        return hash(json.dumps(self.model_dump(mode="json"), sort_keys=True))

    def deciding(self, *, without: Mark | None = None) -> dict[str, Any]:
        """The settings that decide results, as plain data: all but those that are marked as placement.

        Args:
            without: Leave these out, too.
        """
        marked = (PLACEMENT, without)
        plain = self.model_dump(mode="json")
        fields = type(self).model_fields.items()
        kept = [name for name, field in fields if not any(item is mark for item in field.metadata for mark in marked)]
        values = {name: getattr(self, name) for name in kept}
        return {
            name: value.deciding(without=without) if isinstance(value, Section) else plain[name]
            for name, value in values.items()
        }

    @model_serializer(mode="wrap")
    def _keep_the_kind(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """A choice without its `kind` would be read as another one, so a dump without defaults has it, too."""
        data: dict[str, Any] = dump(self)
        shortened = info.exclude_defaults or info.exclude_unset
        asked_for = "kind" in (info.include or {"kind"}) and "kind" not in (info.exclude or ())
        return {"kind": self.kind} | data if shortened and asked_for and hasattr(self, "kind") else data

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, data: Any) -> Any:
        """Name a misspelt key, the likeliest right one and all others; pydantic's own message names none."""
        for key in data if isinstance(data, dict) else ():
            if key in cls.removed:
                raise ValueError(f"the key '{key}' was removed: {cls.removed[key]}")
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                guess = f" (did you mean '{near[0]}'?)" if near else ""
                raise ValueError(f"unknown key '{key}'{guess}; known keys: {', '.join(sorted(cls.model_fields))}")
        return data


def choice_of(default: str, removed: Mapping[str, str] | None = None) -> BeforeValidator:
    """A union keyed on `kind`: a bare string is short for `{kind: that}`, and a missing kind is the default's.

    Args:
        default: The kind where none is given.
        removed: Kinds that an older version knew, and what to do about one.
    """

    def named(value: Any) -> Any:
        given = {"kind": value} if isinstance(value, str) else value
        if not isinstance(given, dict):
            return given
        kind = given.get("kind", default)
        if removed and kind in removed:
            raise ValueError(f"the kind '{kind}' was removed: {removed[kind]}")
        return {"kind": default} | given

    return BeforeValidator(named)
