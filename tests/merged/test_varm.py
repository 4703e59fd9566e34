"""VaRM and linear against their float64 oracles, and the traps of the released code."""

from dataclasses import replace

import numpy as np
import pytest
from toys.merging import ArrayTensor, context_of, merge_blocked, wide

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods import naive
from fusion_ray.merged.methods.blocks import MergedTensor, gather
from fusion_ray.merged.methods.sums import delta_squares
from fusion_ray.merged.methods.varm import group_of, merge_varm, weigh_groups
from fusion_ray.recipe.merge_methods import Varm

RNG = np.random.default_rng(0)
FLOAT32 = {"rtol": 1e-7, "atol": 0}  # Half a unit in the last place of float32 is 6e-8.


def models(*shape: int, targets: int = 3, scale: float = 1e-3) -> list[np.ndarray]:
    rng = np.random.default_rng([1, targets, *shape])
    pivot = rng.normal(size=shape).astype(np.float32)
    moved = [(pivot + rng.normal(size=shape) * scale * (j + 1)).astype(np.float32) for j in range(targets)]
    return [pivot, *moved]


def varm(*arrays: np.ndarray) -> MergedTensor:
    return merge_blocked("varm", ArrayTensor(arrays))


def merge_as_is(arrays: list[np.ndarray]) -> np.ndarray:
    return gather(varm(*arrays), arrays[0].shape)


@pytest.mark.parametrize("shape", [(6, 8), (5,), (), (2, 3, 4), (0, 3), (1, 1)])
def test_varm_of_a_matrix_is_the_papers(shape: tuple[int, ...]) -> None:
    arrays = models(*shape)
    expected = naive.naive_varm(wide(arrays)) if np.prod(shape) else arrays[0]
    np.testing.assert_allclose(merge_as_is(arrays), expected, **FLOAT32)


def test_varm_weights_are_shares_of_mean_squares_without_softmax() -> None:
    pivot = np.zeros((2, 2), dtype=np.float32)
    merged = varm(pivot, pivot + 1, pivot + 3)
    assert merged.weights == pytest.approx((0.1, 0.9), abs=0)


def test_each_target_is_measured_on_its_own_weights() -> None:
    """The released code reads one analysis file for every model, which makes all weights equal."""
    arrays = models(4, 4)
    weights = varm(*arrays).weights
    assert weights is not None
    assert len(set(weights)) == 3
    assert weights[2] > weights[1] > weights[0]


def test_every_named_tensor_is_merged_also_embeddings_and_norms() -> None:
    """The released code's empty exclude pattern matches every tensor, and target 0 comes out unchanged."""
    tensors = {name: models(4, 4) for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")}
    for arrays in tensors.values():
        merged = merge_as_is(arrays)
        assert not np.array_equal(merged, arrays[1])
        assert not np.array_equal(merged, arrays[0])


def test_an_element_that_no_target_moved_keeps_the_pivots_value() -> None:
    """The released code writes 0 there; the paper's element granularity scored 1.00 with it."""
    arrays = models(3, 4)
    for target in arrays[1:]:
        target[1] = arrays[0][1]
    merged = gather(merge_blocked("varm", ArrayTensor(tuple(arrays)), granularity="element"), (3, 4))
    np.testing.assert_array_equal(merged[1], arrays[0][1])
    np.testing.assert_allclose(merged, naive.naive_varm(wide(arrays), "element"), **FLOAT32)


def test_one_target_that_did_not_move_has_no_weight_and_the_others_keep_theirs() -> None:
    """The released code goes back to equal weights as soon as one target's delta is 0."""
    pivot, first, _, third = models(4, 4)
    weights = varm(pivot, first, pivot.copy(), third).weights
    without = varm(pivot, first, third).weights
    assert weights is not None and without is not None
    assert weights == (without[0], 0.0, without[1])


def test_a_tensor_that_no_target_moved_is_the_pivots_bit_for_bit() -> None:
    pivot = RNG.normal(size=(4, 4)).astype(np.float32)
    merged = varm(pivot, pivot.copy(), pivot.copy())
    assert merged.weights is None
    np.testing.assert_array_equal(gather(merged, (4, 4)), pivot)


def test_tiny_deltas_are_weighed_like_large_ones() -> None:
    """mergekit's SCE falls back to equal weights where mean squares sum to less than 1e-6; fine-tuning does."""
    pivot = np.zeros((2, 2), dtype=np.float32)
    merged = varm(pivot, pivot + np.float32(1e-20), pivot + np.float32(3e-20))
    assert merged.weights == pytest.approx((0.1, 0.9), rel=1e-6)


def test_one_target_comes_out_as_it_is() -> None:
    pivot, target = models(5, 7, targets=1)
    np.testing.assert_array_equal(merge_as_is([pivot, target]), target)


@pytest.mark.parametrize(
    ("granularity", "groups"),
    [
        ("model", ["", "", "", "", ""]),
        ("layer", ["model.embed_tokens", "model.layers.0", "model.layers.0", "model.layers.0", "model.layers.11"]),
        (
            "module",
            ["model.embed_tokens", "model.layers.0.self_attn", "model.layers.0.self_attn",
             "model.layers.0.input_layernorm", "model.layers.11.mlp"],
        ),
    ],
)  # fmt: skip
def test_granularity_groups_tensors_by_their_place(granularity: str, groups: list[str]) -> None:
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "model.layers.0.input_layernorm.weight",
        "model.layers.11.mlp.up_proj.weight",
    ]
    assert [group_of(name, granularity) for name in names] == groups  # type: ignore[arg-type]


