"""The Transformers scorer: any architecture, on CPU or GPU, without ever holding all logits of a batch."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from fusion_ray.chat.vocabulary import read_vocabulary
from fusion_ray.errors import DeadEngineError, EngineError
from fusion_ray.models.folders import end_tokens, load_model, load_tokenizer, longest_sequence, read_config
from fusion_ray.models.generator import Completion, DecodingOptions, Generator
from fusion_ray.models.head import Keep, Kept, OutputHead, keep_draws, keep_top_k, uniforms_of
from fusion_ray.models.scorer import DrawSettings, check_request, check_sizes, empty_top_k
from fusion_ray.recipe import TransformersEngine
from fusion_ray.storage.topk import TopK

_DEFAULT = TransformersEngine()

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
        engine: The recipe's engine section.
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
        engine: TransformersEngine = _DEFAULT,
        *,
        sampling: DrawSettings | None = None,
        trust_remote_code: bool = False,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.max_length = longest_sequence(read_config(folder))
        self.n_tokens = len(read_vocabulary(load_tokenizer(folder, trust_remote_code)))
        self._model = load_model(folder, engine, trust_remote_code=trust_remote_code, device=device)
        self._head = OutputHead(self._model)
        self._n_outputs = self._head.n_outputs
        self._folder, self._tokens_per_batch, self._sampling = folder, engine.tokens_per_batch, sampling
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
        """What to keep: the k largest, or draws, which for one row are the same in any batch."""
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


class TransformersGenerator(Generator):
    """Writes with Hugging Face Transformers; see `Generator`.

    Args:
        folder: Local Hugging Face model folder.
        max_length: Longest sequence, prompt and answer together; None is the model's own limit.
        engine: The recipe's engine section; where answers are drawn, `tokens_per_batch` counts padded tokens that are
            held at once, written ones among them.
        trust_remote_code: Run model code that lies in the folder.

    Raises:
        EngineError: The folder holds no model that can be loaded.
    """

    def __init__(
        self,
        folder: str,
        max_length: int | None = None,
        engine: TransformersEngine = _DEFAULT,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        from transformers import GenerationConfig

        self._folder, self._tokens_per_batch = folder, engine.tokens_per_batch
        self._tokenizer = load_tokenizer(folder, trust_remote_code)
        self._model = load_model(folder, engine, trust_remote_code=trust_remote_code)
        # Transformers fills what a call leaves open from the model's own generation_config.json, such as penalties for
        # repetition. What is written must be what the model says.
        self._model.generation_config = GenerationConfig()
        self.own_ends = end_tokens(folder, self._tokenizer)
        head = self._model.get_output_embeddings()
        if head is not None:
            # Transformers hands over the last positions as a slice, for which torch copies the head for each prompt.
            head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
        limits = [limit for limit in (max_length, longest_sequence(read_config(folder))) if limit is not None]
        self.max_length = min(limits, default=None)

    def _write(self, prompts: Sequence[np.ndarray], how: DecodingOptions) -> list[Completion]:
        from fusion_ray.models.transformers import is_fatal

        written = [Completion("", ended=False)] * len(prompts)
        # Greedy answers come one by one: an answer must not depend on the last bits of a batch.
        groups = self._together(prompts, how.max_tokens) if how.seeds else ([row] for row in range(len(prompts)))
        for rows in groups:
            seeds = [how.seeds[row] for row in rows] if how.seeds else []
            choose = _drawing(how.temperature, seeds, len(self._tokenizer)) if seeds else None
            try:
                made = self._continue([prompts[row] for row in rows], how.max_tokens, how.end_ids, choose)
            except RuntimeError as error:
                if not is_fatal(error):
                    raise
                raise EngineError(
                    f"{self._folder}: the device failed while continuing {len(rows)} prompts of up to "
                    f"{len(prompts[rows[-1]])} tokens ({error}). Against lack of memory lower tokens_per_batch."
                ) from error
            for row, tokens in zip(rows, made, strict=True):
                stops = np.flatnonzero(np.isin(tokens, how.end_ids))
                tokens = tokens[: stops[0]] if len(stops) else tokens
                written[row] = Completion(self._tokenizer.decode(tokens, skip_special_tokens=True), bool(len(stops)))
        return written

    def _continue(
        self, prompts: list[np.ndarray], max_tokens: int, end_ids: list[int], choose: Any = None
    ) -> np.ndarray:
        """The new tokens of prompts with equal room, up to the longest; ignore what follows an end token."""
        length = max(map(len, prompts))
        room = self._room(length, max_tokens)
        made = self._generate(prompts, choose, max_new_tokens=room, eos_token_id=end_ids or None)
        return np.asarray(made[:, length:].cpu())

    def _generate(self, prompts: list[np.ndarray], choose: Any, **settings: Any) -> Any:
        """Call Transformers; prompts shorter than the longest are padded before their first token."""
        import torch
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask[row, width - len(prompt) :] = 1
        settings |= {"do_sample": False, "pad_token_id": (settings.get("eos_token_id") or [0])[0]}
        return self._model.generate(
            ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            generation_config=GenerationConfig(**settings),
            logits_processor=[choose] if choose else [],
        )

    def _together(self, prompts: Sequence[np.ndarray], max_tokens: int) -> Iterator[list[int]]:
        """Cut the prompts into batches of equal room, and of equal length where the model reads padding as text."""
        lengths = [len(prompt) for prompt in prompts]
        rooms = [self._room(length, max_tokens) for length in lengths]
        order = sorted(range(len(prompts)), key=lambda row: lengths[row])
        for _, rows in groupby(order, key=lambda row: rooms[row] if self._takes_padding else lengths[row]):
            found: list[int] = []
            for row in rows:
                if found and (len(found) + 1) * (lengths[row] + rooms[row]) > self._tokens_per_batch:
                    yield found
                    found = []
                found.append(row)
            yield found

    @cached_property
    def _takes_padding(self) -> bool:
        """Whether padding before a prompt changes nothing after it; a recurrent model may read it as text."""
        import torch

        prompts = [np.arange(length) % len(self._tokenizer) for length in (3, 8)]

        def first(_: Any, logits_BV: Any) -> Any:  # Which tokens come does not matter, but both must continue one text.
            return torch.full_like(logits_BV, -torch.inf).index_fill_(1, torch.tensor(0, device=logits_BV.device), 0.0)

        settings = {"max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
        alone, padded = (
            torch.stack([step[0] for step in self._generate(given, first, **settings).logits])
            for given in (prompts[:1], prompts)
        )
        tolerance = torch.finfo(self._model.dtype).eps ** 0.5
        spread = (alone.float() - alone.float().mean()).norm()
        return bool((alone.float() - padded.float()).norm() <= tolerance * spread)

    def close(self) -> None:
        """See `Generator.close`."""
        del self._model


def _drawing(temperature: float, seeds: Sequence[int], n_tokens: int) -> Callable[[Any, Any], Any]:
    """Turns logits [B, V] into a choice of one token, drawn for each prompt from random numbers of its own."""
    import torch

    numbers = [np.random.default_rng(seed) for seed in seeds]

    def draw(_: Any, logits_BV: Any) -> Any:
        logits_BV = logits_BV.double() / temperature
        logits_BV[:, n_tokens:] = -torch.inf  # Rows that pad the output head.
        below_BV = torch.softmax(logits_BV, dim=-1).cumsum(dim=-1)
        points_B1 = torch.tensor([[number.random()] for number in numbers], device=below_BV.device)
        drawn_B1 = torch.searchsorted(below_BV, points_B1 * below_BV[:, -1:], right=True)
        chosen_BV = torch.full_like(logits_BV, -torch.inf)
        return chosen_BV.scatter_(1, drawn_B1.clamp(max=n_tokens - 1), 0.0).float()

    return draw
