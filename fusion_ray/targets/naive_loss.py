"""The fusion loss written out densely in float64: slow, hungry, and the oracle of loss.py."""

import torch

from fusion_ray.targets.divergences import SMALLEST_P, DivergenceName
from fusion_ray.targets.soft_target import SoftTarget


def naive_fusion_loss(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    target: SoftTarget,
    *,
    divergence: DivergenceName = "ce",
    bias_V: torch.Tensor | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """The mean loss over positions, differentiable by plain autograd; see `loss.fusion_loss`."""
    logits_NV = hidden_ND.double() @ head_VD.double().t()
    if bias_V is not None:
        logits_NV = logits_NV + bias_V.double()
    if soft_cap is not None:
        logits_NV = soft_cap * torch.tanh(logits_NV / soft_cap)
    logq_NV = torch.log_softmax(logits_NV, dim=1)
    gold_N = -logq_NV.gather(1, target.gold_N[:, None])[:, 0]
    soft_N = torch.stack([_soft_loss(logq_NV[n], target, n, divergence) for n in range(len(target))])
    lambda_N = target.lambda_N.double()
    return (lambda_N * gold_N + (1 - lambda_N) * soft_N).mean()


def _soft_loss(logq_V: torch.Tensor, target: SoftTarget, n: int, kind: DivergenceName) -> torch.Tensor:
    """D(P, Q) at one position: first list the outcomes, then compare the two distributions over them."""
    used_K = target.ids_NK[n] >= 0
    ids_K = target.ids_NK[n][used_K]
    p_O = target.probs_NK[n][used_K].double()
    logq_O = logq_V[ids_K]
    if kind == "rkl" and target.tail == "renormalise":
        if len(ids_K) == 0:
            return logq_V.sum() * 0.0
        logq_O = torch.log_softmax(logq_O, dim=0)
    else:
        rest_V = torch.ones(len(logq_V), dtype=torch.bool)
        rest_V[ids_K] = False
        logq_O = torch.cat([logq_O, torch.logsumexp(logq_V[rest_V], dim=0)[None]])
        p_O = torch.cat([p_O, target.tail_N[n].double()[None]])
    q_O = logq_O.exp()
    m_O = (p_O + q_O) / 2
    if kind == "ce":
        return -(p_O * logq_O).sum()
    if kind == "kl":
        return (torch.xlogy(p_O, p_O) - p_O * logq_O).sum()
    if kind == "rkl":
        return (q_O * (logq_O - p_O.clamp(min=SMALLEST_P).log())).sum()
    return 0.5 * (torch.xlogy(p_O, p_O) - p_O * m_O.log() + q_O * (logq_O - m_O.log())).sum()
