"""The recipe's section `corpus`."""

from pydantic import Field

from fusion_ray.recipe.section import Section, Share


class Corpus(Section):
    """Where the chats are, and how they are split and cut into shards."""

    path: str
    heldout: Share = 0.1
    validation: Share = 0.05
    shard_rows: int = Field(512, ge=1)
    max_rows: int | None = Field(None, ge=1)
    domain_column: str = "domain"
    max_rejected: Share = 0.01