@pytest.mark.parametrize("granularity", ["model", "layer", "module", "matrix"])
def test_grouped_varm_is_the_oracles(granularity: str) -> None:
    shapes = {
        "model.embed_tokens.weight": (5, 4),
        "model.layers.0.self_attn.q_proj.weight": (4, 4),
        "model.layers.0.self_attn.o_proj.weight": (4, 4),
        "model.layers.0.mlp.up_proj.weight": (6, 4),
        "model.layers.1.mlp.up_proj.weight": (6, 4),
        "model.norm.weight": (4,),
    }
    tensors = {name: models(*shape) for name, shape in shapes.items()}
    squares = {name: delta_squares(ArrayTensor(tuple(arrays))) for name, arrays in tensors.items()}
    weights = weigh_groups(squares, granularity)  # type: ignore[arg-type]
    groups = {name: group_of(name, granularity) for name in tensors}  # type: ignore[arg-type]
    expected = naive.naive_varm_grouped({name: wide(arrays) for name, arrays in tensors.items()}, groups)
    for name, arrays in tensors.items():
        context = replace(context_of(len(arrays)), weights=weights[name].tolist())
        merged = merge_varm(ArrayTensor(tuple(arrays)), Varm(granularity=granularity), context)  # type: ignore[arg-type]
        np.testing.assert_allclose(gather(merged, shapes[name]), expected[name], **FLOAT32)


def test_a_tensor_of_a_group_that_no_target_moved_is_the_pivots_bit_for_bit() -> None:
    arrays = models(4, 4)
    context = replace(context_of(len(arrays)), weights=[])
    merged = merge_varm(ArrayTensor(tuple(arrays)), Varm(granularity="layer"), context)
    assert merged.weights is None
    np.testing.assert_array_equal(gather(merged, (4, 4)), arrays[0])


@pytest.mark.parametrize("normalize", [True, False])
def test_linear_is_the_weighted_mean(normalize: bool) -> None:
    arrays = models(5, 6)[1:]
    merged = merge_blocked("linear", ArrayTensor(tuple(arrays)), weight=(0.5, 2.0, 1.0), normalize=normalize)
    expected = naive.naive_linear(wide(arrays), [0.5, 2.0, 1.0], normalize)
    np.testing.assert_allclose(gather(merged, (5, 6)), expected, **FLOAT32)


def test_weights_that_sum_to_zero_are_refused() -> None:
    with pytest.raises(MergeError, match="sum to 0"):
        merge_blocked("linear", ArrayTensor(tuple(models(2, 2)[1:])), weight=(1.0, -2.0, 1.0))


def test_squared_deltas_add_up_to_the_same_bits_however_the_tensor_is_cut() -> None:
    arrays = tuple(models(37, 11))
    whole = delta_squares(ArrayTensor(arrays))
    for rows in (1, 5, 36):
        np.testing.assert_array_equal(delta_squares(ArrayTensor(arrays, rows)), whole)
