"""What a model learns at each answer position: the gold token, and some of the probabilities of another model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from fusion_ray.storage.topk import ANCHORED, NO_TEACHER

Tail = Literal["bucket", "renormalise", "sampled"]


@dataclass(frozen=True, eq=False)
class SoftTarget:
    """A sparse target over N answer positions: K kept tokens, their tail, and the gold token.

    Attributes:
        gold_N: The token that really came, int64.
        ids_NK: Kept tokens, int64; -1 where fewer than K are in use.
        probs_NK: Their probabilities P, float32; 0 where the id is -1.
        tail_N: Probability of "none of the kept", float32; 0 under `renormalise` and `sampled`.
        lambda_N: Weight of the gold token's cross-entropy, float32 in [0, 1].
        tail: What stands for the mass outside the kept tokens.
    """

    gold_N: torch.Tensor
    ids_NK: torch.Tensor
    probs_NK: torch.Tensor
    tail_N: torch.Tensor
    lambda_N: torch.Tensor
    tail: Tail = "bucket"

    def __len__(self) -> int:
        return len(self.gold_N)

    def __getitem__(self, part: slice) -> "SoftTarget":
        return self._each(lambda tensor: tensor[part])

    def to(self, device: torch.device) -> "SoftTarget":
        """The same target on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "SoftTarget":
        return SoftTarget(
            gold_N=change(self.gold_N),
            ids_NK=change(self.ids_NK),
            probs_NK=change(self.probs_NK),
            tail_N=change(self.tail_N),
            lambda_N=change(self.lambda_N),
            tail=self.tail,
        )


def gold_target(gold_N: torch.Tensor) -> SoftTarget:
    """The target of plain supervised fine-tuning: the gold token and nothing else."""
    n = len(gold_N)
    empty_NK = torch.zeros(n, 0, device=gold_N.device)
    ones_N = torch.ones(n, device=gold_N.device)
    return SoftTarget(gold_N, empty_NK.long(), empty_NK, torch.zeros_like(ones_N), ones_N)


def soft_target(
    gold_N: torch.Tensor,
    ids_NK: torch.Tensor,
    logprobs_NK: torch.Tensor,
    chosen_N: torch.Tensor,
    *,
    lambda_: float,
    tail: Tail = "bucket",
    temperature: float = 1.0,
) -> SoftTarget:
    """Turn stored top-k log-probabilities into a target.

    The temperature acts on P alone: softmax(log P / temperature) over the kept tokens and, under `bucket`, over the
    tail as one more outcome. A position with `chosen` -1, or with no kept token, is trained on gold alone; one with
    `chosen` -2 is anchored: it learns the kept tokens alone, whatever `lambda_`.

    Args:
        gold_N: Token that really came.
        ids_NK: Kept tokens, -1 where unused.
        logprobs_NK: Their natural-log probabilities over the whole vocabulary, or under `sampled` of what each entry
            stands for; -inf where unused.
        chosen_N: Which model was chosen; -1 and -2 for none.
        lambda_: Weight of gold where a model was chosen.
        tail: `bucket` keeps the mass outside the kept tokens as one outcome; `renormalise` drops it; `sampled` says
            that there is none: entries were drawn from P, and stand for all of it without bias (random sampling KD,
            arXiv 2503.16870; see `models.head.keep_draws`).
        temperature: Above 1 flattens P; must be 1 under `sampled`, whose entries would else be biased.

    >>> gold_N, chosen_N = torch.tensor([1]), torch.tensor([1])
    >>> target = soft_target(gold_N, torch.tensor([[1, 3]]), torch.tensor([[0.6, 0.3]]).log(), chosen_N, lambda_=0.2)
    >>> [round(p, 3) for p in target.probs_NK[0].tolist()], round(target.tail_N.item(), 3)
    ([0.6, 0.3], 0.1)
    """
    logprobs_NK = logprobs_NK.float().masked_fill(ids_NK < 0, -torch.inf)
    taught_N = (chosen_N != NO_TEACHER) & (ids_NK >= 0).any(dim=1)
    outcomes_NK = logprobs_NK
    if tail == "bucket":
        outside_N = (1.0 - logprobs_NK.double().exp().sum(dim=1)).clamp(min=0.0)
        outcomes_NK = torch.cat([logprobs_NK, outside_N.log().float()[:, None]], dim=1)
    probs_NK = outcomes_NK.exp() if tail == "sampled" else torch.softmax(outcomes_NK / temperature, dim=1)
    probs_NK = probs_NK.masked_fill(~taught_N[:, None], 0.0)
    k = ids_NK.shape[1]
    return SoftTarget(
        gold_N=gold_N.long(),
        ids_NK=ids_NK.long(),
        probs_NK=probs_NK[:, :k].contiguous(),
        tail_N=probs_NK[:, k].contiguous() if tail == "bucket" else torch.zeros_like(logprobs_NK[:, 0]),
        lambda_N=torch.where(taught_N, torch.where(chosen_N == ANCHORED, 0.0, lambda_), 1.0).float(),
        tail=tail,
    )
