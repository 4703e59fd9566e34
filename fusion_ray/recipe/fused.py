"""The recipe's section `fused`: how distributions are aligned and chosen. Imports neither torch nor ray."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fusion_ray.recipe.section import PLACEMENT, Section, Share, choice_of


class BytesAlign(Section):
    """Exact alignment by byte offsets, in linear time (ours)."""

    kind: Literal["bytes"] = "bytes"
    inner_tail: Literal["unigram", "none"] = "unigram"


class DtwAlign(Section):
    """Dynamic time warping and a vocabulary map, as FuseLLM (em, mined) and FuseChat (ms) publish them."""

    kind: Literal["em", "mined", "ms"]


Align = Annotated[Annotated[BytesAlign | DtwAlign, Field(discriminator="kind")], choice_of("bytes")]


def _check_trust(value: Any) -> Any:
    """One message, where pydantic has one for each kind of value that would do."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "fitted" or (number and 0 < value <= 1):
        return value
    raise ValueError(f"expected fitted, or a number above 0 and at most 1, got {value!r:.80}")


class MinCE(Section):
    """Take the model with the lowest nll of the answer; a tie goes to the pivot.

    Attributes:
        level: Choose by example, or by group of aligned tokens.
        unit: Compare bits per byte, or nats per each model's own token.
        trust: How often a chosen source is right where it and the pivot disagree. 1 believes it everywhere; `fitted`
            finds the value for each source under which the chats are most probable.
    """

    kind: Literal["mince"] = "mince"
    level: Literal["sequence", "token"] = "sequence"
    unit: Literal["byte", "token"] = "byte"
    trust: Annotated[Literal["fitted"] | float, BeforeValidator(_check_trust)] = "fitted"


class AvgCE(Section):
    """Mix the models with weights softmax(-bits_per_byte / tau)."""

    kind: Literal["avgce"] = "avgce"
    tau: float = Field(1.0, gt=0)
    unit: Literal["byte", "token"] = "byte"


Choose = Annotated[Annotated[MinCE | AvgCE, Field(discriminator="kind")], choice_of("mince")]


class Fused(Section):
    """How distributions are aligned and chosen."""

    mode: Literal["pairwise", "multi"] = "pairwise"
    align: Align = BytesAlign()
    choose: Choose = MinCE()
    pivot_wins: Literal["distil", "gold"] = "gold"
    top_k: int | None = Field(None, ge=1, le=1024)
    cpus_per_task: Annotated[float, PLACEMENT] = Field(1, gt=0)
    max_rejected: Annotated[Share, PLACEMENT] = 0.01
