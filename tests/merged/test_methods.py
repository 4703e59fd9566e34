"""Every merge method against its float64 oracle, in blocks of any size, and what each refuses."""

from typing import Any

import numpy as np
import pytest

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods import naive, sce
from fusion_ray.merged.methods.blocks import ArrayTensor, gather
from fusion_ray.merged.methods.registry import merge_tensor
from fusion_ray.merged.methods.sparsify import key_of, uniform
from fusion_ray.recipe.merge_methods import METHODS

RNG = np.random.default_rng(2)
SHAPES = [(12, 9), (33,), (1, 5)]
# Half a unit in the last place of float32, of the result and of the deltas, which are below 0.125.
CLOSE = {"rtol": 1.2e-7, "atol": 0.125 * 2**-24}


def models(shape: tuple[int, ...], targets: int = 3, scale: float = 1e-2) -> list[np.ndarray]:
    rng = np.random.default_rng([2, targets, *shape])
    pivot = rng.normal(size=shape).astype(np.float32)
    return [pivot, *((pivot + rng.normal(size=shape) * scale * (j + 1)).astype(np.float32) for j in range(targets))]


def merge(method: str, arrays: list[np.ndarray], rows: int = 4, based: bool = True, **given: Any) -> np.ndarray:
    names = ["pivot", *(f"t{j}" for j in range(1, len(arrays)))]
    targets = names[1:] if based else names
    parameters = METHODS[method](**given).parameters(targets) | {"based": based}
    merged = merge_tensor(method, ArrayTensor(tuple(arrays), rows), parameters, seed=7, names=names)
    return gather(merged, arrays[0].shape)


def check(method: str, arrays: list[np.ndarray], expected: np.ndarray, based: bool = True, **given: Any) -> None:
    whole = merge(method, arrays, 1 << 20, based, **given)
    np.testing.assert_allclose(whole, expected, **CLOSE)
    for rows in (1, 5):
        np.testing.assert_array_equal(merge(method, arrays, rows, based, **given), whole)


def wide(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


def deltas(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [target - arrays[0] for target in arrays[1:]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_task_arithmetic(shape: tuple[int, ...], normalize: bool) -> None:
    arrays, weights = models(shape), [0.5, 1.0, -0.25]
    keep = [np.ones(shape)] * 3
    expected = naive.naive_deltas(
        wide(arrays), keep, weights, normalize=normalize, rescale=False, elect=False, lambda_=0.7
    )
    check("task_arithmetic", arrays, expected, weight=tuple(weights), normalize=normalize, lambda_=0.7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.2, 0.77, 1.0])
@pytest.mark.parametrize("rescale", [True, False])
def test_ties(shape: tuple[int, ...], density: float, rescale: bool) -> None:
    arrays, weights = models(shape), [0.5, 1.0, 0.25]
    keep = [naive.naive_keep_largest(delta, density) for delta in deltas(arrays)]
    expected = naive.naive_deltas(wide(arrays), keep, weights, normalize=True, rescale=rescale, elect=True)
    check("ties", arrays, expected, weight=tuple(weights), density=density, rescale=rescale)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.3), (0.01, 0.0), (1.0, 0.1), (0.0, 0.5)])
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs(shape: tuple[int, ...], density: float, gamma: float, method: str) -> None:
    arrays, weights = models(shape), [0.5, 1.0, 0.25]
    keep = [naive.naive_keep_without_outliers(delta, density, gamma) for delta in deltas(arrays)]
    elect = method.endswith("ties")
    expected = naive.naive_deltas(wide(arrays), keep, weights, normalize=False, rescale=False, elect=elect)
    check(method, arrays, expected, weight=tuple(weights), density=density, gamma=gamma)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "della", "della_linear"])
def test_random_methods_keep_what_their_draws_say(shape: tuple[int, ...], method: str) -> None:
    arrays, weights, density, epsilon = models(shape), [0.5, 1.0, 0.25], 0.6, 0.3
    keep = []
    for j, delta in enumerate(deltas(arrays), start=1):
        draws = uniform(key_of(7, "tensor", f"t{j}"), 0, delta.size).reshape(shape)
        bound = naive.naive_rank_probability(delta, density, epsilon) if "della" in method else density
        keep.append(draws < bound)
    expected = naive.naive_deltas(
        wide(arrays), keep, weights, normalize=method == "della", rescale=True, elect=method in ("dare_ties", "della")
    )
    extra = {"epsilon": epsilon} if "della" in method else {}
    check(method, arrays, expected, weight=tuple(weights), density=density, **extra)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_random_methods_keep_the_share_they_are_told(method: str) -> None:
    pivot = np.zeros((200, 500), dtype=np.float32)
    target = RNG.normal(size=pivot.shape).astype(np.float32)
    merged = merge(method, [pivot, target], density=0.3, rescale=False)
    assert abs(np.count_nonzero(merged) / merged.size - 0.3) < 4 * np.sqrt(0.3 * 0.7 / merged.size)


