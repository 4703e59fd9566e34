"""The whole configuration of a run: one YAML file, read into frozen objects. Imports neither torch nor ray.

Every section is named after its stage; choices are unions keyed on `kind`, and a bare string is short for
`{kind: that}`. Relative paths are relative to the working folder, as in any command.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from fusion_ray.answers import Answers
from fusion_ray.errors import RecipeError
from fusion_ray.evaluation import Evaluate, Judge
from fusion_ray.fusion import Fused
from fusion_ray.merge_methods import AnyMethod, RescaledSum
from fusion_ray.section import Label, Name, Section, Share, choice_of
from fusion_ray.training import Targets

Dtype = Literal["float32", "bfloat16", "float16"]
# What else has a name in a run: no source may have it too.
TAKEN_NAMES = frozenset({"pivot", "merged", "multi", "sft", "longer", "self", "shuffled", "answers"})


# --- engines ---------------------------------------------------------------------------------------------------


class TransformersEngine(Section):
    """Score with Hugging Face Transformers: runs everywhere, any architecture."""

    kind: Literal["transformers"] = "transformers"
    dtype: Dtype | Literal["auto"] = "auto"
    tokens_per_batch: int = Field(8192, ge=1)
    attention: str | None = None


class VllmEngine(Section):
    """Score with vLLM, the production engine."""

    kind: Literal["vllm"] = "vllm"
    dtype: Dtype | Literal["auto"] = "auto"
    tensor_parallel: int = Field(1, ge=1)
    gpu_memory_share: float = Field(0.85, gt=0, le=1)
    tokens_per_batch: int = Field(2048, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


class OpenAIEngine(Section):
    """Score through a running OpenAI-compatible server that returns prompt log-probabilities."""

    kind: Literal["openai"] = "openai"
    base_url: str
    served_model: str | None = None
    concurrency: int = Field(16, ge=1)
    timeout_s: float = Field(120, gt=0)
    retries: int = Field(5, ge=0)


Engine = Annotated[
    Annotated[TransformersEngine | VllmEngine | OpenAIEngine, Field(discriminator="kind")], choice_of("transformers")
]


class Model(Section):
    """A chat model: a local folder, or a Hub id with an optional `@revision`.

    `parameters`, and `active_parameters` where experts take turns, tell `plan` the size of a model that is not here.
    """

    model: str
    parameters: float | None = Field(None, gt=0)
    active_parameters: float | None = Field(None, gt=0)
    trust_remote_code: bool = False
    engine: Engine | None = None
    template: str | None = None


class Source(Model):
    """A chat LLM whose knowledge is taken."""

    name: Name


# --- stages ----------------------------------------------------------------------------------------------------


class Corpus(Section):
    """Where the chats are, and how they are split and cut into shards."""

    path: str
    heldout: Share = 0.1
    validation: Share = 0.05
    shard_rows: int = Field(512, ge=1)
    max_rows: int | None = Field(None, ge=1)
    domain_column: str = "domain"
    max_rejected: Share = 0.01


class Actors(Section):
    """Bounds of an autoscaling actor pool."""

    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Actors":
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class CompactStore(Section):
    """Top-k with exact ids and log-probabilities to 0.01 nat."""

    kind: Literal["compact"] = "compact"


class PlainStore(Section):
    """Top-k as plain lists, for other tools."""

    kind: Literal["plain"] = "plain"


class SampledStore(Section):
    """Entries that stand for all of a distribution, in place of its top-k: its head, and draws from its tail."""

    kind: Literal["sampled"] = "sampled"
    draws: int = Field(10, ge=1, le=1024)
    seed: int = Field(0, ge=0)


Store = Annotated[
    Annotated[CompactStore | PlainStore | SampledStore, Field(discriminator="kind")], choice_of("compact")
]


class Distributions(Section):
    """How every model scores the corpus."""

    top_k: int = Field(10, ge=1, le=1024)
    template: str = "native"
    engine: Engine = TransformersEngine()
    actors: Actors = Actors()
    cpus_per_actor: float = Field(1, ge=0)
    gpus_per_actor: float = Field(0, ge=0)
    nodes: Label | None = None
    max_length: int = Field(2048, ge=8)
    too_long: Literal["cut", "reject"] = "cut"
    store: Store = CompactStore()
    max_rejected: Share = 0.01
    wait_s: float = Field(600, gt=0)


_REMOVED_METHODS = {
    "learned": "weights learned by descent stood behind rescaled_sum (docs/quality.md); use that, or varm"
}


class Merged(Section):
    """How targets become one model. Deltas are what a target has and `base` has not: the pivot, or the SFT control.

    The base is the SFT control for `rescaled_sum`, the pivot for all other methods, unless it is given.
    """

    method: Annotated[AnyMethod, choice_of("rescaled_sum", _REMOVED_METHODS)] = RescaledSum()
    base: Literal["pivot", "sft"] = "sft"
    dtype: Dtype | Literal["pivot"] = "pivot"
    shard_gib: float = Field(5.0, gt=0)
    block_mib: float = Field(1.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _base_of_the_method(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data  # Pydantic says what is wrong with it.
        method = data.get("method", "rescaled_sum")
        kind = method.get("kind", "rescaled_sum") if isinstance(method, dict) else getattr(method, "kind", method)
        return {"base": "sft" if kind == "rescaled_sum" else "pivot"} | data


class Report(Section):
    """What is measured on the held-out split."""

    samples: int = Field(6, ge=0)
    sample_tokens: int = Field(64, ge=1)
    views: int = Field(4, ge=0)
    bootstrap: int = Field(2000, ge=100)


class Recipe(Section):
    """One run, completely described."""

    name: Name
    seed: int = Field(0, ge=0)
    runs: str = "runs"
    pivot: Model
    sources: tuple[Source, ...] = Field(min_length=1)
    corpus: Corpus
    distributions: Distributions = Distributions()
    answers: Answers | None = None
    fused: Fused = Fused()
    targets: Targets = Targets()
    merged: Merged = Merged()
    report: Report = Report()
    judge: Judge | None = None
    evaluate: Evaluate | None = None

    @model_validator(mode="before")
    @classmethod
    def _reach_of_rounds(cls, data: Any) -> Any:
        """What targets learn in one round of several is added whole unless told otherwise."""
        if not isinstance(data, dict) or not isinstance(targets := data.get("targets"), dict):
            return data
        merged = data.get("merged") or {}
        if targets.get("rounds", 1) == 1 or not isinstance(merged, dict):
            return data
        method = merged.get("method", {})
        method = {"kind": method} if isinstance(method, str) else method
        if not isinstance(method, dict) or method.get("kind") not in (None, "rescaled_sum"):
            return data
        return data | {"merged": merged | {"method": {"reach": "each"} | method}}

    @model_validator(mode="after")
    def _source_names_are_free(self) -> "Recipe":
        names = [source.name for source in self.sources]
        for name in names:
            if name in TAKEN_NAMES or names.count(name) > 1:
                raise ValueError(f"sources: the name '{name}' is taken; give every source a name of its own")
        return self

    @model_validator(mode="after")
    def _draws_need_whole_distributions(self) -> "Recipe":
        if isinstance(self.distributions.store, SampledStore):
            for name, model in self.models().items():
                engine = model.engine or self.distributions.engine
                if engine.kind == "openai":
                    raise ValueError(
                        f"distributions.store: sampled needs the engine vllm or transformers, and {name} has "
                        f"{engine.kind}: a server gives the largest entries only"
                    )
        return self

    @model_validator(mode="after")
    def _draws_are_taught_as_draws(self) -> "Recipe":
        store, tail = self.distributions.store.kind, self.targets.tail
        if (store == "sampled") != (tail == "sampled"):
            what = "shares of draws are no top-k" if store == "sampled" else "a top-k is not drawn"
            raise ValueError(
                f"distributions.store is {store} and targets.tail is {tail}: {what}. Draws are stored and taught as "
                "such: set both to sampled, or neither"
            )
        return self

    @model_validator(mode="after")
    def _draws_are_not_cut(self) -> "Recipe":
        store, top_k = self.distributions.store, self.fused.top_k
        if isinstance(store, SampledStore) and top_k is not None and top_k < store.draws:
            raise ValueError(
                f"fused.top_k is {top_k} and distributions.store.draws {store.draws}: cut draws are no longer without "
                f"bias. Leave fused.top_k out, or set it to {store.draws} or more"
            )
        return self

    @model_validator(mode="after")
    def _the_start_is_there(self) -> "Recipe":
        start, controls = self.targets.start, self.targets.controls
        if start == "sft" and "sft" not in controls:
            raise ValueError("targets.start: sft needs the SFT control; add sft to targets.controls, or start: pivot")
        if start == "pivot" and "longer" in controls:
            raise ValueError("targets.controls: longer goes on from the SFT control, as targets do under start: sft")
        if self.targets.rounds > 1 and (start == "pivot" or self.merged.base == "pivot"):
            raise ValueError(
                f"targets.rounds: {self.targets.rounds} rounds add up what each target learns beyond where the round "
                "starts; set targets.start and merged.base to sft"
            )
        return self

    @model_validator(mode="after")
    def _the_base_is_there(self) -> "Recipe":
        method = self.merged.method
        if self.merged.base == "sft" and "sft" not in self.targets.controls:
            raise ValueError(
                "merged.base: sft needs the SFT control; add sft to targets.controls, or set merged.base: pivot"
            )
        if self.merged.base == "sft" and not method.has_base:
            raise ValueError(f"merged.base: sft changes nothing for {method.kind}, which takes no deltas; leave it out")
        return self

    @model_validator(mode="after")
    def _validation_is_there(self) -> "Recipe":
        for wish in self.targets.goes_by_validation if not self.corpus.validation else []:
            raise ValueError(f"{wish} goes by validation chats, and corpus.validation is 0; set a share, say 0.05")
        return self

    @property
    def folder(self) -> str:
        """Where the run's artifacts lie."""
        return f"{self.runs.rstrip('/')}/{self.name}"

    def models(self) -> dict[str, Model]:
        """Every model that scores the corpus, the pivot first."""
        return {"pivot": self.pivot} | {source.name: source for source in self.sources}


