"""Laws of merging, for any tensor and any targets."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fusion_ray.merged.methods.blocks import ArrayTensor, gather
from fusion_ray.merged.methods.registry import merge_tensor
from fusion_ray.recipe.merge_methods import METHODS

FAST = settings(max_examples=30, deadline=None)
FLOATS = st.floats(-4, 4, width=32, allow_subnormal=False)
TENSORS = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9), elements=FLOATS
)
# Methods that mix any number of targets with a pivot, with settings under which the laws hold.
DELTA_METHODS: dict[str, dict[str, Any]] = {
    "varm": {},
    "rescaled_sum": {},
    "sce": {},
    "ties": {"density": 0.5},
    "breadcrumbs_ties": {"density": 0.5, "normalize": True},
    "task_arithmetic": {"normalize": True},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5},
    "ram": {},
    "model_stock": {},
    "multislerp": {},
}


def merge(
    method: str, models: list[np.ndarray], rows: int = 1 << 20, names: tuple[str, ...] = (), **given_: Any
) -> np.ndarray:
    names = names or ("pivot", *(f"t{j}" for j in range(1, len(models))))
    parameters = METHODS[method](**given_).parameters(names[1:])
    merged = merge_tensor(method, ArrayTensor(tuple(models), rows), parameters, seed=3, names=names)
    return gather(merged, models[0].shape)


def moved(pivot: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=pivot.shape) * 0.1 * seed
    return (pivot + noise).astype(np.float32)


@pytest.mark.parametrize("method", DELTA_METHODS)
@FAST
@given(pivot=TENSORS)
def test_zero_deltas_give_the_pivot(method: str, pivot: np.ndarray) -> None:
    merged = merge(method, [pivot, pivot.copy(), pivot.copy()], **DELTA_METHODS[method])
    np.testing.assert_array_equal(merged, pivot)


@pytest.mark.parametrize("method", ["varm", "sce", "task_arithmetic", "multislerp", "ties"])
@FAST
@given(pivot=TENSORS, seed=st.integers(1, 50))
def test_equal_targets_merge_to_themselves(method: str, pivot: np.ndarray, seed: int) -> None:
    target = moved(pivot, seed)
    settings_ = {k: v for k, v in DELTA_METHODS[method].items() if k != "density"}
    merged = merge(method, [pivot, target, target.copy(), target.copy()], **settings_)
    np.testing.assert_allclose(merged, target, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize(
    "method", ["varm", "sce", "ties", "breadcrumbs_ties", "dare_ties", "della", "ram", "multislerp"]
)
@FAST
@given(pivot=TENSORS, order=st.permutations([1, 2, 3]))
def test_the_order_of_the_targets_does_not_matter(method: str, pivot: np.ndarray, order: list[int]) -> None:
    targets = {j: moved(pivot, j) for j in (1, 2, 3)}
    first = merge(method, [pivot, *targets.values()], **DELTA_METHODS[method])
    names = ("pivot", *(f"t{j}" for j in order))
    second = merge(method, [pivot, *(targets[j] for j in order)], names=names, **DELTA_METHODS[method])
    np.testing.assert_allclose(second, first, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("method", DELTA_METHODS)
@FAST
@given(pivot=TENSORS, rows=st.integers(1, 9))
def test_blocks_cut_anywhere_give_equal_bits(method: str, pivot: np.ndarray, rows: int) -> None:
    models = [pivot, moved(pivot, 1), moved(pivot, 2)]
    whole = merge(method, models, **DELTA_METHODS[method])
    np.testing.assert_array_equal(merge(method, models, rows, **DELTA_METHODS[method]), whole)


@FAST
@given(pivot=TENSORS, seeds=st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True))
def test_varm_lies_between_the_targets(pivot: np.ndarray, seeds: list[int]) -> None:
    targets = [moved(pivot, seed) for seed in seeds]
    merged = merge("varm", [pivot, *targets])
    assert (merged >= np.min(targets, axis=0) - 1e-6).all()
    assert (merged <= np.max(targets, axis=0) + 1e-6).all()
