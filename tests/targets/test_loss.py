"""The chunked fusion loss against the dense float64 oracle: values and gradients."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusion_ray.targets.loss import fusion_loss
from fusion_ray.targets.naive_loss import naive_fusion_loss
from fusion_ray.targets.soft_target import SoftTarget, gold_target, soft_target

N, D, V, K = 23, 16, 101, 5
TOLERANCE = 1e-5  # Relative, float32 against float64.


def draw_target(seed: int = 0, tail: str = "bucket", temperature: float = 1.0, lambda_: float = 0.3) -> SoftTarget:
    """Top-k of random distributions with gaps, gold-only rows, and gold inside and outside the kept tokens."""
    generator = torch.Generator().manual_seed(seed)
    logprobs_NV = torch.log_softmax(3 * torch.randn(N, V, generator=generator), dim=1)
    logprobs_NK, ids_NK = logprobs_NV.topk(K, dim=1)
    ids_NK[1, 3:] = -1
    ids_NK[2, :] = -1
    chosen_N = torch.randint(0, 3, (N,), generator=generator)
    chosen_N[5] = -1
    gold_N = torch.where(torch.arange(N) % 2 == 0, ids_NK[:, 1].clamp(min=0), torch.arange(N) % V)
    return soft_target(gold_N, ids_NK, logprobs_NK, chosen_N, lambda_=lambda_, tail=tail, temperature=temperature)


def draw_inputs(seed: int = 1, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = scale * torch.randn(N, D, generator=generator)
    head_VD = torch.randn(V, D, generator=generator) / 2
    bias_V = torch.randn(V, generator=generator)
    return hidden_ND.requires_grad_(), head_VD.requires_grad_(), bias_V.requires_grad_()


def relative_error(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    ours, oracle = ours.detach().double(), oracle.detach().double()
    return float((ours - oracle).norm() / oracle.norm())


@pytest.mark.parametrize("bias_and_cap", [False, True])
@pytest.mark.parametrize(
    "divergence, tail", list(itertools.product(["ce", "kl", "rkl", "jsd"], ["bucket", "renormalise"]))
)
def test_values_and_gradients_equal_the_dense_oracle(divergence: str, tail: str, bias_and_cap: bool) -> None:
    target = draw_target(tail=tail, temperature=1.3)
    inputs = draw_inputs() if bias_and_cap else draw_inputs()[:2]
    extra = {"bias_V": inputs[2], "soft_cap": 2.5} if bias_and_cap else {}
    ours = fusion_loss(*inputs[:2], target, divergence=divergence, chunk_bytes=4 * V * 7, **extra)
    ours_gradients = torch.autograd.grad(ours.loss, inputs)
    oracle = naive_fusion_loss(*inputs[:2], target, divergence=divergence, **extra)
    oracle_gradients = torch.autograd.grad(oracle, inputs)
    assert relative_error(ours.loss, oracle) < TOLERANCE
    for mine, theirs in zip(ours_gradients, oracle_gradients, strict=True):
        assert mine.dtype == torch.float32
        assert relative_error(mine, theirs) < TOLERANCE


@pytest.mark.parametrize("divergence", ["ce", "kl", "rkl", "jsd"])
def test_a_model_sure_of_the_kept_tokens_keeps_its_precision(divergence: str) -> None:
    target = draw_target()
    hidden_ND, head_VD, _ = draw_inputs(scale=6.0)
    ours = torch.autograd.grad(fusion_loss(hidden_ND, head_VD, target, divergence=divergence).loss, hidden_ND)[0]
    oracle_loss = naive_fusion_loss(hidden_ND, head_VD, target, divergence=divergence)
    assert relative_error(ours, torch.autograd.grad(oracle_loss, hidden_ND)[0]) < TOLERANCE


def test_the_loss_does_not_depend_on_the_chunk_size() -> None:
    target, (hidden_ND, head_VD, _) = draw_target(), draw_inputs()
    one, many = (fusion_loss(hidden_ND, head_VD, target, chunk_bytes=size) for size in (1 << 20, 1))
    assert relative_error(one.loss, many.loss) < 1e-6
    assert torch.allclose(one.gold_N, many.gold_N, rtol=1e-6)


def test_gold_only_equals_cross_entropy() -> None:
    hidden_ND, head_VD, _ = draw_inputs()
    gold_N = torch.arange(N) % V
    ours = fusion_loss(hidden_ND, head_VD, gold_target(gold_N)).loss
    theirs = torch.nn.functional.cross_entropy(hidden_ND @ head_VD.t(), gold_N)
    assert relative_error(ours, theirs) < 1e-6
    for mine, other in zip(
        torch.autograd.grad(ours, (hidden_ND, head_VD)), torch.autograd.grad(theirs, (hidden_ND, head_VD)), strict=True
    ):
        assert relative_error(mine, other) < TOLERANCE


def test_lambda_one_ignores_the_soft_target() -> None:
    hidden_ND, head_VD, _ = draw_inputs()
    target = draw_target(lambda_=1.0)
    with_soft = torch.autograd.grad(fusion_loss(hidden_ND, head_VD, target).loss, head_VD)[0]
    without = torch.autograd.grad(fusion_loss(hidden_ND, head_VD, gold_target(target.gold_N)).loss, head_VD)[0]
    assert relative_error(with_soft, without) < TOLERANCE


def test_positions_without_a_chosen_model_are_trained_on_gold_alone() -> None:
    target = draw_target(lambda_=0.3)
    assert target.lambda_N[5] == 1.0, "chosen is -1"
    assert target.lambda_N[2] == 1.0, "no kept token"
    assert target.lambda_N[0] == pytest.approx(0.3)
    assert target.probs_NK[5].sum() == 0


def test_the_bucket_and_the_kept_tokens_sum_to_one() -> None:
    target = draw_target()
    taught_N = target.lambda_N < 1
    sums_N = (target.probs_NK.sum(dim=1) + target.tail_N)[taught_N]
    assert torch.allclose(sums_N, torch.ones_like(sums_N), atol=1e-6)
    assert (target.tail_N[taught_N] > 0).any()


def test_renormalising_leaves_no_tail() -> None:
    target = draw_target(tail="renormalise")
    taught_N = target.lambda_N < 1
    assert (target.tail_N == 0).all()
    assert torch.allclose(target.probs_NK.sum(dim=1)[taught_N], torch.ones(int(taught_N.sum())), atol=1e-6)


def test_temperature_flattens_the_target() -> None:
    cold, warm = draw_target(temperature=1.0), draw_target(temperature=3.0)
    assert (warm.probs_NK[0].max() < cold.probs_NK[0].max()).item()


def test_the_gradient_scales_with_what_comes_from_above() -> None:
    target, (hidden_ND, head_VD, _) = draw_target(), draw_inputs()
    plain = torch.autograd.grad(fusion_loss(hidden_ND, head_VD, target).loss, hidden_ND)[0]
    tripled = torch.autograd.grad(3 * fusion_loss(hidden_ND, head_VD, target).loss, hidden_ND)[0]
    assert relative_error(tripled, 3 * plain) < 1e-6


def test_the_denominator_divides_loss_and_gradient() -> None:
    target, (hidden_ND, head_VD, _) = draw_target(), draw_inputs()
    mean = fusion_loss(hidden_ND, head_VD, target)
    total = fusion_loss(hidden_ND, head_VD, target, denominator=1.0)
    assert relative_error(total.loss, N * mean.loss) < 1e-6


def test_tied_embeddings_receive_both_gradients() -> None:
    _, table_VD, _ = draw_inputs()
    target = draw_target()
    token_ids_N = torch.arange(N) % V

    def gradient(loss_of: object) -> torch.Tensor:
        return torch.autograd.grad(loss_of(torch.nn.functional.embedding(token_ids_N, table_VD)), table_VD)[0]

    ours = gradient(lambda hidden_ND: fusion_loss(hidden_ND, table_VD, target).loss)
    oracle = gradient(lambda hidden_ND: naive_fusion_loss(hidden_ND, table_VD, target))
    assert relative_error(ours, oracle) < TOLERANCE


def test_bfloat16_stays_near_float32_and_gives_gradients_in_kind() -> None:
    target, (hidden_ND, head_VD, _) = draw_target(), draw_inputs()
    low = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden_ND, head_VD)]
    exact = [tensor.detach().float().requires_grad_() for tensor in low]
    ours, oracle = fusion_loss(*low, target).loss, naive_fusion_loss(*exact, target)
    assert ours.dtype == torch.float32
    assert relative_error(ours, oracle) < 5e-3
    gradients = torch.autograd.grad(ours, low)
    for mine, theirs in zip(gradients, torch.autograd.grad(oracle, exact), strict=True):
        assert mine.dtype == torch.bfloat16
        assert relative_error(mine, theirs) < 2e-2


def test_float32_parameters_under_bfloat16_autocast_get_float32_gradients() -> None:
    target, (hidden_ND, head_VD, _) = draw_target(), draw_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fusion_loss(hidden_ND.bfloat16(), head_VD, target).loss
    gradient = torch.autograd.grad(loss, head_VD)[0]
    oracle = torch.autograd.grad(naive_fusion_loss(hidden_ND, head_VD, target), head_VD)[0]
    assert gradient.dtype == torch.float32
    assert relative_error(gradient, oracle) < 2e-2


def test_without_gradients_only_values_are_computed() -> None:
    target, (hidden_ND, head_VD, _) = draw_target(), draw_inputs()
    with torch.no_grad():
        loss = fusion_loss(hidden_ND, head_VD, target)
    assert not loss.loss.requires_grad
    assert relative_error(loss.loss, fusion_loss(hidden_ND, head_VD, target).loss) < 1e-7


def test_a_nan_in_the_model_is_not_hidden() -> None:
    target, (hidden_ND, head_VD, _) = draw_target(), draw_inputs()
    with torch.no_grad():
        hidden_ND[3] = float("nan")
        loss = fusion_loss(hidden_ND, head_VD, target)
    assert torch.isnan(loss.loss)
    assert torch.isnan(loss.gold_N).nonzero().tolist() == [[3]]


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in [result] if isinstance(result, torch.Tensor) else []:
            self.largest = max(self.largest, tensor.numel())
        return result


def test_no_tensor_over_all_positions_and_the_whole_vocabulary_exists() -> None:
    target, (hidden_ND, head_VD, _) = draw_target(), draw_inputs()
    with LargestTensor() as seen:
        fusion_loss(hidden_ND, head_VD, target, chunk_bytes=4 * V * 2).loss.backward()
    assert 0 < seen.largest <= max(2 * V, V * D, N * D)
    assert seen.largest < N * V


@pytest.mark.parametrize("learns", [(True, False), (False, True)])
def test_hidden_states_and_head_get_gradients_each_without_the_other(learns: tuple[bool, bool]) -> None:
    target, (hidden_ND, head_VD, bias_V) = draw_target(), draw_inputs()
    both = torch.autograd.grad(fusion_loss(hidden_ND, head_VD, target).loss, (hidden_ND, head_VD))
    given = [tensor.detach().requires_grad_(asked) for tensor, asked in zip((hidden_ND, head_VD), learns, strict=True)]
    fusion_loss(*given, target).loss.backward()
    for tensor, asked, expected in zip(given, learns, both, strict=True):
        assert (tensor.grad is not None) is asked
        assert not asked or relative_error(tensor.grad, expected) < 1e-6
    fixed = bias_V.detach()
    biased = fusion_loss(hidden_ND, head_VD, target, bias_V=fixed).loss
    assert relative_error(biased, naive_fusion_loss(hidden_ND, head_VD, target, bias_V=fixed)) < TOLERANCE


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_chunk_has_as_many_positions_as_its_bytes_hold(rows: int) -> None:
    target, (hidden_ND, head_VD, _) = draw_target(), draw_inputs()
    for over, size in ((0, rows), (4 * V - 1, rows), (-1, max(1, rows - 1))):
        with LargestTensor() as seen:
            fusion_loss(hidden_ND[:, :1], head_VD[:, :1], target, chunk_bytes=4 * V * rows + over)
        assert seen.largest == V * size


def test_an_empty_target_costs_nothing() -> None:
    hidden_ND, head_VD, _ = draw_inputs()
    found = fusion_loss(hidden_ND[:0], head_VD, gold_target(torch.zeros(0, dtype=torch.int64)))
    assert (found.loss.item(), len(found.gold_N), len(found.soft_N)) == (0.0, 0, 0)


def test_targets_can_be_cut_anywhere() -> None:
    target = draw_target()
    cut = target[4:9]
    assert len(cut) == 5
    np.testing.assert_array_equal(cut.ids_NK.numpy(), target.ids_NK[4:9].numpy())


# --- draws instead of top-k ------------------------------------------------------------------------------------


def drawn_target(probs_NV: torch.Tensor, draws: int, seed: int) -> tuple[SoftTarget, torch.Tensor]:
    """Draws from each row of P as a store keeps them, and the share of every token of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    drawn_NS = torch.multinomial(probs_NV, draws, replacement=True, generator=generator)
    shares_NV = torch.zeros_like(probs_NV).scatter_add_(1, drawn_NS, torch.full(drawn_NS.shape, 1.0 / draws))
    logprobs_NK, ids_NK = shares_NV.log().topk(draws, dim=1)
    ids_NK[logprobs_NK == -torch.inf] = -1
    gold_N = torch.arange(len(probs_NV)) % probs_NV.shape[1]
    target = soft_target(gold_N, ids_NK, logprobs_NK, torch.ones(len(gold_N)), lambda_=0.3, tail="sampled")
    return target, shares_NV


