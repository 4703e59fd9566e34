"""From hidden states to top-k log-probabilities, a few positions at a time.

The logits of all positions at once are the largest tensor in scoring (2,048 positions of a 152k vocabulary are 1.2 GB
in float32); here they exist for one chunk of answer positions only.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

# Columns of one block in the search for the k largest, which all lie in the k blocks of largest maximum.
_BLOCKS_OF = 64

# On a CPU so many logits are worked on together: they are read several times, and 2 MB in float32 stay in its cache.
_IN_CACHE = 1 << 19


class Kept(NamedTuple):
    """Top-k of N positions: ids int64 and log-probabilities float32 [N, K], the real tokens' log-probabilities [N]."""

    ids_NK: torch.Tensor
    logprobs_NK: torch.Tensor
    real_logprobs_N: torch.Tensor


Keep = Callable[[torch.Tensor, slice], Kept]
"""What is kept of the logits [N, V] of the positions in a slice of all that are asked for."""


def keep_top_k(logits_NV: torch.Tensor, real_ids_N: torch.Tensor, k: int, n_tokens: int) -> Kept:
    """Keep the k largest log-probabilities of each position, in float32, normalised over all columns.

    Columns from `n_tokens` on pad the output head: they count in the normalisation, as in the model, and are never
    kept. Of equal values the lower id comes first. NaN stays NaN in `real_logprobs_N`.
    """
    n_blocks = n_tokens // _BLOCKS_OF
    nll, maxima = [], []
    for at in _in_cache(logits_NV):
        part = logits_NV[at].float()
        # On a CPU the fused loss takes half the time of logsumexp.
        nll.append(cross_entropy(part, real_ids_N[at], reduction="none"))
        # Block b holds the columns b, b + n_blocks, b + 2 n_blocks, ...: maxima are taken along whole rows.
        maxima.append(part[:, : n_blocks * _BLOCKS_OF].unflatten(1, (_BLOCKS_OF, n_blocks)).amax(dim=1))
    nll_N = torch.cat(nll)
    total_N1 = nll_N[:, None] + logits_NV.gather(1, real_ids_N[:, None]).float()
    values_NK, ids_NK = _largest(logits_NV[:, :n_tokens], torch.cat(maxima), k)
    return Kept(ids_NK, values_NK - total_N1, -nll_N)


def keep_draws(
    logits_NV: torch.Tensor, real_ids_N: torch.Tensor, uniforms_N: torch.Tensor, k: int, n_tokens: int
) -> Kept:
    """Keep k entries of each distribution that stand for all of it: its largest tokens, and draws from the others.

    Tokens above a threshold keep their probability. Of the others some are drawn, each with a chance in proportion to
    its probability, and every draw gets the threshold as its value. So the expected entry of every token is its
    probability, and all entries sum to 1; no other k entries of this kind have a smaller total variance (VarOpt, Cohen
    et al., arXiv 0803.0473). Columns from
    `n_tokens` on are never kept, and their share is missing from the sum. Equal entries stand in order of their ids;
    unused places hold -1 and -inf.

    Args:
        logits_NV: Of N positions.
        real_ids_N: The tokens that came; their log-probabilities are measured, not drawn.
        uniforms_N: Where the draws of each position begin, in [0, 1), see `uniforms_of`: the same numbers give the same
            entries.
        k: Entries of each position.
        n_tokens: Length of the tokenizer.
    """
    parts = [_draw(logits_NV[at], real_ids_N[at], uniforms_N[at], k, n_tokens) for at in _in_cache(logits_NV)]
    return Kept(*(torch.cat(part) for part in zip(*parts, strict=True)))


