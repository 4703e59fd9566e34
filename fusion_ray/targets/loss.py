"""The fusion loss from hidden states and the output head, without ever holding all logits.

loss = sum over positions of lambda CE(gold) + (1 - lambda) D(P, Q), over a denominator of the caller's choosing.
Positions are taken in chunks. A chunk's logits are overwritten by the gradient with respect to them, which is
multiplied into the gradients of the hidden states and the head; then the next chunk takes their place. naive_loss.py
computes the same densely.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from fusion_ray.targets.divergences import Divergence, DivergenceName, diverge, diverge_within
from fusion_ray.targets.soft_target import SoftTarget

CHUNK_BYTES = 32 << 20
# The mass outside the kept tokens counts as at least this share of the largest logit's mass.
_SMALLEST_REST = 1e-30


class FusionLoss(NamedTuple):
    """The loss to differentiate, and its parts at each position (nats, float32, not differentiable)."""

    loss: torch.Tensor
    gold_N: torch.Tensor
    soft_N: torch.Tensor


def fusion_loss(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    target: SoftTarget,
    *,
    divergence: DivergenceName = "ce",
    denominator: float | None = None,
    bias_V: torch.Tensor | None = None,
    soft_cap: float | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> FusionLoss:
    """Compute the loss at N answer positions, and its gradients along with it.

    Logits are formed in the dtype of the hidden states; every exponential, sum and gradient by logits is float32,
    and the head's gradient is accumulated in float32.

    Args:
        hidden_ND: State from which the answer token is predicted, at answer positions only.
        head_VD: Weight of the output head (also when it is the embedding itself).
        target: What to learn; see `soft_target`.
        divergence: D: `ce`, `kl`, `rkl` or `jsd`; see divergences.py.
        denominator: What the sum is divided by; the number of positions when not given.
        bias_V: Bias of the output head, if it has one.
        soft_cap: Logits are squashed to soft_cap * tanh(logit / soft_cap), as Gemma does.
        chunk_bytes: Size of one chunk's float32 logits.

    >>> from fusion_ray.targets.soft_target import soft_target
    >>> gold_N, chosen_N = torch.tensor([1, 2]), torch.tensor([1, -1])  # Source 1 teaches the first position.
    >>> ids_NK, logprobs_NK = torch.tensor([[1, 3], [2, 0]]), torch.tensor([[0.6, 0.3], [0.9, 0.1]]).log()
    >>> target = soft_target(gold_N, ids_NK, logprobs_NK, chosen_N, lambda_=0.5)
    >>> hidden_ND = torch.zeros(2, 4, requires_grad=True)  # So Q is uniform over the 8 tokens.
    >>> found = fusion_loss(hidden_ND, torch.ones(8, 4), target)
    >>> found.loss.backward()
    >>> [round(nats, 3) for nats in found.gold_N.tolist()]
    [2.079, 2.079]
    """
    options = _Options(divergence, denominator or max(len(target), 1), soft_cap, chunk_bytes, torch.is_grad_enabled())
    return FusionLoss(*_FusionLoss.apply(hidden_ND, head_VD, bias_V, target, options))


@dataclass(frozen=True)
class _Options:
    divergence: DivergenceName
    denominator: float
    soft_cap: float | None
    chunk_bytes: int
    with_gradients: bool


class _FusionLoss(torch.autograd.Function):
    """Forms the gradients in the forward pass and hands them out in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        target: SoftTarget,
        options: _Options,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        of_head = head_VD if ctx.needs_input_grad[1] else None
        gradients = _Gradients.zeros(hidden_ND, of_head, bias_V) if options.with_gradients else None
        gold_N = torch.empty(len(target), device=hidden_ND.device)
        soft_N = torch.empty_like(gold_N)
        rows = max(1, options.chunk_bytes // (4 * head_VD.shape[0]))
        computing_VD = head_VD.to(hidden_ND.dtype)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(target), rows):
                part = slice(start, start + rows)
                # In a function of its own, so that a chunk's logits are gone before the next chunk's are made.
                gold_N[part], soft_N[part] = _one_chunk(
                    part, hidden_ND[part], computing_VD, bias_V, target[part], options, gradients
                )
        ctx.gradients = gradients
        ctx.dtypes = hidden_ND.dtype, head_VD.dtype
        loss = (target.lambda_N * gold_N + (1.0 - target.lambda_N) * soft_N).sum() / options.denominator
        ctx.mark_non_differentiable(gold_N, soft_N)
        return loss, gold_N, soft_N

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, by_loss: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients: _Gradients = ctx.gradients
        ctx.gradients = None
        return (*gradients.scaled(by_loss, *ctx.dtypes), None, None)


