"""The recipe's section `corpus`."""

from typing import Annotated

from pydantic import Field, model_validator

from fusion_ray.recipe.section import PLACEMENT, Section, Share


class Corpus(Section):
    """Where the chats are, and how they are split and cut into shards."""

    path: Annotated[str, PLACEMENT]
    heldout: Share = 0.1
    validation: Share = 0.05
    shard_rows: int = Field(512, ge=1)
    max_rows: int | None = Field(None, ge=1)
    domain_column: str = "domain"
    max_rejected: Annotated[Share, PLACEMENT] = 0.01

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> "Corpus":
        if self.heldout + self.validation >= 1:
            raise ValueError(
                f"corpus.heldout {self.heldout:g} and corpus.validation {self.validation:g} leave nothing to train on; "
                "together they must be below 1"
            )
        return self
