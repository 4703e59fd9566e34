"""The model in training: its transformer, and its output head turned into a loss."""

import types
from typing import Any

import torch
from torch import nn

from fusion_ray.errors import EngineError
from fusion_ray.models.head import logit_rule
from fusion_ray.recipe import Targets
from fusion_ray.targets.loss import CHUNK_BYTES, fusion_loss
from fusion_ray.targets.rows import TrainingBatch
from fusion_ray.targets.soft_target import SoftTarget, gold_target


class Student(nn.Module):
    """Maps a batch to (loss, nll of gold at each answer token, divergence at each answer token).

    The head module itself computes the loss, so that whatever gathers or casts a module's weights around its
    forward pass (ZeRO-3 does) also works here, and logits of all positions never exist.

    Raises:
        EngineError: The architecture's output head is not understood.
    """

    def __init__(self, model: Any, settings: Targets) -> None:
        super().__init__()
        self.model = model
        self.divergence = settings.divergence
        self.head = [model.get_output_embeddings()]  # In a list: it is already registered inside `model`.
        if self.head[0] is None or model.base_model is model:
            raise EngineError(f"{type(model).__name__}: no transformer with an output head found; this is needed here.")
        self.after_head = logit_rule(model)
        self.head[0].plain_forward = self.head[0].forward
        self.head[0].forward = types.MethodType(_loss_or_logits, self.head[0])

    def forward(self, batch: TrainingBatch, denominator: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden_BWD = self.hidden(batch.input_ids_BW, batch.position_ids_BW)
        hidden_ND = hidden_BWD.flatten(0, 1)[batch.before_N] * self.after_head.scale
        options = {
            "divergence": self.divergence,
            "denominator": denominator,
            "soft_cap": self.after_head.soft_cap,
            "chunk_bytes": CHUNK_BYTES if hidden_ND.device.type == "cpu" else 8 * CHUNK_BYTES,
        }
        loss = self.head[0](hidden_ND, batch.target, **options)
        return loss.loss, loss.gold_N, loss.soft_N

    def hidden(self, input_ids_BW: torch.Tensor, position_ids_BW: torch.Tensor) -> torch.Tensor:
        """Last hidden states; by the position ids rows of one lane do not see each other."""
        output = self.model.base_model(input_ids=input_ids_BW, position_ids=position_ids_BW, use_cache=False)
        return output.last_hidden_state  # type: ignore[no-any-return]

    @torch.no_grad()
    def check(self) -> None:
        """Compare with the model's own logits on three tokens, so that an unknown head is refused, not mistrained.

        Raises:
            EngineError: The two disagree.
        """
        training = self.model.training
        self.model.eval()
        ids_BW = torch.arange(3, device=next(self.model.parameters()).device)[None]
        logits_NV = self.model(input_ids=ids_BW, use_cache=False).logits[0, :2].float()
        batch = TrainingBatch(ids_BW, ids_BW, ids_BW[0, :2], gold_target(ids_BW[0, 1:]), ids_BW[0, :2].cpu().numpy())
        ours_N = self(batch, 1.0)[1]
        theirs_N = nn.functional.cross_entropy(logits_NV, ids_BW[0, 1:], reduction="none")
        self.model.train(training)
        if not torch.allclose(ours_N, theirs_N, rtol=2e-2, atol=2e-2, equal_nan=True):
            raise EngineError(
                f"{type(self.model).__name__} changes its logits after the output head in a way not known here "
                f"(nll {theirs_N.tolist()}, expected {ours_N.tolist()}). Known: soft caps and constant scales. "
                "Please report this architecture."
            )


def _loss_or_logits(head: Any, hidden: torch.Tensor, target: SoftTarget | None = None, **options: Any) -> Any:
    if target is None:
        return head.plain_forward(hidden)
    return fusion_loss(hidden, head.weight, target, bias_V=getattr(head, "bias", None), **options)
