"""Cases of every merge method: settings under which it is compared with its oracle in naive.py."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fusion_ray.merged.methods import naive
from fusion_ray.merged.methods.blocks import Block, BlockedTensor, MergedTensor, as_rows, gather
from fusion_ray.merged.methods.draws import key_of, uniform
from fusion_ray.merged.methods.registry import Context, merge_tensor
from fusion_ray.recipe.merge_methods import METHODS


@dataclass(frozen=True)
class ArrayTensor:
    """A tensor that is in memory: models_M are M float32 arrays of one shape, read in blocks of `block_rows` rows."""

    models_M: tuple[np.ndarray, ...]
    block_rows: int = 1 << 30
    name: str = "tensor"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of each array."""
        return self.models_M[0].shape

    @property
    def n_models(self) -> int:
        """Number of arrays."""
        return len(self.models_M)

    def blocks(self) -> Iterator[Block]:
        """The blocks in order."""
        rows, columns = as_rows(self.shape)
        values_MRC = np.stack([model.reshape(rows, columns).astype(np.float32) for model in self.models_M])
        for start in range(0, rows, self.block_rows):
            yield Block(start, values_MRC[:, start : start + self.block_rows])


SEED = 7
# Half a unit in the last place of float32, of the result and of the deltas, which are below 0.125.
CLOSE = {"rtol": 1.2e-7, "atol": 0.125 * 2**-24}
# Of methods that find their weights from inner products.
CLOSE_BY_PRODUCTS = {"rtol": 1e-6, "atol": 1e-7}


class Case(NamedTuple):
    """One method with its parameters, and the models that it merges.

    Attributes:
        kind: Name of the method.
        given: Its parameters.
        targets: How many models there are besides model 0.
        scale: How far the first of them moved from model 0; the others moved further.
        common: How far all of them moved together.
        has_base: Whether model 0 is a base; of methods that know no base it is one more target.
        close: How near the result must be to the oracle's.
        cut: How near results of other blocks must be to each other.
    """

    kind: str
    given: dict[str, Any]
    targets: int = 3
    scale: float = 1e-2
    common: float = 0.0
    has_base: bool = True
    close: dict[str, float] = CLOSE
    cut: dict[str, float] = {"rtol": 0}  # noqa: RUF012

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.given.items())
        return f"{self.kind}({settings}), {self.targets} targets, has_base={self.has_base}"

    def models(self, shape: tuple[int, ...]) -> list[np.ndarray]:
        """The arrays to merge; without a base model 0 is left out where the method could have one."""
        arrays = models(shape, self.targets, self.scale)
        shift = np.random.default_rng(3).normal(size=shape) * self.common
        moved = [arrays[0], *((array + shift).astype(np.float32) for array in arrays[1:])]
        return moved[1:] if METHODS[self.kind].base == "optional" and not self.has_base else moved


_WEIGHTS = {"weight": (0.5, 1.0, 0.25)}
_PRODUCTS: dict[str, Any] = {"close": CLOSE_BY_PRODUCTS}
_ALONE: dict[str, Any] = {"has_base": False}
_DRAWN = _WEIGHTS | {"density": 0.6}

