"""Let a model write: greedily for the report and its judge, by chance where sources answer the corpus anew."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from fusion_ray.engines.models import end_tokens, load_model, load_tokenizer, longest_sequence, read_config
from fusion_ray.errors import EngineError
from fusion_ray.recipe import Dtype, OpenAIEngine, TransformersEngine, VllmEngine


class Written(NamedTuple):
    """What a model wrote after a prompt.

    Attributes:
        text: Without special tokens.
        ended: An end token came; else there was no room for more.
    """

    text: str
    ended: bool


class Writing(NamedTuple):
    """How prompts are continued; see `Generator.sample`. Greedily without seeds, which are one for each prompt."""

    max_tokens: int
    end_ids: list[int]
    temperature: float = 0.0
    seeds: Sequence[int] | None = None


class Generator(ABC):
    """A model that continues token sequences.

    Attributes:
        max_length: Longest sequence, prompt and answer together; None where no limit is known.
        own_ends: Tokens that end an answer by the model's own settings, whatever template it is read by.
    """

    max_length: int | None
    own_ends: frozenset[int] = frozenset()

    def generate(self, prompts: Sequence[np.ndarray], *, max_tokens: int, end_ids: Sequence[int]) -> list[str]:
        """Continue every prompt with the most probable token, again and again.

        Args:
            prompts: Token ids of the model's own tokenizer; each has at least one and leaves room for one more.
            max_tokens: Tokens to add at most; fewer where `max_length` comes first.
            end_ids: Tokens that end an answer, beside the model's own.

        Returns:
            The new text of every prompt, without special tokens.

        Raises:
            EngineError: The engine died or refused a prompt.
        """
        return [written.text for written in self._write(prompts, Writing(max_tokens, self._ends(end_ids)))]

    def sample(
        self,
        prompts: Sequence[np.ndarray],
        *,
        max_tokens: int,
        end_ids: Sequence[int],
        temperature: float,
        seeds: Sequence[int],
    ) -> list[Written]:
        """Continue every prompt with tokens drawn from the model's distributions; see `generate`.

        Args:
            prompts, max_tokens, end_ids: As for `generate`.
            temperature: Divides the logits; 1 draws from what the model says.
            seeds: One for each prompt, below 2^31: what is drawn does not depend on the other prompts.
        """
        return self._write(prompts, Writing(max_tokens, self._ends(end_ids), temperature, seeds))

    def _ends(self, end_ids: Sequence[int]) -> list[int]:
        return sorted(self.own_ends.union(end_ids))

    def _room(self, length: int, max_tokens: int) -> int:
        """How many tokens may follow a prompt."""
        return max_tokens if self.max_length is None else max(1, min(max_tokens, self.max_length - length))

    @abstractmethod
    def _write(self, prompts: Sequence[np.ndarray], how: Writing) -> list[Written]:
        """Continue every prompt."""

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory."""


def make_generator(
    engine: TransformersEngine | VllmEngine | OpenAIEngine,
    folder: str,
    *,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    threads: int | None = None,
) -> Generator:
    """Start the engine that scores this model, for writing; see `make_scorer` for the arguments.

    Raises:
        EngineError: The folder or the settings cannot give a generator, or the engine is not installed.
    """
    if isinstance(engine, TransformersEngine):
        return TransformersGenerator(
            folder,
            max_length,
            dtype=engine.dtype,
            tokens_per_batch=engine.tokens_per_batch,
            attention=engine.attention,
            trust_remote_code=trust_remote_code,
        )
    if isinstance(engine, VllmEngine):
        from fusion_ray.engines.vllm import VllmGenerator

        return VllmGenerator(folder, engine, max_length, trust_remote_code=trust_remote_code, threads=threads)
    from fusion_ray.engines.openai import OpenAIGenerator

    return OpenAIGenerator(engine)


class TransformersGenerator(Generator):
    """Writes with Hugging Face Transformers; see `Generator`.

    Args:
        folder: Local Hugging Face model folder.
        max_length: Longest sequence, prompt and answer together; None is the model's own limit.
        dtype: `auto` is the checkpoint's own.
        tokens_per_batch: Padded tokens, written ones among them, that are held at once where answers are drawn.
        attention: As in the recipe's engine.
        trust_remote_code: Run model code that lies in the folder.

    Raises:
        EngineError: The folder holds no model that can be loaded.
    """

    def __init__(
        self,
        folder: str,
        max_length: int | None = None,
        *,
        dtype: Dtype | str = "auto",
        tokens_per_batch: int = 8192,
        attention: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        from transformers import GenerationConfig

        self._folder, self._tokens_per_batch = folder, tokens_per_batch
        self._tokenizer = load_tokenizer(folder, trust_remote_code)
        self._model = load_model(folder, dtype, attention=attention, trust_remote_code=trust_remote_code)
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

    def _write(self, prompts: Sequence[np.ndarray], how: Writing) -> list[Written]:
        from fusion_ray.engines.transformers import is_fatal

        written = [Written("", ended=False)] * len(prompts)
        # Greedy answers come one by one: what is written for a prompt must not hang on the last bits of a batch.
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
                written[row] = Written(self._tokenizer.decode(tokens, skip_special_tokens=True), bool(len(stops)))
        return written

    def _continue(
        self, prompts: list[np.ndarray], max_tokens: int, end_ids: list[int], choose: Any = None
    ) -> np.ndarray:
        """The new tokens of prompts with equal room; what follows an end token means nothing."""
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
        """Numbers of prompts that are continued at once: with equal room; of one length where padding does harm."""
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
        """Whether padding before a prompt leaves what follows as it is; a recurrent model may read it as text."""
        import torch

        prompts = [np.arange(length) % len(self._tokenizer) for length in (3, 8)]

        def first(_: Any, logits_BV: Any) -> Any:  # Whatever the model says: both ways must go on from one text.
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
