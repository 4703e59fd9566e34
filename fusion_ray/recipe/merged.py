"""The recipe's section `merged`: how targets become one model."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fusion_ray.recipe.engines import Dtype
from fusion_ray.recipe.merge_methods import AnyMethod, RescaledSum
from fusion_ray.recipe.section import Section, choice_of

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
