"""The recipe's section `corpus`."""

from typing import Annotated

from pydantic import Field, model_validator

from fusion_ray.recipe.section import PLACEMENT, Section, Share


class Columns(Section):
    """The columns of a user's rows, where they have names that are not looked for.

    Attributes:
        prompt, answer: The question and its answer, as text or as messages; then no other column is looked for.
        id: The row's id.
        domain: Its domain; None is `corpus.domain_column`.
    """

    prompt: str | None = Field(None, min_length=1)
    answer: str | None = Field(None, min_length=1)
    id: str = Field("id", min_length=1)
    domain: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _a_question_has_an_answer(self) -> "Columns":
        if (self.prompt is None) != (self.answer is None):
            one, other = ("answer", "prompt") if self.prompt is None else ("prompt", "answer")
            raise ValueError(f"corpus.columns: {one} is named and {other} is not; name both")
        named = [name for name in (self.prompt, self.answer, self.id, self.domain) if name is not None]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"corpus.columns: the column '{twice[0]}' is named twice")
        return self


class Corpus(Section):
    """Where the chats are, and how they are split and cut into shards."""

    path: Annotated[str, PLACEMENT]
    heldout: Share = 0.1
    validation: Share = 0.05
    shard_rows: int = Field(512, ge=1)
    max_rows: int | None = Field(None, ge=1)
    domain_column: str = "domain"
    columns: Columns = Columns()
    max_rejected: Annotated[Share, PLACEMENT] = 0.01

    @property
    def row_columns(self) -> Columns:
        """`columns` with the domain's name in it."""
        return self.columns.model_copy(update={"domain": self.columns.domain or self.domain_column})

    @model_validator(mode="after")
    def _one_name_for_the_domain(self) -> "Corpus":
        if self.columns.domain is not None and self.domain_column not in ("domain", self.columns.domain):
            raise ValueError(
                f"corpus.domain_column is '{self.domain_column}' and corpus.columns.domain '{self.columns.domain}'; "
                "give one of them"
            )
        return self

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> "Corpus":
        if self.heldout + self.validation >= 1:
            raise ValueError(
                f"corpus.heldout {self.heldout:g} and corpus.validation {self.validation:g} leave nothing to train on; "
                "together they must be below 1"
            )
        return self