@pytest.mark.parametrize("divergence", ["ce", "kl"])
def test_draws_equal_the_dense_oracle_and_cross_entropy_with_their_shares(divergence: str) -> None:
    hidden_ND, head_VD, _ = draw_inputs()
    probs_NV = torch.softmax(2 * torch.randn(N, V, generator=torch.Generator().manual_seed(2)), dim=1)
    target, shares_NV = drawn_target(probs_NV, 12, seed=3)
    ours = fusion_loss(hidden_ND, head_VD, target, divergence=divergence, chunk_bytes=4 * V * 7)
    logits_NV = hidden_ND.double() @ head_VD.double().t()
    soft_N = torch.nn.functional.cross_entropy(logits_NV, shares_NV.double(), reduction="none")
    if divergence == "kl":
        soft_N = soft_N + torch.xlogy(shares_NV, shares_NV).double().sum(dim=1)
    gold_N = torch.nn.functional.cross_entropy(logits_NV, target.gold_N, reduction="none")
    by_hand = (0.3 * gold_N + 0.7 * soft_N).mean()
    oracle = naive_fusion_loss(hidden_ND, head_VD, target, divergence=divergence)
    gradients = torch.autograd.grad(ours.loss, (hidden_ND, head_VD))
    for dense in (by_hand, oracle):
        assert relative_error(ours.loss, dense) < TOLERANCE
        for mine, theirs in zip(gradients, torch.autograd.grad(dense, (hidden_ND, head_VD)), strict=True):
            assert relative_error(mine, theirs) < TOLERANCE