# --- reading ---------------------------------------------------------------------------------------------------


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe from YAML or JSON, then apply `section.key=value` overrides.

    Raises:
        RecipeError: The file is missing, is not YAML, or a key or value in it is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: the recipe cannot be read ({error}). Give the path of a YAML file.") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    return parse_recipe(data, where=str(path), overrides=overrides)


def parse_recipe(data: Any, where: str = "recipe", overrides: tuple[str, ...] = ()) -> Recipe:
    """Validate a recipe given as plain data; see `load_recipe`."""
    if not isinstance(data, dict):
        raise RecipeError(
            f"{where}: expected a mapping with name, pivot, sources and corpus, got {type(data).__name__}."
        )
    for override in overrides:
        _apply_override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(_explain(item) for item in _first_causes(error.errors()))) from None


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    *parents, last = key.split(".")
    if not separator or not last:
        raise RecipeError(f"--set {override}: expected section.key=value, such as targets.learning_rate=1e-5.")
    for parent in parents:
        data = _enter(data, parent, override)
    data[last] = _parse_value(value)


def _parse_value(value: str) -> Any:
    parsed = yaml.safe_load(value) if value else None
    if isinstance(parsed, str):  # YAML 1.1 reads 1e-5 as text; everyone else reads it as a number.
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
    """Without complaints that a list is too short because its bad items were dropped."""
    return [item for item in items if item["type"] != "too_short" or len(items) == 1]


def _explain(item: Any) -> str:
    place = ".".join(map(str, item["loc"])) + ": " if item["loc"] else ""  # Else it is the whole recipe's.
    message = item["msg"].removeprefix("Value error, ")
    return f"{place}{message}" + ("" if item["type"] == "value_error" else f" (got {item.get('input')!r:.80})")
