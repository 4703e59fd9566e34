"""How far the trained model Q is from the target P over a few outcomes, with the derivative by log Q.

Outcomes are the K kept tokens and, last, the tail: "none of the kept". The derivative of every divergence by the
logits follows from the derivative by log Q alone, so a divergence needs no more than these few numbers.
"""

from typing import Literal, NamedTuple

import torch

DivergenceName = Literal["ce", "kl", "rkl", "jsd"]
# Reverse KL divides by P, so an outcome with P = 0 would cost infinitely much. Smaller values of P count as this one.
SMALLEST_P = 1e-8


class Divergence(NamedTuple):
    """Value at each position, and derivative by the log Q of every outcome (tail last)."""

    value_N: torch.Tensor
    gradient_NO: torch.Tensor


def diverge(kind: DivergenceName, p_NO: torch.Tensor, logq_NO: torch.Tensor, unused_NO: torch.Tensor) -> Divergence:
    """Compute D(P, Q) in float32.

    `ce` is -sum P log Q, `kl` sum P log(P / Q), `rkl` sum Q log(Q / P), `jsd` half of KL(P | M) plus half of
    KL(Q | M) with M = (P + Q) / 2.

    Args:
        kind: Which divergence.
        p_NO: Probabilities of the outcomes under the target, the tail last.
        logq_NO: Natural-log probabilities of the outcomes under the trained model.
        unused_NO: True where an outcome does not exist; it contributes nothing.
    """
    q_NO = logq_NO.exp().masked_fill(unused_NO, 0.0)
    logq_NO = logq_NO.masked_fill(unused_NO, 0.0)
    if kind in ("ce", "kl"):
        value_NO = -p_NO * logq_NO
        if kind == "kl":
            value_NO = value_NO + torch.xlogy(p_NO, p_NO)
        return Divergence(value_NO.sum(dim=1), -p_NO)
    if kind == "rkl":
        ratio_NO = (logq_NO - p_NO.clamp(min=SMALLEST_P).log()).masked_fill(unused_NO, 0.0)
        return Divergence((q_NO * ratio_NO).sum(dim=1), q_NO * (ratio_NO + 1.0))
    logm_NO = (0.5 * (p_NO + q_NO)).masked_fill(unused_NO, 1.0).log()
    far_NO = torch.where(q_NO > 0, logq_NO - logm_NO, 0.0)
    value_NO = 0.5 * (torch.xlogy(p_NO, p_NO) - p_NO * logm_NO.clamp(min=-1e30) + q_NO * far_NO)
    return Divergence(value_NO.sum(dim=1), 0.5 * q_NO * far_NO)


def diverge_within(p_NK: torch.Tensor, logq_NK: torch.Tensor, unused_NK: torch.Tensor) -> Divergence:
    """Reverse KL with Q renormalised over the kept tokens.

    Under `tail: renormalise` P gives nothing to the rest of the vocabulary, so reverse KL over all of it would be
    infinite; it is taken within the kept tokens instead.
    """
    within_NK = torch.log_softmax(logq_NK.masked_fill(unused_NK, -torch.inf), dim=1)
    within_NK = torch.where(unused_NK, 0.0, within_NK)
    q_NK = within_NK.exp().masked_fill(unused_NK, 0.0)
    ratio_NK = (within_NK - p_NK.clamp(min=SMALLEST_P).log()).masked_fill(unused_NK, 0.0)
    value_N = (q_NK * ratio_NK).sum(dim=1)
    return Divergence(value_N, q_NK * (ratio_NK - value_N[:, None]))
