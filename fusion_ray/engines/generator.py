"""Let a model answer, greedily: samples for the report, and the answers that a judge reads. No sampling anywhere."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fusion_ray.engines.models import load_model, load_tokenizer, longest_sequence, read_config
from fusion_ray.recipe import Dtype, OpenAIEngine, TransformersEngine, VllmEngine


class Generator(Protocol):
    """A model that continues token sequences with the most probable token, again and again.

    Attributes:
        max_length: Longest sequence, prompt and answer together; None where no limit is known.
    """

    max_length: int | None

    def generate(self, prompts: Sequence[np.ndarray], *, max_tokens: int, end_ids: Sequence[int]) -> list[str]:
        """Continue every prompt.

        Args:
            prompts: Token ids of the model's own tokenizer; each has at least one and leaves room for one more.
            max_tokens: Tokens to add at most; fewer where `max_length` comes first.
            end_ids: Tokens that end an answer.

        Returns:
            The new text of every prompt, without special tokens.

        Raises:
            EngineError: The engine died or refused a prompt.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


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
            attention=engine.attention,
            trust_remote_code=trust_remote_code,
        )
    if isinstance(engine, VllmEngine):
        from fusion_ray.engines.vllm import VllmGenerator

        return VllmGenerator(folder, engine, max_length, trust_remote_code=trust_remote_code, threads=threads)
    from fusion_ray.engines.openai import OpenAIGenerator

    return OpenAIGenerator(engine)


class TransformersGenerator:
    """Writes with Hugging Face Transformers, one prompt after the other; see `Generator`.

    Args:
        folder: Local Hugging Face model folder.
        max_length: Longest sequence, prompt and answer together; None is the model's own limit.
        dtype: `auto` is the checkpoint's own.
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
        attention: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._tokenizer = load_tokenizer(folder, trust_remote_code)
        self._model = load_model(folder, dtype, attention=attention, trust_remote_code=trust_remote_code)
        limits = [limit for limit in (max_length, longest_sequence(read_config(folder))) if limit is not None]
        self.max_length = min(limits, default=None)

    def generate(self, prompts: Sequence[np.ndarray], *, max_tokens: int, end_ids: Sequence[int]) -> list[str]:
        """See `Generator.generate`."""
        import torch
        from transformers import GenerationConfig

        ends = sorted(set(end_ids)) or None
        texts = []
        for prompt in prompts:
            room = max_tokens if self.max_length is None else max(1, min(max_tokens, self.max_length - len(prompt)))
            # A configuration of our own: a model's may ask for sampling, and these answers must not depend on chance.
            settings = GenerationConfig(
                do_sample=False, max_new_tokens=room, eos_token_id=ends, pad_token_id=ends[0] if ends else 0
            )
            ids = torch.from_numpy(np.asarray(prompt, dtype=np.int64))[None].to(self._model.device)
            made = self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            texts.append(str(self._tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)))
        return texts

    def close(self) -> None:
        """See `Generator.close`."""
        del self._model
