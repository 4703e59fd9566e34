"""The recipe's section `corpus`."""

from typing import Annotated

from pydantic import Field

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
