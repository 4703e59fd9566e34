"""The merge methods of a recipe and their parameters, with mergekit's names and defaults.

A value for each target is one number for all, a list in the order of the sources, or a mapping by source name.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fusion_ray.errors import RecipeError
from fusion_ray.recipe.section import Section

PerTarget = float | tuple[float, ...] | dict[str, float]


class MergeMethod(Section):
    """A merge method.

    Attributes:
        per_target: The parameters that have a value for each target.
        has_base: Whether it looks at the model that deltas are taken from, and not at the targets alone.
    """

    per_target: ClassVar[frozenset[str]] = frozenset()
    has_base: ClassVar[bool] = True

    def parameters(self, targets: Sequence[str]) -> dict[str, Any]:
        """The parameters as plain data, those for each target spread into tuples.

        Raises:
            RecipeError: A list has another length than there are targets, or a mapping names another target.
        """
        plain = self.model_dump(exclude={"kind"})
        return plain | {key: self._spread(key, getattr(self, key), targets) for key in self.per_target}

    def _spread(self, key: str, value: Any, targets: Sequence[str]) -> tuple[float, ...]:
        where = f"merged.method.{key}"
        if isinstance(value, dict):
            if set(value) != set(targets):
                raise RecipeError(f"{where}: names {sorted(value)}; expected exactly the targets {sorted(targets)}.")
            return tuple(value[target] for target in targets)
        if isinstance(value, tuple):
            if len(value) != len(targets):
                raise RecipeError(f"{where}: {len(value)} values for {len(targets)} targets ({', '.join(targets)}).")
            return value
        return (value,) * len(targets)


class Varm(MergeMethod):
    """Weights from the variation ratio of each matrix before and after fine-tuning (FuseChat v1)."""

    kind: Literal["varm"] = "varm"
    granularity: Literal["model", "layer", "module", "matrix", "element"] = "matrix"


class RescaledSum(MergeMethod):
    """The base plus the deltas' sum, scaled (ours): averages what targets share, adds the rest.

    `reach: one` scales the sum to the length of one delta; `reach: each` scales it so that its projection on each delta
    is, on average, as long as that delta. The default is `each` where targets train in several rounds, else `one`.
    """

    kind: Literal["rescaled_sum"] = "rescaled_sum"
    reach: Literal["one", "each"] | None = None


class Linear(MergeMethod):
    """The plain or weighted mean of the targets."""

    kind: Literal["linear"] = "linear"
    has_base = False
    weight: PerTarget = 1.0
    normalize: bool = True
    per_target = frozenset({"weight"})


class Sce(MergeMethod):
    """Select, calculate, erase (FuseChat v2); `fuseai` selects for the weights only, as the released code does."""

    kind: Literal["sce"] = "sce"
    select_topk: float = Field(1.0, ge=0, le=1)
    dialect: Literal["paper", "fuseai"] = "paper"


class _Deltas(MergeMethod):
    weight: PerTarget = 1.0
    normalize: bool = False
    rescale: bool = False
    lambda_: float = 1.0
    per_target = frozenset({"weight"})


class _SparseDeltas(_Deltas):
    density: PerTarget = 1.0
    per_target = frozenset({"weight", "density"})


class TaskArithmetic(_Deltas):
    """The pivot plus the weighted sum of the deltas."""

    kind: Literal["task_arithmetic"] = "task_arithmetic"


class Ties(_SparseDeltas):
    """Trim small deltas, elect a sign, merge what agrees with it."""

    kind: Literal["ties"] = "ties"
    normalize: bool = True


class DareTies(_SparseDeltas):
    """Drop deltas at random and rescale, then as TIES."""

    kind: Literal["dare_ties"] = "dare_ties"
    rescale: bool = True


class DareLinear(_SparseDeltas):
    """Drop deltas at random and rescale, then as task arithmetic."""

    kind: Literal["dare_linear"] = "dare_linear"
    rescale: bool = True


class _DellaDeltas(_SparseDeltas):
    rescale: bool = True
    epsilon: PerTarget = 0.15
    per_target = frozenset({"weight", "density", "epsilon"})


class Della(_DellaDeltas):
    """Drop deltas at random, small ones more often, then as TIES."""

    kind: Literal["della"] = "della"
    normalize: bool = True


class DellaLinear(_DellaDeltas):
    """Drop deltas at random, small ones more often, then as task arithmetic."""

    kind: Literal["della_linear"] = "della_linear"


class _BreadcrumbsDeltas(_SparseDeltas):
    gamma: PerTarget = 0.01
    per_target = frozenset({"weight", "density", "gamma"})


class Breadcrumbs(_BreadcrumbsDeltas):
    """Drop the largest and the smallest deltas, then as task arithmetic."""

    kind: Literal["breadcrumbs"] = "breadcrumbs"


class BreadcrumbsTies(_BreadcrumbsDeltas):
    """Drop the largest and the smallest deltas, then as TIES."""

    kind: Literal["breadcrumbs_ties"] = "breadcrumbs_ties"


class Slerp(MergeMethod):
    """Walk the arc from the first target to the second; `t` is how far."""

    kind: Literal["slerp"] = "slerp"
    has_base = False
    t: float = 0.5


class Nuslerp(MergeMethod):
    """Walk the arc between the deltas of two targets."""

    kind: Literal["nuslerp"] = "nuslerp"
    weight: PerTarget = 1.0
    nuslerp_flatten: bool = True
    nuslerp_row_wise: bool = False
    per_target = frozenset({"weight"})


class Multislerp(MergeMethod):
    """Barycentre of the deltas on a sphere."""

    kind: Literal["multislerp"] = "multislerp"
    weight: PerTarget = 1.0
    normalize_weights: bool = True
    eps: float = Field(1e-8, gt=0)
    per_target = frozenset({"weight"})


class Karcher(MergeMethod):
    """Karcher mean of the targets on a sphere."""

    kind: Literal["karcher"] = "karcher"
    has_base = False
    max_iter: int = Field(10, ge=0)
    tol: float = Field(1e-5, gt=0)


class ModelStock(MergeMethod):
    """Between the pivot and the targets' mean, by the angle between the deltas."""

    kind: Literal["model_stock"] = "model_stock"
    filter_wise: bool = False


