"""The pivot and the sources of a recipe."""

from pydantic import Field

from fusion_ray.recipe.engines import Engine
from fusion_ray.recipe.section import Name, Section


class Model(Section):
    """A chat model: a local folder, or a Hub id with an optional `@revision`.

    `parameters` (and `active_parameters` of a mixture of experts) tell `plan` the size of a model that is not here.
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
