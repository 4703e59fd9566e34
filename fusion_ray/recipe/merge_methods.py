"""The merge methods of a recipe: a section of parameters for each, with mergekit's names and defaults.

A method is written in two places: its section here (which also stands in `AnyMethod`), and in the file of its name
under `merged/methods/` the function that is bound to the section. The reader of mergekit's YAML, the table in
docs/merged.md, planning and the tests find all they need to know in these two.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from fusion_ray.errors import RecipeError
from fusion_ray.recipe.section import Section

# A value for each target: one number for all, a list in the order of the sources, or a mapping by source name.
PerTarget = float | tuple[float, ...] | dict[str, float]

# Marks a parameter that a mergekit config must give, although a recipe need not.
REQUIRED_BY_MERGEKIT = "required by mergekit"
Weight = Annotated[PerTarget, REQUIRED_BY_MERGEKIT]


def _shares(value: PerTarget) -> PerTarget:
    each = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
    if outside := [number for number in each if not 0 <= number <= 1]:
        raise ValueError(f"expected shares from 0 to 1, got {outside[0]:g}")
    return value


ShareEach = Annotated[PerTarget, AfterValidator(_shares)]

Granularity = Literal["model", "layer", "module", "matrix", "element"]
BaseRole = Literal["required", "optional", "a target", "none"]


class MergeMethod(Section):
    """A merge method: its parameters, and what is known of it before anything is merged.

    Attributes:
        base: Which part a base model plays. `required`: the method works on deltas, which are taken from the base.
            `optional`: the same, but a mergekit config may leave the base out, and then the models themselves take
            the place of their deltas. `a target`: one of the targets has a place of its own, in a recipe the first,
            in a mergekit config the one named `base_model`. `none`: all models are treated alike.
        passes: How often the method reads each tensor of every model, with the parameters that ask for the most.
    """

    base: ClassVar[BaseRole] = "required"
    passes: ClassVar[int] = 2

    @property
    def has_base(self) -> bool:
        """Whether a recipe's merge by this method looks at a base besides the targets."""
        return self.base in ("required", "optional")

    @classmethod
    def per_target(cls) -> frozenset[str]:
        """Names of the parameters that have a value for each target."""
        return frozenset(name for name, field in cls.model_fields.items() if field.annotation == PerTarget)

    def parameters(self, targets: Sequence[str]) -> dict[str, Any]:
        """The parameters as plain data, those for each target spread into tuples.

        Raises:
            RecipeError: A list has another length than there are targets, or a mapping names other targets.
        """
        plain = self.model_dump(exclude={"kind"})
        return plain | {
            key: spread(getattr(self, key), targets, f"merged.method.{key}") for key in sorted(self.per_target())
        }


def spread(value: PerTarget, targets: Sequence[str], where: str) -> tuple[float, ...]:
    """Give every target its value.

    Args:
        value: See PerTarget.
        targets: Names of the targets, in order.
        where: Which setting it is, for the errors.

    Raises:
        RecipeError: A list has another length than there are targets, or a mapping names other targets.

    >>> spread({"code": 2.0, "math": 1.0}, ["math", "code"], "merged.method.weight")
    (1.0, 2.0)
    """
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
    """The mean of the targets, each weighed by how far fine-tuning moved it from the base (FuseChat v1)."""

    kind: Literal["varm"] = "varm"
    granularity: Granularity = "matrix"


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
    base = "none"
    passes = 1
    weight: Weight = 1.0
    normalize: bool = True


class Sce(MergeMethod):
    """Select the elements that vary most, calculate weights from them, erase minority signs (FuseChat v2).

    `fuseai` selects for the weights only, as the released code does.
    """

    kind: Literal["sce"] = "sce"
    passes = 4
    select_topk: float = Field(1.0, ge=0, le=1)
    dialect: Literal["paper", "fuseai"] = "paper"


class DeltaMethod(MergeMethod):
    """The base plus a weighted sum of deltas.

    Attributes:
        weight: Factor on each delta.
        normalize: Divide by the sum of the weights that took part, element by element where signs are elected.
        rescale: Scale what is kept of each delta so that its magnitudes add up to what they did before.
        lambda_: Factor on the merged delta.
    """

    weight: Weight = 1.0
    normalize: bool = False
    rescale: bool = False
    lambda_: float = 1.0


class SparseDeltaMethod(DeltaMethod):
    """As DeltaMethod, of deltas of which only the share `density` is kept."""

    density: ShareEach = 1.0


