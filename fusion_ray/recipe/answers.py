"""The recipe's section of stage `answers`: what sources are asked to say in their own words."""

from typing import Literal

from pydantic import Field

from fusion_ray.recipe.section import Section


class Answers(Section):
    """How each source answers the training chats that it knows best anew.

    Prompt and answer together are never longer than `distributions.max_length`; engines and actors are that section's.

    Attributes:
        per_chat: Answers to each chat, all drawn.
        max_tokens: An answer that has not ended by then is broken off.
        unfinished: Learn from answers that were broken off as far as they go, or leave them out.
        temperature: Sampling temperature; 1 leaves the model's distribution unchanged.
    """

    per_chat: int = Field(1, ge=1, le=64)
    max_tokens: int = Field(512, ge=1)
    unfinished: Literal["keep", "drop"] = "keep"
    temperature: float = Field(1.0, gt=0)
