"""What a scoring engine is, and how the recipe's `engine` section becomes one."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from fusion_ray.algorithms.topk import TopK
from fusion_ray.errors import EngineError
from fusion_ray.recipe import Distributions, Model, OpenAIEngine, SampledStore, TransformersEngine, VllmEngine


class Scorer(Protocol):
    """A model that scores token sequences by teacher forcing: it reads each one once and generates nothing.

    Attributes:
        n_tokens: Length of the tokenizer: ids from here on are rows that pad the output head, and are never kept.
        max_length: Longest sequence the engine takes; None where the model has no limit.
    """

    n_tokens: int
    max_length: int | None

    def score(self, input_ids: list[np.ndarray], positions: list[np.ndarray]) -> list[TopK]:
        """Give the top-k distributions over the tokens at `positions` of each sequence, in input order.

        Where the model gives NaN, NaN comes back: `TopK.check` refuses it row by row, so one row spoils no other.

        Args:
            input_ids: Whole conversations, int32.
            positions: Indices in `input_ids` of the answer tokens, increasing and at least 1: the distribution
                over the token at p is what the model says after reading the tokens before p.

        Raises:
            EngineError: A sequence is not one the engine can take.
            DeadEngineError: The engine died; this process cannot score any more.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


class Sampling(NamedTuple):
    """How a scorer draws from distributions, where it keeps draws and not the top-k.

    Attributes:
        draws: Entries of each distribution.
        seed: Another seed gives other draws.
    """

    draws: int
    seed: int = 0


OpenScorer = Callable[[Model, Distributions, str], Scorer]


def open_scorer(model: Model, settings: Distributions, folder: str) -> Scorer:
    """Start the engine that a recipe asks for, for one of its models.

    Args:
        model: The model's part of the recipe.
        settings: The recipe's distributions section.
        folder: Where the model's files lie.
    """
    store = settings.store
    return make_scorer(
        model.engine or settings.engine,
        folder,
        top_k=settings.top_k,
        sampling=Sampling(store.draws, store.seed) if isinstance(store, SampledStore) else None,
        max_length=settings.max_length,
        threads=max(1, int(settings.cpus_per_actor)),
        trust_remote_code=model.trust_remote_code,
    )


def make_scorer(
    engine: TransformersEngine | VllmEngine | OpenAIEngine,
    folder: str,
    top_k: int,
    *,
    sampling: Sampling | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    threads: int | None = None,
) -> Scorer:
    """Start the engine that the recipe asks for, with the model of `folder`.

    Args:
        engine: The recipe's engine section.
        folder: Hugging Face model folder; the remote engine reads only its tokenizer.
        top_k: Entries to keep at each position; with `sampling`, draws are kept in their place.
        max_length: Longest sequence that will be asked for; vLLM reserves memory for it.
        trust_remote_code: Run model code that lies in the folder.
        threads: Threads of this process's torch; None leaves them as they are.

    Raises:
        EngineError: The folder or settings cannot give a scorer, the engine is not installed, or cannot draw.
    """
    if isinstance(engine, TransformersEngine):
        from fusion_ray.engines.transformers import TransformersScorer

        return TransformersScorer(
            folder,
            top_k,
            dtype=engine.dtype,
            tokens_per_batch=engine.tokens_per_batch,
            attention=engine.attention,
            sampling=sampling,
            trust_remote_code=trust_remote_code,
            threads=threads,
        )
    if isinstance(engine, VllmEngine):
        from fusion_ray.engines.vllm import VllmScorer

        return VllmScorer(
            folder,
            top_k,
            dtype=engine.dtype,
            tensor_parallel=engine.tensor_parallel,
            gpu_memory_share=engine.gpu_memory_share,
            tokens_per_batch=engine.tokens_per_batch,
            max_length=max_length,
            options=engine.options,
            sampling=sampling,
            trust_remote_code=trust_remote_code,
            threads=threads,
        )
    if sampling:
        raise EngineError(
            f"engine {engine.kind}: draws need the whole distribution at every position, and a server gives the "
            "largest entries only. Set the engine to vllm or transformers, or distributions.store to compact."
        )
    return _open_openai(engine, folder, top_k, trust_remote_code)


def _open_openai(engine: OpenAIEngine, folder: str, top_k: int, trust_remote_code: bool) -> Scorer:
    from fusion_ray.engines.openai import OpenAIScorer

    return OpenAIScorer(
        folder,
        top_k,
        base_url=engine.base_url,
        served_model=engine.served_model,
        concurrency=engine.concurrency,
        timeout_s=engine.timeout_s,
        retries=engine.retries,
        trust_remote_code=trust_remote_code,
    )


def check_request(
    input_ids: list[np.ndarray], positions: list[np.ndarray], max_length: int | None, n_outputs: int
) -> None:
    """Refuse sequences that no engine can score, before the engine sees them.

    Raises:
        EngineError: A sequence is too long, has a token the model does not know, or asks for an impossible position.
    """
    if len(input_ids) != len(positions):
        raise EngineError(f"score: {len(input_ids)} sequences and {len(positions)} lists of positions were given.")
    for row, (ids, asked) in enumerate(zip(input_ids, positions, strict=True)):
        if max_length is not None and len(ids) > max_length:
            raise EngineError(
                f"sequence {row}: {len(ids)} tokens, and the model reads at most {max_length}. "
                f"Set distributions.max_length to {max_length} or less."
            )
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= n_outputs):
            raise EngineError(
                f"sequence {row}: it holds the token id {int(ids.max())}, and the model has {n_outputs}. "
                "Check that the tokenizer in the folder is the model's own."
            )
        if len(asked) and (int(asked.min()) < 1 or int(asked.max()) >= len(ids)):
            raise EngineError(
                f"sequence {row}: positions {int(asked.min())} to {int(asked.max())} were asked for; "
                f"expected 1 to {len(ids) - 1}, for nothing predicts the first token."
            )


def check_sizes(folder: str, top_k: int, n_tokens: int, n_outputs: int, *, drawn: bool = False) -> None:
    """Refuse a tokenizer that is longer than the output head, and more entries than the tokenizer has tokens.

    Raises:
        EngineError: Either of the two.
    """
    if n_tokens > n_outputs:
        raise EngineError(
            f"{folder}: the tokenizer has {n_tokens} tokens and the model's output head {n_outputs}; the tokenizer "
            "belongs to another model, or the model's embeddings were not resized after tokens were added."
        )
    if top_k > n_tokens:
        name = "store.draws" if drawn else "top_k"
        raise EngineError(
            f"{folder}: {name} is {top_k} and the tokenizer has {n_tokens} tokens. Lower distributions.{name}."
        )


def empty_top_k(top_k: int) -> TopK:
    """The result for a sequence of which no position was asked for."""
    return TopK(
        np.zeros((0, top_k), dtype=np.int32), np.zeros((0, top_k), dtype=np.float32), np.zeros(0, dtype=np.float32)
    )