CASES = [
    *(Case("varm", {"granularity": granularity}) for granularity in ("matrix", "element")),
    *(Case("rescaled_sum", {"reach": reach}, targets) for reach in ("one", "each") for targets in (1, 3)),
    *(Case("linear", {"weight": (0.5, 2.0, 1.0, 0.0), "normalize": n}, **_ALONE) for n in (True, False)),
    *(
        Case("sce", {"select_topk": tau, "dialect": dialect})
        for tau in (0.0, 0.1, 0.5, 1.0)
        for dialect in ("paper", "fuseai")
    ),
    *(
        Case("task_arithmetic", {"weight": (0.5, 1.0, -0.25), "normalize": n, "rescale": r, "lambda_": 0.7})
        for n in (True, False)
        for r in (True, False)
    ),
    *(
        Case("ties", _WEIGHTS | {"density": density, "rescale": rescale})
        for density in (0.0, 1e-9, 0.2, 0.77, 1.0)
        for rescale in (True, False)
    ),
    *(
        Case(kind, _WEIGHTS | {"density": density, "gamma": gamma})
        for kind in ("breadcrumbs", "breadcrumbs_ties")
        for density, gamma in ((0.5, 0.1), (0.9, 0.3), (0.01, 0.0), (1.0, 0.1), (0.0, 0.5))
    ),
    *(Case(kind, _DRAWN | {"rescale": True}) for kind in ("breadcrumbs", "breadcrumbs_ties")),
    *(Case(kind, _DRAWN) for kind in ("dare_ties", "dare_linear")),
    *(Case(kind, _DRAWN | {"epsilon": 0.3}) for kind in ("della", "della_linear")),
    *(Case("slerp", {"t": 0.3}, 1, scale, **_ALONE) for scale in (1e-3, 1.0)),
    *(
        Case(
            "nuslerp",
            {"weight": (3.0, 1.0), "nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise},
            2, 0.3, has_base=has_base, close=CLOSE_BY_PRODUCTS, cut={"rtol": 2e-7},
        )
        for flatten, row_wise in ((True, False), (False, False), (False, True))
        for has_base in (True, False)
    ),
    *(Case("multislerp", {"weight": (2, 3, 5)}, 3, 0.3, has_base=has_base, **_PRODUCTS) for has_base in (True, False)),
    Case("karcher", {}, scale=0.5, **_ALONE, **_PRODUCTS),
    *(
        Case("model_stock", {"filter_wise": f}, scale=0.3, common=1.0, close={"rtol": 1e-6, "atol": 1e-6})
        for f in (True, False)
    ),
    Case("ram", {"epsilon": 0.01}),
    Case("ramplus_tl", {"r": 0.5, "alpha": 0.4, "epsilon": 0.01}),
    Case("nearswap", {"t": 0.005}, 1),
    Case("arcee_fusion", {}, 1, 0.5),
    *(Case("passthrough", {"scale": scale}, 0, **_ALONE) for scale in (1.0, 0.5)),
]  # fmt: skip


def models(shape: tuple[int, ...], targets: int = 3, scale: float = 1e-2) -> list[np.ndarray]:
    """A model's tensor and those of targets that moved away from it, each further than the one before."""
    rng = np.random.default_rng([2, targets, *shape])
    base = rng.normal(size=shape).astype(np.float32)
    return [base, *((base + rng.normal(size=shape) * scale * (j + 1)).astype(np.float32) for j in range(targets))]


def context_of(count: int, has_base: bool = True, seed: int = SEED) -> Context:
    """The context of so many models, named base, t1, t2, ..."""
    return Context(("base", *(f"t{j}" for j in range(1, count))), has_base, seed)


def merge_arrays(
    kind: str, arrays: list[np.ndarray], rows: int = 4, has_base: bool | None = None, **given: Any
) -> np.ndarray:
    """Merge arrays by a method, in blocks of some rows."""
    return gather(merge_blocked(kind, ArrayTensor(tuple(arrays), rows), has_base, **given), arrays[0].shape)


def merge_blocked(kind: str, tensor: BlockedTensor, has_base: bool | None = None, **given: Any) -> MergedTensor:
    """Merge a tensor by a method; with a base, unless it is said otherwise or the method knows none."""
    section = METHODS[kind](**given)
    context = context_of(tensor.n_models, section.has_base if has_base is None else has_base)
    return merge_tensor(kind, tensor, section.parameters(context.targets), context)


def oracle_of(case: Case, arrays: list[np.ndarray]) -> np.ndarray:
    """What naive.py says of a case."""
    oracle = getattr(naive, f"naive_{case.kind}")
    context = context_of(len(arrays), case.has_base)
    given = METHODS[case.kind](**case.given).parameters(context.targets)
    asked = inspect.signature(oracle).parameters
    if "draws_J" in asked:
        keys = [key_of(SEED, "tensor", target) for target in context.targets]
        given["draws_J"] = [uniform(key, 0, arrays[0].size).reshape(arrays[0].shape) for key in keys]
    if "has_base" in asked:
        given["has_base"] = case.has_base
    return oracle(wide(arrays), **given)


def wide(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The arrays in float64."""
    return [array.astype(np.float64) for array in arrays]