class TaskArithmetic(DeltaMethod):
    """The base plus the weighted sum of the deltas."""

    kind: Literal["task_arithmetic"] = "task_arithmetic"


class Ties(SparseDeltaMethod):
    """Keep the largest elements of each delta, elect a sign for every element, merge what has that sign."""

    kind: Literal["ties"] = "ties"
    passes = 4
    normalize: bool = True


class DareTies(SparseDeltaMethod):
    """Drop elements of each delta at random and rescale the rest, then elect signs as TIES does."""

    kind: Literal["dare_ties"] = "dare_ties"
    rescale: bool = True


class DareLinear(SparseDeltaMethod):
    """Drop elements of each delta at random and rescale the rest, then add as task arithmetic does."""

    kind: Literal["dare_linear"] = "dare_linear"
    rescale: bool = True


class DellaMethod(SparseDeltaMethod):
    """DELLA: an element is kept with a probability between density - epsilon and density + epsilon, by its rank."""

    rescale: bool = True
    epsilon: ShareEach = 0.15


class Della(DellaMethod):
    """Drop elements of each delta at random, small ones more often, then elect signs as TIES does."""

    kind: Literal["della"] = "della"
    normalize: bool = True


class DellaLinear(DellaMethod):
    """Drop elements of each delta at random, small ones more often, then add as task arithmetic does."""

    kind: Literal["della_linear"] = "della_linear"


class BreadcrumbsMethod(SparseDeltaMethod):
    """Model breadcrumbs: the share `gamma` of each delta that is largest is dropped, then the smallest elements."""

    passes = 6
    gamma: ShareEach = 0.01


class Breadcrumbs(BreadcrumbsMethod):
    """Drop the largest and the smallest elements of each delta, then add as task arithmetic does."""

    kind: Literal["breadcrumbs"] = "breadcrumbs"


class BreadcrumbsTies(BreadcrumbsMethod):
    """Drop the largest and the smallest elements of each delta, then elect signs as TIES does."""

    kind: Literal["breadcrumbs_ties"] = "breadcrumbs_ties"


class Slerp(MergeMethod):
    """Go the share `t` of the arc from the first target to the second."""

    kind: Literal["slerp"] = "slerp"
    base = "a target"
    t: Annotated[float, REQUIRED_BY_MERGEKIT] = 0.5


class Nuslerp(MergeMethod):
    """Go along the arc between the deltas of two targets, as far as their weights say."""

    kind: Literal["nuslerp"] = "nuslerp"
    base = "optional"
    weight: Weight = 1.0
    nuslerp_flatten: bool = True
    nuslerp_row_wise: bool = False


class Multislerp(MergeMethod):
    """The weighted barycentre of the deltas on a sphere."""

    kind: Literal["multislerp"] = "multislerp"
    base = "optional"
    weight: Weight = 1.0
    normalize_weights: bool = True
    eps: float = Field(1e-8, gt=0)


class Karcher(MergeMethod):
    """The Karcher mean of the targets on a sphere."""

    kind: Literal["karcher"] = "karcher"
    base = "none"
    max_iter: int = Field(10, ge=0)
    tol: float = Field(1e-5, gt=0)


class ModelStock(MergeMethod):
    """Between the base and the mean of the targets, nearer to the mean the more the deltas point the same way."""

    kind: Literal["model_stock"] = "model_stock"
    filter_wise: bool = False


class Ram(MergeMethod):
    """Average the deltas where several targets moved an element, add the whole delta where only one did."""

    kind: Literal["ram"] = "ram"
    passes = 1
    epsilon: float = Field(1e-5, ge=0)


class RamplusTl(MergeMethod):
    """As `ram`, but what only one target moved is scaled up."""

    kind: Literal["ramplus_tl"] = "ramplus_tl"
    r: float = 0.1
    alpha: float = 0.2
    epsilon: float = Field(1e-5, ge=0)


class Nearswap(MergeMethod):
    """Move every element of the base towards the one target by at most `t`."""

    kind: Literal["nearswap"] = "nearswap"
    passes = 1
    t: float


class ArceeFusion(MergeMethod):
    """Take from the one target the elements that changed much in rows whose softmax changed much."""

    kind: Literal["arcee_fusion"] = "arcee_fusion"
    passes = 7


class Passthrough(MergeMethod):
    """One target as it is, or times `scale`."""

    kind: Literal["passthrough"] = "passthrough"
    base = "none"
    passes = 1
    scale: PerTarget = 1.0


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