def test_della_keeps_large_elements_more_often() -> None:
    pivot = np.zeros((2000, 10), dtype=np.float32)
    target = np.tile(np.arange(1, 11, dtype=np.float32), (2000, 1))
    merged = merge("della_linear", [pivot, target], density=0.5, epsilon=0.4, rescale=False)
    np.testing.assert_allclose((merged != 0).mean(axis=0), np.linspace(0.1, 0.9, 10), atol=0.05)


@pytest.mark.parametrize("kept_bytes", [0, 32 << 20])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tau", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dialect", ["paper", "fuseai"])
def test_sce(
    shape: tuple[int, ...], tau: float, dialect: str, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sce, "_KEPT_BYTES", kept_bytes)
    arrays = models(shape)
    check("sce", arrays, naive.naive_sce(wide(arrays), tau, dialect), select_topk=tau, dialect=dialect)


def test_sce_dialects_differ_in_what_they_move() -> None:
    """The paper moves the selected share; the released code selects for the weights only and moves everything."""
    arrays = models((50, 40))
    moved = {d: merge("sce", arrays, select_topk=0.1, dialect=d) != arrays[0] for d in ("paper", "fuseai")}
    assert moved["paper"].mean() == pytest.approx(0.1, abs=0.01)
    assert moved["fuseai"].mean() > 0.99


def test_sce_weighs_small_deltas_like_large_ones() -> None:
    """mergekit uses equal weights where the mean squares sum to less than 1e-6; ordinary fine-tuning is smaller."""
    arrays = models((20, 10), targets=2, scale=1e-5)
    expected = naive.naive_sce(wide(arrays), 1.0, "paper")
    uniform_weights = [0.5, 0.5]
    keep = [np.ones((20, 10))] * 2
    fallback = naive.naive_deltas(wide(arrays), keep, uniform_weights, normalize=True, rescale=False, elect=True)
    assert np.abs(expected - fallback).max() > 1e-6
    np.testing.assert_allclose(merge("sce", arrays), expected, **CLOSE)


def test_sce_keeps_the_pivot_where_no_target_moved() -> None:
    pivot = models((6, 6))[0]
    np.testing.assert_array_equal(merge("sce", [pivot, pivot.copy(), pivot.copy()]), pivot)


