"""The Transformers scorer: any architecture, on CPU or GPU, without ever holding all logits of a batch."""

import inspect
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from fusion_ray.algorithms.chat.token_ends import token_table
from fusion_ray.algorithms.topk import TopK
from fusion_ray.engines.head import Keep, Kept, OutputHead, keep_draws, keep_top_k, uniforms_of
from fusion_ray.engines.models import load_model, load_tokenizer, longest_sequence, read_config
from fusion_ray.engines.scorer import Sampling, check_request, check_sizes, empty_top_k
from fusion_ray.errors import DeadEngineError

# Logits held at once: 64 MB in float32 fits a CPU's caches and queues well enough; a GPU wants larger matrices.
_LOGITS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 28}


class _Batch(NamedTuple):
    """Rows of similar length, as indices into the request."""

    rows: list[int]
    length: int


class TransformersScorer:
    """Scores with Hugging Face Transformers; see `Scorer`.

    Sequences are batched by length, padded on the right (a causal model cannot see the padding, so no mask is
    needed), and read only up to their last answer token.

    Args:
        folder: Hugging Face model folder, safetensors only.
        top_k: Entries to keep at each position.
        dtype: `auto` is the checkpoint's own.
        tokens_per_batch: Padded tokens read at once.
        attention: Transformers' `attn_implementation`.
        sampling: Draw from the distributions and keep what was drawn, in place of their top-k.
        trust_remote_code: Run model code that lies in the folder.
        threads: Threads of this process's torch; None leaves them as they are.
        device: None is a GPU where there is one.

    Raises:
        EngineError: The folder cannot be loaded, its tokenizer is longer than its output head, or k is too large.
    """

    def __init__(
        self,
        folder: str,
        top_k: int,
        *,
        dtype: str = "auto",
        tokens_per_batch: int = 8192,
        attention: str | None = None,
        sampling: Sampling | None = None,
        trust_remote_code: bool = False,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.max_length = longest_sequence(read_config(folder))
        self.n_tokens = len(token_table(load_tokenizer(folder, trust_remote_code)).pieces)
        self._model = load_model(folder, dtype, attention=attention, trust_remote_code=trust_remote_code, device=device)
        self._head = OutputHead(self._model)
        self._n_outputs = self._head.n_outputs
        self._folder, self._tokens_per_batch, self._sampling = folder, tokens_per_batch, sampling
        self._top_k = sampling.draws if sampling else top_k
        check_sizes(folder, self._top_k, self.n_tokens, self._n_outputs, drawn=sampling is not None)

    def score(self, input_ids: list[np.ndarray], positions: list[np.ndarray]) -> list[TopK]:
        """See `Scorer.score`."""
        check_request(input_ids, positions, self.max_length, self._n_outputs)
        results: list[TopK] = [empty_top_k(self._top_k)] * len(input_ids)
        lengths = [int(asked[-1]) if len(asked) else 0 for asked in positions]
        for batch in _batches(lengths, self._tokens_per_batch):
            try:
                scored = self._score_batch(batch, input_ids, positions)
            except RuntimeError as error:
                if not is_fatal(error):
                    raise
                raise DeadEngineError(
                    f"{self._folder}: the device failed while scoring {len(batch.rows)} sequences of up to "
                    f"{batch.length} tokens ({error}). Against lack of memory lower tokens_per_batch."
                ) from error
            for row, top_k in zip(batch.rows, scored, strict=True):
                results[row] = top_k
        return results

    def close(self) -> None:
        """See `Scorer.close`."""
        del self._model, self._head

    @torch.inference_mode()
    def _score_batch(self, batch: _Batch, input_ids: list[np.ndarray], positions: list[np.ndarray]) -> list[TopK]:
        device = self._model.device
        real_ids_N = torch.from_numpy(
            np.concatenate([input_ids[row][positions[row]] for row in batch.rows]).astype(np.int64)
        ).to(device)
        keep = self._keep(batch, input_ids, positions, real_ids_N)
        if self._head.checked:
            ids_BT = np.zeros((len(batch.rows), batch.length), dtype=np.int64)
            for b, row in enumerate(batch.rows):
                length = min(batch.length, len(input_ids[row]))
                ids_BT[b, :length] = input_ids[row][:length]
            hidden_BTD = self._model.base_model(
                input_ids=torch.from_numpy(ids_BT).to(device), use_cache=False
            ).last_hidden_state
            at = np.concatenate([b * batch.length + positions[row] - 1 for b, row in enumerate(batch.rows)])
            hidden_ND = hidden_BTD.flatten(0, 1)[torch.from_numpy(at).to(device)]
            chunks = self._head.chunks(hidden_ND, keep, self._positions_at_once())
        else:
            chunks = self._own_forward(batch, input_ids, positions, keep)
        kept = [Kept(*(part.cpu() for part in chunk)) for chunk in chunks]
        ids_NK = torch.cat([chunk.ids_NK for chunk in kept]).numpy().astype(np.int32)
        logprobs_NK = torch.cat([chunk.logprobs_NK for chunk in kept]).numpy()
        real_N = torch.cat([chunk.real_logprobs_N for chunk in kept]).numpy()
        cuts = np.cumsum([len(positions[row]) for row in batch.rows])[:-1]
        split = [np.split(array, cuts) for array in (ids_NK, logprobs_NK, real_N)]
        return [TopK(*parts) for parts in zip(*split, strict=True)]

    def _keep(
        self, batch: _Batch, input_ids: list[np.ndarray], positions: list[np.ndarray], real_ids_N: torch.Tensor
    ) -> Keep:
        """The k largest, or draws: of a row always the same ones, whatever it is batched with."""
        if self._sampling is None:
            return lambda logits, at: keep_top_k(logits, real_ids_N[at], self._top_k, self.n_tokens)
        seed = self._sampling.seed
        tokens = {row: torch.from_numpy(input_ids[row][1:]) for row in batch.rows}
        uniforms = [uniforms_of(ids_N, seed)[positions[row] - 1] for row, ids_N in tokens.items()]
        uniforms_N = torch.cat(uniforms).to(real_ids_N.device)
        return lambda logits, at: keep_draws(logits, real_ids_N[at], uniforms_N[at], self._top_k, self.n_tokens)

    def _own_forward(
        self, batch: _Batch, input_ids: list[np.ndarray], positions: list[np.ndarray], keep: Keep
    ) -> Iterator[Kept]:
        """One row at a time through the model's own forward, for an architecture whose head does more than we know."""
        start = 0
        sliced = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        for row in batch.rows:
            ids_1T = torch.from_numpy(input_ids[row][: int(positions[row][-1])].astype(np.int64))[None]
            at = torch.from_numpy(positions[row] - 1).to(self._model.device)
            only = {"logits_to_keep": at} if sliced else {}
            logits_NV = self._model(input_ids=ids_1T.to(self._model.device), use_cache=False, **only).logits[0]
            logits_NV = logits_NV if sliced else logits_NV[at]
            for part in logits_NV.split(self._positions_at_once()):
                yield keep(part, slice(start, start + len(part)))
                start += len(part)

    def _positions_at_once(self) -> int:
        return max(1, _LOGITS_AT_ONCE.get(self._model.device.type, 1 << 24) // self._n_outputs)


def is_fatal(error: RuntimeError) -> bool:
    """Whether an error leaves the device unusable for this process, or its memory in pieces."""
    return isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error)


def _batches(lengths: list[int], tokens_per_batch: int) -> list[_Batch]:
    """Cut the rows, longest first, into batches of at most `tokens_per_batch` padded tokens (or of one row)."""
    order = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: (-lengths[row], row))
    batches: list[_Batch] = []
    for row in order:
        if not batches or (len(batches[-1].rows) + 1) * batches[-1].length > tokens_per_batch:
            batches.append(_Batch([], lengths[row]))
        batches[-1].rows.append(row)
    return batches