def _one_chunk(
    part: slice,
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    target: SoftTarget,
    options: _Options,
    gradients: "_Gradients | None",
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_NV = _Logits.form(hidden_ND, head_VD, bias_V, options.soft_cap)
    gold_N, soft_N = logits_NV.measure(target, options)
    if gradients is not None:
        gradients.add(part, logits_NV.by_logits, hidden_ND, head_VD)
    return gold_N, soft_N


@dataclass(eq=False)
class _Gradients:
    """Gradients of the loss by hidden states, head and bias, filled chunk by chunk; None of a head that is frozen."""

    hidden_ND: torch.Tensor
    head_VD: torch.Tensor | None
    bias_V: torch.Tensor | None

    @classmethod
    def zeros(cls, hidden_ND: torch.Tensor, head_VD: torch.Tensor | None, bias_V: torch.Tensor | None) -> "_Gradients":
        head, bias = (
            None if weight is None else torch.zeros_like(weight, dtype=torch.float32) for weight in (head_VD, bias_V)
        )
        return cls(torch.empty_like(hidden_ND), head, bias)

    def add(self, part: slice, by_logits_NV: torch.Tensor, hidden_ND: torch.Tensor, head_VD: torch.Tensor) -> None:
        if self.bias_V is not None:
            self.bias_V += by_logits_NV.sum(dim=0)
        by_logits_NV = by_logits_NV.to(hidden_ND.dtype)
        torch.mm(by_logits_NV, head_VD, out=self.hidden_ND[part])
        if self.head_VD is None:
            return
        if hidden_ND.dtype == torch.float32:
            self.head_VD.addmm_(by_logits_NV.t(), hidden_ND)
        else:
            self.head_VD += by_logits_NV.t() @ hidden_ND

    def scaled(
        self, by_loss: torch.Tensor, hidden_dtype: torch.dtype, head_dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        # Nearly always 1; on a GPU asking would cost more than multiplying.
        if not (by_loss.device.type == "cpu" and by_loss.item() == 1.0):
            for gradient in (self.hidden_ND, self.head_VD, self.bias_V):
                if gradient is not None:
                    gradient *= by_loss
        head, bias = (None if gradient is None else gradient.to(head_dtype) for gradient in (self.head_VD, self.bias_V))
        return self.hidden_ND.to(hidden_dtype), head, bias


@dataclass(eq=False)
class _Logits:
    """One chunk's logits; `measure` turns the buffer into the gradient by the logits."""

    logits_NV: torch.Tensor
    squashed_NV: torch.Tensor | None
    soft_cap: float | None

    @classmethod
    def form(
        cls, hidden_ND: torch.Tensor, head_VD: torch.Tensor, bias_V: torch.Tensor | None, soft_cap: float | None
    ) -> "_Logits":
        logits_NV = (hidden_ND @ head_VD.t()).float()
        if bias_V is not None:
            logits_NV += bias_V
        if soft_cap is None:
            return cls(logits_NV, None, None)
        squashed_NV = logits_NV.div_(soft_cap).tanh_()
        return cls(squashed_NV * soft_cap, squashed_NV, soft_cap)

    @property
    def by_logits(self) -> torch.Tensor:
        """The gradient by the head's own outputs, before any squashing."""
        if self.squashed_NV is None:
            return self.logits_NV
        return self.logits_NV.mul_(self.squashed_NV.square_().neg_().add_(1.0))

    def measure(self, target: SoftTarget, options: _Options) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of the chunk's positions; leaves in the buffer the gradient of loss / denominator."""
        buffer_NV, gold_N1 = self.logits_NV, target.gold_N[:, None]
        unused_NK = target.ids_NK < 0
        ids_NK = _without_gaps(target.ids_NK)
        buffer_NV -= buffer_NV.amax(dim=1, keepdim=True)
        gold_logit_N1, kept_logits_NK = buffer_NV.gather(1, gold_N1), buffer_NV.gather(1, ids_NK)
        buffer_NV.exp_()
        # The rest of the vocabulary is summed by itself: 1 - kept mass would cancel where the model is sure.
        nothing_kept_N1 = unused_NK.all(dim=1, keepdim=True)
        buffer_NV.scatter_(1, ids_NK, buffer_NV.gather(1, ids_NK) * nothing_kept_N1)
        rest_N1 = buffer_NV.sum(dim=1, keepdim=True).clamp_(min=_SMALLEST_REST)
        kept_NK = kept_logits_NK.exp().masked_fill(unused_NK, 0.0)
        mass_N1 = rest_N1 + kept_NK.sum(dim=1, keepdim=True)
        log_mass_N1 = mass_N1.log()
        apart = _diverge(target, options.divergence, kept_logits_NK - log_mass_N1, rest_N1.log() - log_mass_N1)
        if options.with_gradients:
            lambda_N1 = target.lambda_N[:, None] / options.denominator
            gradient_NO = apart.gradient_NO * (1.0 / options.denominator - lambda_N1)
            total_N1 = gradient_NO.sum(dim=1, keepdim=True) - lambda_N1
            buffer_NV *= gradient_NO[:, -1:] / rest_N1 - total_N1 / mass_N1
            by_kept_NK = gradient_NO[:, :-1] - kept_NK / mass_N1 * total_N1
            buffer_NV.scatter_add_(1, ids_NK, by_kept_NK.masked_fill(unused_NK, 0.0))
            buffer_NV.scatter_add_(1, gold_N1, -lambda_N1)
        return (log_mass_N1 - gold_logit_N1)[:, 0], apart.value_N


def _without_gaps(ids_NK: torch.Tensor) -> torch.Tensor:
    """Put a row's first id (or 0) into its unused places, so that they can be gathered and scattered harmlessly."""
    if ids_NK.shape[1] == 0:
        return ids_NK
    return torch.where(ids_NK < 0, ids_NK[:, :1].clamp(min=0), ids_NK)


def _diverge(target: SoftTarget, kind: DivergenceName, logq_NK: torch.Tensor, log_rest_N1: torch.Tensor) -> Divergence:
    unused_NK = target.ids_NK < 0
    if kind == "rkl" and target.tail == "renormalise":
        within = diverge_within(target.probs_NK, logq_NK, unused_NK)
        return Divergence(within.value_N, torch.cat([within.gradient_NO, torch.zeros_like(log_rest_N1)], dim=1))
    p_NO = torch.cat([target.probs_NK, target.tail_N[:, None]], dim=1)
    unused_NO = torch.cat([unused_NK, torch.zeros_like(log_rest_N1, dtype=torch.bool)], dim=1)
    return diverge(kind, p_NO, torch.cat([logq_NK, log_rest_N1], dim=1), unused_NO)