def uniforms_of(ids_N: torch.Tensor, seed: int) -> torch.Tensor:
    """A number in [0, 1) for each token of a sequence, float64, that depends on it, all before it, and the seed.

    So a sequence is drawn the same in any batch and by any engine. A hash: the splitmix64 of a sum of splitmix64s.
    """
    places_N = torch.arange(1, len(ids_N) + 1, device=ids_N.device)
    hashes_N = _splitmix64(_splitmix64(ids_N.long() + (places_N << 32)).cumsum(dim=0) + seed)
    return ((hashes_N >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def _splitmix64(numbers_N: torch.Tensor) -> torch.Tensor:
    """Mix the bits of int64 numbers; products and sums wrap around."""
    mixed_N = numbers_N * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed_N = (mixed_N ^ _shifted(mixed_N, shift)) * factor
    return mixed_N ^ _shifted(mixed_N, 31)


def _shifted(numbers_N: torch.Tensor, by: int) -> torch.Tensor:
    """Shifted right as if unsigned."""
    return (numbers_N >> by) & ((1 << (64 - by)) - 1)


def _draw(logits_NV: torch.Tensor, real_ids_N: torch.Tensor, uniforms_N: torch.Tensor, k: int, n_tokens: int) -> Kept:
    logits_NV = logits_NV.float()
    real_N = -cross_entropy(logits_NV, real_ids_N, reduction="none")
    probs_NV = torch.softmax(logits_NV, dim=-1)[:, :n_tokens].double()
    largest_NK, ids_NK = probs_NV.topk(k, dim=-1)
    in_head_NK = _in_head(probs_NV.sum(dim=1), largest_NK)
    mass_NV = probs_NV.scatter_(1, ids_NK, largest_NK.masked_fill(in_head_NK, 0.0)).cumsum(dim=-1)
    # The draws stand evenly along the mass outside the head, so none of these tokens is met twice.
    n_head_N1 = in_head_NK.sum(dim=1, keepdim=True)
    number_NK = torch.arange(k, device=ids_NK.device) - n_head_N1
    n_drawn_N1 = (k - n_head_N1).clamp(min=1)
    points_NK = (uniforms_N[:, None] + number_NK) / n_drawn_N1 * mass_NV[:, -1:]
    drawn_NK = torch.searchsorted(mass_NV, points_NK, right=True).clamp(max=n_tokens - 1)
    threshold_N1 = mass_NV[:, -1:] / n_drawn_N1
    ids_NK, by_id_NK = torch.where(in_head_NK, ids_NK, drawn_NK).sort(dim=1)
    entries_NK = torch.where(in_head_NK, largest_NK, threshold_N1).gather(1, by_id_NK)
    entries_NK, order_NK = entries_NK.sort(dim=1, descending=True, stable=True)
    ids_NK = ids_NK.gather(1, order_NK).masked_fill(entries_NK <= 0, -1)
    return Kept(ids_NK, entries_NK.log().float(), real_N)


def _in_head(total_N: torch.Tensor, largest_NK: torch.Tensor) -> torch.Tensor:
    """Which of the k largest are at least as probable as the value of a draw would be, bool [N, K].

    Slightly less than the threshold is enough: a token that equals it but for rounding could be drawn twice.
    """
    left_N1 = total_N[:, None] - (largest_NK.cumsum(dim=1) - largest_NK)
    places_K = torch.arange(largest_NK.shape[1], 0, -1, device=largest_NK.device)
    return (largest_NK >= (1 - 1e-9) * left_N1.clamp(min=0) / places_K).int().cumprod(dim=1).bool()


def _in_cache(logits_NV: torch.Tensor) -> Iterator[slice]:
    """Positions whose logits are looked at together: as many as a CPU's cache holds in float32, all on a GPU."""
    n, columns = logits_NV.shape
    together = max(1, _IN_CACHE // columns) if logits_NV.device.type == "cpu" else max(1, n)
    return (slice(start, start + together) for start in range(0, n, together))


def _largest(logits_NV: torch.Tensor, maxima_NB: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    n_blocks, looked_at = maxima_NB.shape[1], 2 * k
    if n_blocks <= 2 * looked_at:
        values_NV, ids_NV = logits_NV.float().sort(dim=-1, descending=True, stable=True)
        return values_NV[:, :k], ids_NV[:, :k]
    # The k largest lie in k blocks; k more nearly always hold every value that equals the smallest of them.
    best = maxima_NB.topk(looked_at + 1, dim=-1)
    chosen_NB = best.indices[:, :looked_at].sort(dim=-1).values
    steps = torch.arange(_BLOCKS_OF, device=logits_NV.device) * n_blocks
    rest = torch.arange(n_blocks * _BLOCKS_OF, logits_NV.shape[1], device=logits_NV.device).expand(len(logits_NV), -1)
    ids_NC = torch.cat([(steps[:, None] + chosen_NB[:, None, :]).flatten(1), rest], dim=1)  # rising
    logits_NC = logits_NV.gather(1, ids_NC).float()
    found = logits_NC.topk(k + 1, dim=-1)
    at_NK = found.indices[:, :k].sort(dim=-1).values
    values_NK, order_NK = logits_NC.gather(1, at_NK).sort(dim=-1, descending=True, stable=True)
    at_NK = at_NK.gather(1, order_NK)
    last_N = values_NK[:, -1]
    tied = (found.values[:, k] == last_N).nonzero()[:, 0]
    if len(tied):
        at_NK[tied] = _lowest_of_equals(logits_NC[tied], at_NK[tied], values_NK[tied])
    ids_NK = ids_NC.gather(1, at_NK)
    crowded = (best.values[:, looked_at] >= last_N).nonzero()[:, 0]
    if len(crowded):
        ids_NK[crowded] = _lowest_of_equals(logits_NV[crowded].float(), ids_NK[crowded], values_NK[crowded])
    return values_NK, ids_NK


def _lowest_of_equals(logits_MV: torch.Tensor, ids_MK: torch.Tensor, values_MK: torch.Tensor) -> torch.Tensor:
    """Break ties at the smallest kept value towards the lowest ids."""
    above_M = (values_MK > values_MK[:, -1:]).sum(dim=1)
    row, column = (logits_MV == values_MK[:, -1:]).nonzero(as_tuple=True)
    first_M = torch.searchsorted(row, torch.arange(len(logits_MV), device=row.device))
    place = torch.arange(len(row), device=row.device) - first_M[row] + above_M[row]
    kept = place < ids_MK.shape[1]
    return ids_MK.index_put((row[kept], place[kept]), column[kept])


class LogitRule(NamedTuple):
    """What a model does to its logits after the output matrix.

    Attributes:
        scale: A constant factor: Cohere multiplies by one, Granite divides by one.
        soft_cap: They become soft_cap * tanh(logit / soft_cap), as Gemma 2 does; None where they do not.
    """

    scale: float
    soft_cap: float | None


def logit_rule(model: Any) -> LogitRule:
    """Read it from a Transformers model's config."""
    config = model.config.get_text_config()
    factor, divisor = (float(getattr(config, key, None) or 1.0) for key in ("logit_scale", "logits_scaling"))
    return LogitRule(factor / divisor, getattr(config, "final_logit_softcapping", None))


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
        self._rule = logit_rule(model)
        self.checked = self._matrix is not None and self._agrees_with(model)

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Logits of some hidden states, in the model's own dtype."""
        logits_NV = self._matrix(hidden_ND)
        scale, soft_cap = self._rule
        if scale != 1.0:
            logits_NV = logits_NV * scale
        if soft_cap is not None:
            logits_NV = torch.tanh(logits_NV / soft_cap) * soft_cap
        return logits_NV

    def chunks(self, hidden_ND: torch.Tensor, keep: Keep, positions_at_once: int) -> Iterator[Kept]:
        """What is kept of all positions, with the logits of `positions_at_once` in memory."""
        for start in range(0, len(hidden_ND), positions_at_once):
            logits_NV = self.logits(hidden_ND[start : start + positions_at_once])
            yield keep(logits_NV, slice(start, start + len(logits_NV)))

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