def test_draws_estimate_value_and_gradient_of_the_whole_distribution_without_bias() -> None:
    n, generator = 20_000, torch.Generator().manual_seed(4)
    head_VD = torch.randn(V, D, generator=generator) / 2
    one_D = torch.randn(D, generator=generator)
    p_V = torch.softmax(2 * torch.randn(V, generator=generator), dim=0)

    exact_D = one_D.clone().double().requires_grad_()
    exact = torch.nn.functional.cross_entropy(exact_D @ head_VD.double().t(), p_V.double())
    exact.backward()

    def z_scores(target: SoftTarget) -> tuple[float, float]:
        """How many standard errors the mean over positions is away, in value and in the gradient's worst number."""
        hidden_ND = one_D.expand(n, D).clone().requires_grad_()
        found = fusion_loss(hidden_ND, head_VD, target, denominator=1.0)
        found.loss.backward()
        off = (found.soft_N.double().mean() - exact.detach()) / (found.soft_N.double().std() / n**0.5)
        by_each_ND = hidden_ND.grad.double() / 0.7
        gold_D = torch.softmax(one_D @ head_VD.t(), dim=0) @ head_VD - head_VD[0]
        by_each_ND = by_each_ND - 0.3 / 0.7 * gold_D.double()
        off_D = (by_each_ND.mean(dim=0) - exact_D.grad) / (by_each_ND.std(dim=0) / n**0.5).clamp(min=1e-7)
        return abs(float(off)), float(off_D.abs().max())

    target, _ = drawn_target(p_V.expand(n, V), 8, seed=5)
    target = SoftTarget(torch.zeros_like(target.gold_N), *(getattr(target, name) for name in FIELDS))
    value, gradient = z_scores(target)
    assert value < 4 and gradient < 5
    logprobs_NK, ids_NK = p_V.log().expand(n, V).topk(8, dim=1)
    ones_N = torch.ones(n)
    cut = soft_target(target.gold_N, ids_NK, logprobs_NK, ones_N, lambda_=0.3, tail="renormalise")
    value, gradient = z_scores(cut)
    assert value > 50 and gradient > 50, "what a renormalised top-k gives is biased"


FIELDS = ("ids_NK", "probs_NK", "tail_N", "lambda_N", "tail")


def test_token_zero_is_a_kept_token_as_any_other() -> None:
    ids_NK = torch.tensor([[0], [-1], [5]])
    logprobs_NK = torch.log(torch.tensor([[0.25], [1.0], [0.5]]))
    target = soft_target(torch.tensor([1, 1, 1]), ids_NK, logprobs_NK, torch.tensor([1, 1, 1]), lambda_=0.5)
    assert target.lambda_N.tolist() == [0.5, 1.0, 0.5]
    torch.testing.assert_close(target.probs_NK[:, 0], torch.tensor([0.25, 0.0, 0.5]))
    torch.testing.assert_close(target.tail_N, torch.tensor([0.75, 0.0, 0.5]))
