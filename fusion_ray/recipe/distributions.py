"""The recipe's section `distributions`: how every model scores the corpus."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fusion_ray.recipe.engines import Engine, TransformersEngine
from fusion_ray.recipe.section import PLACEMENT, Label, Section, Share, choice_of


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
    """Not the top-k, but entries that stand for the whole distribution: its largest tokens, and draws of the others."""

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
    actors: Annotated[Actors, PLACEMENT] = Actors()
    cpus_per_actor: Annotated[float, PLACEMENT] = Field(1, ge=0)
    gpus_per_actor: Annotated[float, PLACEMENT] = Field(0, ge=0)
    nodes: Annotated[Label | None, PLACEMENT] = None
    max_length: int = Field(2048, ge=8)
    too_long: Literal["cut", "reject"] = "cut"
    store: Store = CompactStore()
    max_rejected: Annotated[Share, PLACEMENT] = 0.01
    wait_s: Annotated[float, PLACEMENT] = Field(600, gt=0)
