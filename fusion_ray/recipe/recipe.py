"""The whole recipe: its sections, and what they need of each other.

Every section is named after its stage; choices are unions keyed on `kind`, and a bare string is short for
`{kind: that}`. Relative paths are relative to the working folder, as in any command.
"""

import re

from pydantic import Field, model_validator

from fusion_ray.recipe.answers import Answers
from fusion_ray.recipe.corpus import Corpus
from fusion_ray.recipe.distributions import Distributions, SampledStore
from fusion_ray.recipe.fused import Fused
from fusion_ray.recipe.merge_methods import RescaledSum
from fusion_ray.recipe.merged import Merged
from fusion_ray.recipe.models import Model, Source
from fusion_ray.recipe.report import Evaluate, Judge, Report
from fusion_ray.recipe.section import Name, Section
from fusion_ray.recipe.targets import CONTROL_ARMS, Targets

# What else has a name in a run's folders and tables.
_RESERVED_NAMES = frozenset({"pivot", "merged", "multi", "answers", "oracle", "gold", *CONTROL_ARMS})
_OF_A_ROUND = re.compile(r"round-\d+")


def is_reserved(name: str) -> bool:
    """Whether something in a run's folders or tables has this name, so that no source may have it."""
    return name in _RESERVED_NAMES or bool(_OF_A_ROUND.fullmatch(name))


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

    @model_validator(mode="after")
    def _source_names_are_free(self) -> "Recipe":
        names = [source.name for source in self.sources]
        for name in names:
            if is_reserved(name):
                raise ValueError(
                    f"sources: the name '{name}' is reserved: folders or columns of a run have it; give another one"
                )
            if names.count(name) > 1:
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
        start, controls = self.targets.resolved_start, self.targets.controls
        if start == "sft" and "sft" not in controls:
            raise ValueError("targets.start: sft needs the SFT control; add sft to targets.controls, or start: pivot")
        if start == "pivot" and "longer" in controls:
            raise ValueError("targets.controls: longer goes on from the SFT control, as targets do under start: sft")
        if self.targets.rounds > 1 and (start == "pivot" or self.merged.resolved_base == "pivot"):
            raise ValueError(
                f"targets.rounds: {self.targets.rounds} rounds add up what each target learns beyond where the round "
                "starts; set targets.start and merged.base to sft"
            )
        return self

    @model_validator(mode="after")
    def _the_base_is_there(self) -> "Recipe":
        method = self.merged.method
        if self.merged.resolved_base == "sft" and "sft" not in self.targets.controls:
            raise ValueError(
                "merged.base: sft needs the SFT control; add sft to targets.controls, or set merged.base: pivot"
            )
        if self.merged.resolved_base == "sft" and not method.has_base:
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

    @property
    def resolved(self) -> "Recipe":
        """This recipe with every setting written out that follows from others where it is not given."""
        targets, method = self.targets, self.merged.method
        if isinstance(method, RescaledSum) and method.reach is None:
            method = RescaledSum(reach="one" if targets.rounds == 1 else "each")
        written = {"start": targets.resolved_start, "lambda_": targets.resolved_lambda}
        merged = self.merged.model_copy(update={"base": self.merged.resolved_base, "method": method})
        return self.model_copy(update={"targets": targets.model_copy(update=written), "merged": merged})

    def models(self) -> dict[str, Model]:
        """Every model that scores the corpus, the pivot first."""
        return {"pivot": self.pivot} | {source.name: source for source in self.sources}
