"""Laws of merging, for any tensor, any targets and every method that takes deltas from a base."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from toys.merging import ArrayTensor, merge_arrays

from fusion_ray.merged.methods.blocks import gather
from fusion_ray.merged.methods.registry import Context, merge_tensor
from fusion_ray.recipe.merge_methods import METHODS

FAST = settings(max_examples=30, deadline=None)
FLOATS = st.floats(-4, 4, width=32, allow_subnormal=False)
TENSORS = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9), elements=FLOATS
)
FEW_TARGETS = {"nearswap": 1, "arcee_fusion": 1, "nuslerp": 2}
DELTA_METHODS = [kind for kind, section in METHODS.items() if section.base in ("required", "optional")]
OF_THREE_TARGETS = [kind for kind in DELTA_METHODS if kind not in FEW_TARGETS]


def usual(kind: str, **wanted: Any) -> dict[str, Any]:
    """Parameters as far as a method has them: drop half of each delta, divide by the weights, count every delta."""
    wanted = {"density": 0.5, "normalize": True, "t": 0.05} | wanted
    given = {key: value for key, value in wanted.items() if key in METHODS[kind].model_fields}
    # RAM takes a delta below its epsilon for none. DELLA's is another: how far its probabilities spread.
    return given | ({"epsilon": 1e-9} if kind.startswith("ram") else {})


def moved(pivot: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=pivot.shape) * 0.1 * seed
    return (pivot + noise).astype(np.float32)


@pytest.mark.parametrize("kind", DELTA_METHODS)
@FAST
@given(pivot=TENSORS)
def test_zero_deltas_give_the_pivot(kind: str, pivot: np.ndarray) -> None:
    targets = [pivot.copy() for _ in range(FEW_TARGETS.get(kind, 2))]
    merged = merge_arrays(kind, [pivot, *targets], 1 << 20, **usual(kind))
    np.testing.assert_array_equal(merged, pivot)


@pytest.mark.parametrize("kind", OF_THREE_TARGETS)
@FAST
@given(pivot=TENSORS, seed=st.integers(1, 50))
def test_equal_targets_merge_to_themselves(kind: str, pivot: np.ndarray, seed: int) -> None:
    target = moved(pivot, seed)
    models = [pivot, target, target.copy(), target.copy()]
    merged = merge_arrays(kind, models, 1 << 20, **usual(kind, density=1.0))
    np.testing.assert_allclose(merged, target, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("kind", OF_THREE_TARGETS)
@FAST
@given(pivot=TENSORS, order=st.permutations([1, 2, 3]))
def test_the_order_of_the_targets_does_not_matter(kind: str, pivot: np.ndarray, order: list[int]) -> None:
    targets = {j: moved(pivot, j) for j in (1, 2, 3)}
    merged = []
    for numbers in ([1, 2, 3], order):
        tensor = ArrayTensor((pivot, *(targets[j] for j in numbers)))
        context = Context(("pivot", *(f"t{j}" for j in numbers)), seed=3)
        parameters = METHODS[kind](**usual(kind)).parameters(context.targets)
        merged.append(gather(merge_tensor(kind, tensor, parameters, context), pivot.shape))
    np.testing.assert_allclose(merged[1], merged[0], rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("kind", DELTA_METHODS)
@FAST
@given(pivot=TENSORS, rows=st.integers(1, 9))
def test_blocks_cut_anywhere_give_equal_bits(kind: str, pivot: np.ndarray, rows: int) -> None:
    models = [pivot, *(moved(pivot, seed) for seed in range(1, 1 + FEW_TARGETS.get(kind, 2)))]
    whole = merge_arrays(kind, models, 1 << 20, **usual(kind))
    np.testing.assert_array_equal(merge_arrays(kind, models, rows, **usual(kind)), whole)


@FAST
@given(pivot=TENSORS, seeds=st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True))
def test_varm_lies_between_the_targets(pivot: np.ndarray, seeds: list[int]) -> None:
    targets = [moved(pivot, seed) for seed in seeds]
    merged = merge_arrays("varm", [pivot, *targets])
    assert (merged >= np.min(targets, axis=0) - 1e-6).all()
    assert (merged <= np.max(targets, axis=0) + 1e-6).all()
