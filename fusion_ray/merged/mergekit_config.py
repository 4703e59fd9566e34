"""Read mergekit's YAML: its keys, its per-filter values and gradients, with its names and precedence.

What is not supported is refused by name, and an unknown key or parameter is never ignored.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from fusion_ray.errors import RecipeError
from fusion_ray.merged.plan import DTYPES
from fusion_ray.recipe import Section
from fusion_ray.recipe.merge_methods import METHODS

# A parameter as YAML gives it: a scalar, a gradient over the layers, or conditions with a filter each.
Setting = Any
Settings = Mapping[str, Setting]

_NO_EFFECT = frozenset({"int8_mask"})  # mergekit trades precision of its masks for memory; ours take a byte anyway.
_UNSUPPORTED = {
    "modules": "merges of several modules (vision towers and the like)",
    "residual_weight": "residual weights of a slice",
    "residual_scale": "residual scales of a slice",
    "lora": "adapters; merge the adapter into its model first",
    "override_architecture": "another architecture than config.json names",
}


def one_model(value: Any) -> Any:
    """A model as text, or as mergekit's mapping {model: {path, revision}}."""
    if not isinstance(value, dict):
        return value
    inner = value.get("model", value)
    if isinstance(inner, dict):
        return f"{inner['path']}@{inner['revision']}" if inner.get("revision") else inner.get("path")
    return inner


ModelName = Annotated[str, BeforeValidator(one_model)]


class Input(Section):
    """A model that goes in whole."""

    model: ModelName
    parameters: dict[str, Setting] = Field(default_factory=dict)


class SliceInput(Input):
    """Some layers of a model; the last of the range is not included."""

    layer_range: tuple[int, int]

    @field_validator("layer_range")
    @classmethod
    def _not_empty(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError(f"layer_range {list(value)} holds no layer")
        return value


class Slice(Section):
    """Layers of the output and the layers of each source that make them."""

    sources: tuple[SliceInput, ...] = Field(min_length=1)
    base_model: ModelName | None = None
    parameters: dict[str, Setting] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _equal_lengths(self) -> "Slice":
        lengths = {source.layer_range[1] - source.layer_range[0] for source in self.sources}
        if len(lengths) > 1:
            raise ValueError(f"the sources of one slice have different numbers of layers: {sorted(lengths)}")
        return self


class Tokenizer(Section):
    """Whose tokenizer the output has, and where the embeddings of its tokens come from."""

    source: ModelName = "union"
    tokens: dict[str, Any] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = Field(None, ge=1)


class MergekitConfig(Section):
    """One document of mergekit's YAML."""

    name: str | None = None
    merge_method: str
    models: tuple[Input, ...] | None = None
    slices: tuple[Slice, ...] | None = None
    base_model: ModelName | None = None
    parameters: dict[str, Setting] = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: ModelName | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None

    @field_validator("merge_method")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"unknown merge method; known: {', '.join(sorted(METHODS))}")
        return value

    @field_validator("dtype", "out_dtype")
    @classmethod
    def _storable(cls, value: str | None) -> str | None:
        plain = value.removeprefix("torch.") if value else None
        if plain is not None and plain not in DTYPES:
            raise ValueError(f"expected one of {', '.join(DTYPES)}")
        return plain

    @model_validator(mode="after")
    def _whole(self) -> "MergekitConfig":
        if bool(self.models) == bool(self.slices):
            raise ValueError("give either 'models' or 'slices'")
        if self.tokenizer and self.tokenizer_source:
            raise ValueError("give either 'tokenizer' or 'tokenizer_source'")
        if needs_base(self.merge_method) and not self._has_base():
            raise ValueError(f"'{self.merge_method}' needs a base_model")
        for settings, allowed in self._settings():
            _check_names(self.merge_method, settings, allowed)
        return self

    def _has_base(self) -> bool:
        return bool(self.base_model or (self.slices and all(part.base_model for part in self.slices)))

    def _settings(self) -> Iterable[tuple[Settings, frozenset[str]]]:
        """Every group of parameters in the document, with the names that are allowed in it."""
        anywhere, per_model = parameter_names(self.merge_method)
        yield self.parameters, anywhere
        for part in self.slices or ():
            yield part.parameters, anywhere
            for source in part.sources:
                yield source.parameters, per_model
        for model in self.models or ():
            yield model.parameters, per_model

    def model_names(self) -> list[str]:
        """Every model the document names, the base first."""
        names = [self.base_model] if self.base_model else []
        names += [model.model for model in self.models or ()]
        for part in self.slices or ():
            names += ([part.base_model] if part.base_model else []) + [source.model for source in part.sources]
        return list(dict.fromkeys(names))


def needs_base(method: str) -> bool:
    """Whether mergekit demands a `base_model` for a method."""
    return METHODS[method].base in ("required", "a target")


def parameter_names(method: str) -> tuple[frozenset[str], frozenset[str]]:
    """Names of a method's parameters as mergekit spells them: all of them, and those with a value for each model."""
    section = METHODS[method]
    anywhere = {spelt(field) for field in section.model_fields if field != "kind"} | _NO_EFFECT
    return frozenset(anywhere), frozenset(map(spelt, section.per_target()))


def spelt(field: str) -> str:
    """A parameter as mergekit spells it; where that is a word of Python's, our field has an underscore behind it.

    >>> spelt("lambda_")
    'lambda'
    """
    return field.rstrip("_")


def _check_names(method: str, settings: Settings, allowed: frozenset[str]) -> None:
    for key in settings:
        if key not in allowed:
            anywhere, _ = parameter_names(method)
            where = "belongs under the document's 'parameters'" if key in anywhere else "is unknown"
            raise ValueError(
                f"parameter '{key}' of {method} {where}; known here: {', '.join(sorted(allowed)) or 'none'}"
            )


def read_config(path: str | Path) -> list[MergekitConfig]:
    """Read the documents of a mergekit YAML file, in order.

    Raises:
        RecipeError: Not readable, not YAML, or something in it is wrong or not supported; says which key.
    """
    try:
        documents = list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: the merge config cannot be read ({error}).") from error
    documents = [document for document in documents if document is not None]
    if not documents:
        raise RecipeError(f"{path}: no document in it. Expected a mapping with merge_method and models or slices.")
    return [parse_config(document, f"{path}" + (f" document {i}" if len(documents) > 1 else ""))
            for i, document in enumerate(documents, start=1)]  # fmt: skip


def parse_config(data: Any, where: str = "merge config") -> MergekitConfig:
    """Check one document, given as plain data; see `read_config`."""
    if not isinstance(data, dict):
        raise RecipeError(f"{where}: expected a mapping with merge_method, got {type(data).__name__}.")
    _refuse_unsupported(data, where)
    try:
        return MergekitConfig.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(explain(item) for item in error.errors())) from None


def explain(item: Any) -> str:
    """One complaint of pydantic in our words."""
    place = ".".join(str(part) for part in item["loc"])
    return f"{place + ': ' if place else ''}{item['msg'].removeprefix('Value error, ')}"


def _refuse_unsupported(data: Any, where: str) -> None:
    """Say of a key that mergekit knows and we do not that it is not supported, rather than misspelt."""
    if isinstance(data, list):
        for item in data:
            _refuse_unsupported(item, where)
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        if key in _UNSUPPORTED and value is not None:
            raise RecipeError(f"{where}: '{key}' is not supported: {_UNSUPPORTED[key]}.")
        if key not in ("parameters", "tokens"):
            _refuse_unsupported(value, where)