class Ram(MergeMethod):
    """Average deltas where several targets moved, keep them whole where one did."""

    kind: Literal["ram"] = "ram"
    epsilon: float = Field(1e-5, ge=0)


class RamplusTl(MergeMethod):
    """As `ram`, with the deltas of one target alone scaled up."""

    kind: Literal["ramplus_tl"] = "ramplus_tl"
    r: float = 0.1
    alpha: float = 0.2
    epsilon: float = Field(1e-5, ge=0)


class Nearswap(MergeMethod):
    """Take the target's weights where they lie within `t` of the pivot's."""

    kind: Literal["nearswap"] = "nearswap"
    t: float


class ArceeFusion(MergeMethod):
    """Take the target's weights where they changed most and matter most."""

    kind: Literal["arcee_fusion"] = "arcee_fusion"


class Passthrough(MergeMethod):
    """One target as it is, or times `scale`."""

    kind: Literal["passthrough"] = "passthrough"
    has_base = False
    scale: float | None = None


AnyMethod = Annotated[
    Varm | RescaledSum | Linear | Sce | TaskArithmetic | Ties | DareTies | DareLinear | Della | DellaLinear
    | Breadcrumbs | BreadcrumbsTies | Slerp | Nuslerp | Multislerp | Karcher | ModelStock | Ram | RamplusTl | Nearswap
    | ArceeFusion | Passthrough,
    Field(discriminator="kind"),
]  # fmt: skip

METHODS: dict[str, type[MergeMethod]] = {
    method.model_fields["kind"].default: method
    for method in AnyMethod.__args__[0].__args__  # type: ignore[attr-defined]
}
