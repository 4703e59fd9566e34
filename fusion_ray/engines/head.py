"""From hidden states to top-k log-probabilities, a few positions at a time.

The logits of all positions at once are the largest tensor in scoring (2,048 positions of a 152k vocabulary are 1.2 GB
in float32); here they exist for one chunk of answer positions only.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

# Columns of one block in the search for the k largest: each of them lies in one of the k blocks of largest maximum.
_BLOCKS_OF = 64

# Logits looked at together on a CPU: they are read several times, and 2 MB in float32 stay in its cache meanwhile.
_IN_CACHE = 1 << 19


class Kept(NamedTuple):
    """Top-k of N positions: ids int64 and log-probabilities float32 [N, K], the real tokens' log-probabilities [N]."""

    ids_NK: torch.Tensor
    logprobs_NK: torch.Tensor
    real_logprobs_N: torch.Tensor


def keep_top_k(logits_NV: torch.Tensor, real_ids_N: torch.Tensor, k: int, n_tokens: int) -> Kept:
    """Keep the k largest log-probabilities of each position, in float32, normalised over all columns.

    Columns from `n_tokens` on pad the output head: they count in the normalisation, as in the model, and are never
    kept. Of equal values the lower id comes first. NaN stays NaN in `real_logprobs_N`.
    """
    logits_NV = logits_NV.float()
    total_N1 = torch.logsumexp(logits_NV, dim=-1, keepdim=True)
    values_NK, ids_NK = _largest(logits_NV[:, :n_tokens], k)
    real_N = logits_NV.gather(1, real_ids_N[:, None])
    return Kept(ids_NK, values_NK - total_N1, (real_N - total_N1)[:, 0])


def _largest(logits_NV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    n_blocks = logits_NV.shape[1] // _BLOCKS_OF
    if n_blocks <= 4 * k:
        values_NV, ids_NV = logits_NV.sort(dim=-1, descending=True, stable=True)
        return values_NV[:, :k], ids_NV[:, :k]
    # Block b holds the columns b, b + n_blocks, b + 2 n_blocks, ...: then the maxima are taken along whole rows.
    main = n_blocks * _BLOCKS_OF
    blocks = logits_NV[:, :main].unflatten(1, (_BLOCKS_OF, n_blocks))
    chosen_NK = blocks.amax(dim=1).topk(k, dim=-1).indices
    steps = torch.arange(_BLOCKS_OF, device=logits_NV.device) * n_blocks
    ids_NC = (steps[:, None] + chosen_NK[:, None, :]).flatten(1)
    rest = torch.arange(main, logits_NV.shape[1], device=logits_NV.device).expand(len(logits_NV), -1)
    ids_NC = torch.cat([ids_NC, rest], dim=1).sort(dim=-1).values
    values_NC, order_NC = logits_NV.gather(1, ids_NC).sort(dim=-1, descending=True, stable=True)
    return values_NC[:, :k], ids_NC.gather(1, order_NC[:, :k])


class OutputHead:
    """The last step of a causal language model: its output matrix, and what its config does to the logits after it.

    Attributes:
        n_outputs: Columns of the logits.
        checked: The head repeats the model's own logits on a short input; where it does not (an architecture that
            does more), the model's own forward must be used.
    """

    def __init__(self, model: Any) -> None:
        self._matrix = model.get_output_embeddings()
        config = model.config.get_text_config()
        self.n_outputs = int(config.vocab_size if self._matrix is None else self._matrix.weight.shape[0])
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._scale = float(getattr(config, "logit_scale", None) or 1.0)
        self._scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        self.checked = self._matrix is not None and self._agrees_with(model)

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Logits of some hidden states, in the model's own dtype."""
        logits_NV = self._matrix(hidden_ND)
        if self._scale != 1.0:
            logits_NV = logits_NV * self._scale
        if self._cap is not None:
            logits_NV = torch.tanh(logits_NV / self._cap) * self._cap
        return logits_NV

    def chunks(
        self, hidden_ND: torch.Tensor, real_ids_N: torch.Tensor, k: int, n_tokens: int, positions_at_once: int
    ) -> Iterator[Kept]:
        """Keep the top-k of all positions, with the logits of `positions_at_once` in memory."""
        on_cpu = hidden_ND.device.type == "cpu"
        together = max(1, _IN_CACHE // self.n_outputs) if on_cpu else positions_at_once
        for hidden, real_ids in zip(
            hidden_ND.split(positions_at_once), real_ids_N.split(positions_at_once), strict=True
        ):
            for logits, ids in zip(self.logits(hidden).split(together), real_ids.split(together), strict=True):
                yield keep_top_k(logits, ids, k, n_tokens)

    @torch.inference_mode()
    def _agrees_with(self, model: Any) -> bool:
        ids_BT = torch.arange(4, device=model.device)[None] % self.n_outputs
        own_TV = model(input_ids=ids_BT, use_cache=False).logits[0].float()
        try:
            hidden_TD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[0]
            ours_TV = self.logits(hidden_TD).float()
        except (AttributeError, RuntimeError, TypeError):  # no plain base model: encoder-decoders and the like
            return False
        if own_TV.shape != ours_TV.shape:
            return False
        # Weights that give NaN are found when real rows are scored; here only the arithmetic is compared.
        largest = float(own_TV.nan_to_num(0).abs().max())
        close = torch.isclose(own_TV, ours_TV, rtol=2e-2, atol=2e-2 * largest, equal_nan=True)
        return bool(close.all())
