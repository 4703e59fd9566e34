"""The recipe's section `merged`: how targets become one model."""

from typing import Annotated, Literal

from pydantic import Field

from fusion_ray.recipe.engines import Dtype
from fusion_ray.recipe.merge_methods import AnyMethod, RescaledSum
from fusion_ray.recipe.section import PLACEMENT, Section, choice_of

_REMOVED_METHODS = {
    "learned": "weights learned by descent stood behind rescaled_sum (docs/quality.md); use that, or varm"
}


class Merged(Section):
    """How targets become one model. Deltas are what a target has and `base` has not: the pivot, or the SFT control.

    Attributes:
        base: Unless it is given, the SFT control for `rescaled_sum` and the pivot for all other methods.
    """

    method: Annotated[AnyMethod, choice_of("rescaled_sum", _REMOVED_METHODS)] = RescaledSum()
    base: Literal["pivot", "sft"] | None = None
    dtype: Dtype | Literal["pivot"] = "pivot"
    shard_gib: float = Field(5.0, gt=0)
    block_mib: Annotated[float, PLACEMENT] = Field(1.0, gt=0)

    @property
    def resolved_base(self) -> Literal["pivot", "sft"]:
        """What deltas are taken from: as given, else as the method wants it."""
        return self.base or ("sft" if isinstance(self.method, RescaledSum) else "pivot")
