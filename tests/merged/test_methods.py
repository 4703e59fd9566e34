"""Every merge method against its float64 oracle, in blocks of any size, and what each refuses."""

import numpy as np
import pytest
from toys.merging import CASES, CLOSE, ArrayTensor, Case, merge_arrays, models, oracle_of, wide

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods import naive, sce
from fusion_ray.merged.methods.registry import Context, merge_tensor

RNG = np.random.default_rng(2)
SHAPES = [(12, 9), (33,), (1, 5)]


def check(case: Case, shape: tuple[int, ...]) -> None:
    arrays = case.models(shape)
    whole = merge_arrays(case.kind, arrays, 1 << 20, case.has_base, **case.given)
    np.testing.assert_allclose(whole, oracle_of(case, arrays), **case.close)
    for rows in (1, 4, 5):
        cut = merge_arrays(case.kind, arrays, rows, case.has_base, **case.given)
        np.testing.assert_allclose(cut, whole, **case.cut)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_method_gives_what_its_oracle_gives_however_the_tensor_is_cut(case: Case, shape: tuple[int, ...]) -> None:
    check(case, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.kind == "sce"], ids=str)
def test_sce_of_a_tensor_whose_variances_are_not_kept(
    case: Case, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sce, "_KEPT_BYTES", 0)
    check(case, shape)


@pytest.mark.parametrize("kind", ["dare_linear", "della_linear"])
def test_random_methods_keep_the_share_they_are_told(kind: str) -> None:
    base = np.zeros((200, 500), dtype=np.float32)
    target = RNG.normal(size=base.shape).astype(np.float32)
    merged = merge_arrays(kind, [base, target], density=0.3, rescale=False)
    assert abs(np.count_nonzero(merged) / merged.size - 0.3) < 4 * np.sqrt(0.3 * 0.7 / merged.size)


def test_della_keeps_large_elements_more_often() -> None:
    base = np.zeros((2000, 10), dtype=np.float32)
    target = np.tile(np.arange(1, 11, dtype=np.float32), (2000, 1))
    merged = merge_arrays("della_linear", [base, target], density=0.5, epsilon=0.4, rescale=False)
    np.testing.assert_allclose((merged != 0).mean(axis=0), np.linspace(0.1, 0.9, 10), atol=0.05)


def test_sce_dialects_differ_in_what_they_move() -> None:
    """The paper moves the selected share; the released code selects for the weights only and moves everything."""
    arrays = models((50, 40))
    moved = {d: merge_arrays("sce", arrays, select_topk=0.1, dialect=d) != arrays[0] for d in ("paper", "fuseai")}
    assert moved["paper"].mean() == pytest.approx(0.1, abs=0.01)
    assert moved["fuseai"].mean() > 0.99


def test_sce_weighs_small_deltas_like_large_ones() -> None:
    """mergekit uses equal weights where the mean squares sum to less than 1e-6; ordinary fine-tuning is smaller."""
    arrays = models((20, 10), targets=2, scale=1e-5)
    expected = naive.naive_sce(wide(arrays), 1.0, "paper")
    keep = [np.ones((20, 10))] * 2
    fallback = naive.naive_deltas(wide(arrays), keep, [0.5, 0.5], normalize=True, rescale=False, elect=True)
    assert np.abs(expected - fallback).max() > 1e-6
    np.testing.assert_allclose(merge_arrays("sce", arrays), expected, **CLOSE)


def test_sce_keeps_the_base_where_no_target_moved() -> None:
    base = models((6, 6))[0]
    np.testing.assert_array_equal(merge_arrays("sce", [base, base.copy(), base.copy()]), base)


def test_sce_cannot_select_from_one_target() -> None:
    with pytest.raises(MergeError, match="no variance to select from"):
        merge_arrays("sce", models((3, 3), targets=1), select_topk=0.1)


def test_slerp_of_opposite_tensors_goes_straight() -> None:
    array = models((4, 4))[0]
    np.testing.assert_allclose(merge_arrays("slerp", [array, -array], t=0.25), array * 0.5, rtol=1e-6)


def test_multislerp_of_points_that_cancel_out_is_refused() -> None:
    point = RNG.normal(size=(3, 3)).astype(np.float32)
    base = np.zeros_like(point)
    with pytest.raises(MergeError, match="cancel out"):
        merge_arrays("multislerp", [base, point, -point, base], weight=(1.0, 1.0, 1.0))


def test_a_rescaled_sum_averages_what_is_common_and_adds_what_is_not() -> None:
    base = np.zeros((1, 4), dtype=np.float32)
    one, other = np.eye(4, dtype=np.float32)[:2, None] * 4
    merged = {reach: merge_arrays("rescaled_sum", [base, one, other], reach=reach) for reach in ("one", "each")}
    np.testing.assert_allclose(merged["one"], (one + other) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(merged["each"], one + other, rtol=1e-6)
    for reach in ("one", "each"):
        np.testing.assert_array_equal(merge_arrays("rescaled_sum", [base, one, one], reach=reach), one)
        opposite = merge_arrays("rescaled_sum", [base, one, -one], reach=reach)
        np.testing.assert_array_equal(opposite, base)  # Not 0 / 0.


def test_a_target_that_learned_nothing_does_not_change_a_rescaled_sum() -> None:
    base, *targets = models((12, 9))
    with_it = merge_arrays("rescaled_sum", [base, *targets, base])
    np.testing.assert_array_equal(with_it, merge_arrays("rescaled_sum", [base, *targets]))


def test_model_stock_needs_two_targets() -> None:
    with pytest.raises(MergeError, match="fewer than two targets"):
        merge_arrays("model_stock", models((3, 3), targets=1))


def test_passthrough_is_the_model_itself_or_scaled() -> None:
    (array,) = models((5, 4), 0)
    np.testing.assert_array_equal(merge_arrays("passthrough", [array]), array)
    np.testing.assert_allclose(merge_arrays("passthrough", [array], scale=0.5), array / 2, rtol=0)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.kind in ("slerp", "nearswap", "arcee_fusion")], ids=str
)
def test_methods_for_two_models_refuse_three(case: Case) -> None:
    with pytest.raises(MergeError, match="takes exactly 2"):
        merge_arrays(case.kind, models((3, 3), targets=2), **case.given)


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MergeError, match=r"unknown method 'tie'.*ties"):
        merge_tensor("tie", ArrayTensor(tuple(models((2, 2)))), {}, Context("abcd"))