def test_sce_cannot_select_from_one_target() -> None:
    with pytest.raises(MergeError, match="no variance to select from"):
        merge("sce", models((3, 3), targets=1), select_topk=0.1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_slerp(shape: tuple[int, ...], scale: float) -> None:
    arrays = models(shape, 1, scale)
    check("slerp", arrays, naive.naive_slerp(*wide(arrays), 0.3), t=0.3)


def test_slerp_of_opposite_tensors_goes_straight() -> None:
    array = models((4, 4))[0]
    np.testing.assert_allclose(merge("slerp", [array, -array], t=0.25), array * 0.5, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("flatten", "row_wise"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("based", [True, False])
def test_nuslerp(shape: tuple[int, ...], flatten: bool, row_wise: bool, based: bool) -> None:
    arrays = models(shape, 2, 0.3)
    base = wide(arrays)[0] if based else np.zeros(shape)
    axis = None if flatten else 0 if row_wise else len(shape) - 1
    expected = naive.naive_nuslerp(wide(arrays)[1:], 0.25, base, axis)
    given = {"weight": (3.0, 1.0), "nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise}
    members = arrays if based else arrays[1:]
    whole = merge("nuslerp", members, 1 << 20, based, **given)
    np.testing.assert_allclose(whole, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(merge("nuslerp", members, 1, based, **given), whole, rtol=2e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("based", [True, False])
def test_multislerp(shape: tuple[int, ...], based: bool) -> None:
    arrays = models(shape, 3, 0.3)
    members = arrays if based else arrays[1:]
    base = wide(arrays)[0] if based else np.zeros(shape)
    points = [target - base for target in wide(arrays)[1:]]
    expected = base + naive.naive_multislerp(points, [0.2, 0.3, 0.5])
    np.testing.assert_allclose(merge("multislerp", members, 4, based, weight=(2, 3, 5)), expected, rtol=1e-6, atol=1e-7)


def test_multislerp_of_points_that_cancel_out_is_refused() -> None:
    point = RNG.normal(size=(3, 3)).astype(np.float32)
    pivot = np.zeros_like(point)
    with pytest.raises(MergeError, match="cancel out"):
        merge("multislerp", [pivot, point, -point, pivot], weight=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("shape", SHAPES)
def test_karcher(shape: tuple[int, ...]) -> None:
    arrays = models(shape, 3, 0.5)
    expected = naive.naive_karcher(wide(arrays), 10, 1e-5)
    np.testing.assert_allclose(merge("karcher", arrays, 4, False), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("reach", ["one", "each"])
def test_rescaled_sum(shape: tuple[int, ...], targets: int, reach: str) -> None:
    arrays = models(shape, targets)
    check("rescaled_sum", arrays, naive.naive_rescaled_sum(wide(arrays), reach), reach=reach)


def test_a_rescaled_sum_averages_what_is_common_and_adds_what_is_not() -> None:
    base = np.zeros((1, 4), dtype=np.float32)
    one, other = np.eye(4, dtype=np.float32)[:2, None] * 4
    np.testing.assert_allclose(merge("rescaled_sum", [base, one, other]), (one + other) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(merge("rescaled_sum", [base, one, other], reach="each"), one + other, rtol=1e-6)
    for reach in ("one", "each"):
        np.testing.assert_array_equal(merge("rescaled_sum", [base, one, one], reach=reach), one)
        np.testing.assert_array_equal(merge("rescaled_sum", [base, one, -one], reach=reach), base)  # Not 0 / 0.


def test_a_target_that_learned_nothing_does_not_change_a_rescaled_sum() -> None:
    base, *targets = models((12, 9))
    np.testing.assert_array_equal(
        merge("rescaled_sum", [base, *targets, base]), merge("rescaled_sum", [base, *targets])
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("filter_wise", [True, False])
def test_model_stock(shape: tuple[int, ...], filter_wise: bool) -> None:
    pivot, *targets = models(shape, 3, 0.3)
    common = RNG.normal(size=shape).astype(np.float32)
    arrays = [pivot, *(target + common for target in targets)]
    expected = naive.naive_model_stock(wide(arrays), filter_wise)
    merged = merge("model_stock", arrays, filter_wise=filter_wise)
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-6)


def test_model_stock_needs_two_targets() -> None:
    with pytest.raises(MergeError, match="fewer than two targets"):
        merge("model_stock", models((3, 3), targets=1))


@pytest.mark.parametrize("shape", SHAPES)
def test_ram_and_ram_plus(shape: tuple[int, ...]) -> None:
    arrays = models(shape)
    check("ram", arrays, naive.naive_ram(wide(arrays), 0.01), epsilon=0.01)
    expected = naive.naive_ram(wide(arrays), 0.01, 0.5, 0.4)
    check("ramplus_tl", arrays, expected, r=0.5, alpha=0.4, epsilon=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_nearswap(shape: tuple[int, ...]) -> None:
    arrays = models(shape, 1)
    check("nearswap", arrays, naive.naive_nearswap(*wide(arrays), 0.005), t=0.005)


@pytest.mark.parametrize("shape", SHAPES)
def test_arcee_fusion(shape: tuple[int, ...]) -> None:
    arrays = models(shape, 1, 0.5)
    check("arcee_fusion", arrays, naive.naive_arcee_fusion(*wide(arrays)))


def test_passthrough_is_the_model_itself_or_scaled() -> None:
    (array,) = models((5, 4), 0)
    np.testing.assert_array_equal(merge("passthrough", [array], based=False), array)
    np.testing.assert_allclose(merge("passthrough", [array], based=False, scale=0.5), array / 2, rtol=0)


@pytest.mark.parametrize("method", ["slerp", "nearswap", "arcee_fusion"])
def test_methods_for_two_models_refuse_three(method: str) -> None:
    given = {"t": 0.5} if method != "arcee_fusion" else {}
    with pytest.raises(MergeError, match="takes exactly 2"):
        merge(method, models((3, 3), targets=2), **given)


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MergeError, match=r"unknown method 'tie'.*ties"):
        merge_tensor("tie", ArrayTensor(tuple(models((2, 2)))), {}, seed=0, names=["a", "b", "c", "d"])


def test_every_method_of_a_recipe_can_be_computed() -> None:
    from fusion_ray.merged.methods.registry import CALLS

    assert set(METHODS) == set(CALLS)
