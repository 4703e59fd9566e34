"""Models behind a running OpenAI-compatible server that returns prompt log-probabilities, such as `vllm serve`.

For sources that are too large for actors of our own. The server must have been started with `--max-logprobs` of at
least top_k, and with the model whose tokenizer lies in the folder. A key, where the server wants one, is read from
the environment variable OPENAI_API_KEY.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import numpy as np

from fusion_ray.chat.vocabulary import read_vocabulary
from fusion_ray.errors import EngineError
from fusion_ray.models.folders import load_tokenizer
from fusion_ray.models.generator import Completion, DecodingOptions, Generator
from fusion_ray.models.scorer import check_request, empty_top_k
from fusion_ray.models.server import Server
from fusion_ray.recipe import OpenAIEngine
from fusion_ray.storage.topk import TopK


class OpenAIScorer:
    """Scores through a server; see `Scorer`.

    Args:
        folder: Folder of the model's tokenizer.
        top_k: Entries to keep at each position.
        engine: The recipe's engine section. `base_url` goes up to and with the version, such as
            `http://host:8000/v1`; without `served_model` the first model is taken that the server lists.
        first_wait_s: Wait before the first retry; it doubles each time, with some jitter.
        trust_remote_code: Run tokenizer code that lies in the folder.

    Raises:
        EngineError: The server cannot be reached, or serves no such model.
    """

    max_length: int | None = None  # The server knows, and says so in its answer.

    def __init__(
        self,
        folder: str,
        top_k: int,
        engine: OpenAIEngine,
        *,
        first_wait_s: float = 0.5,
        trust_remote_code: bool = False,
    ) -> None:
        self.n_tokens = len(read_vocabulary(load_tokenizer(folder, trust_remote_code)))
        self._top_k = top_k
        self._server = Server(
            engine.base_url,
            timeout_s=engine.timeout_s,
            retries=engine.retries,
            first_wait_s=first_wait_s,
            hint=f"Check that the server runs, that it was started with --max-logprobs {top_k} or more, and that it "
            "reads sequences of distributions.max_length.",
        )
        self._pool = ThreadPoolExecutor(max_workers=engine.concurrency)
        self._model = _choose_model(self._server, engine.served_model)

    def score(self, input_ids: list[np.ndarray], positions: list[np.ndarray]) -> list[TopK]:
        """See `Scorer.score`."""
        check_request(input_ids, positions, self.max_length, self.n_tokens)
        return list(self._pool.map(self._score_one, input_ids, positions))

    def close(self) -> None:
        """See `Scorer.close`."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _score_one(self, input_ids: np.ndarray, positions_T: np.ndarray) -> TopK:
        if not len(positions_T):
            return empty_top_k(self._top_k)
        ids = input_ids[: int(positions_T[-1]) + 1].tolist()
        request = {
            "model": self._model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": self._top_k,
        }
        choices = self._server.ask("completions", request).get("choices") or [{}]
        entries = choices[0].get("prompt_logprobs")
        if not isinstance(entries, list) or len(entries) != len(ids):
            raise EngineError(
                f"{self._server.base_url}: it answered without prompt_logprobs for each of {len(ids)} tokens. "
                "The server must support them, as vLLM does."
            )
        return self._read([entries[p] for p in positions_T], [ids[p] for p in positions_T])

    def _read(self, entries: list[dict[str, Any]], real_ids: list[int]) -> TopK:
        n_positions = len(entries)
        ids_TK = np.full((n_positions, self._top_k), -1, dtype=np.int32)
        logprobs_TK = np.full((n_positions, self._top_k), -np.inf, dtype=np.float32)
        real_T = np.empty(n_positions, dtype=np.float32)
        for t, (entry, real) in enumerate(zip(entries, real_ids, strict=True)):
            nats = {int(token): float(value["logprob"]) for token, value in entry.items()}
            real_T[t] = nats[real]
            if len(nats) > self._top_k and entry[str(real)].get("rank", 1) > self._top_k:
                del nats[real]  # The server lists the real token even where it is not among the most probable.
            kept = sorted((-value, token) for token, value in nats.items() if token < self.n_tokens)[: self._top_k]
            ids_TK[t, : len(kept)] = [token for _, token in kept]
            logprobs_TK[t, : len(kept)] = [-value for value, _ in kept]
        return TopK(ids_TK, logprobs_TK, real_T)


class OpenAIGenerator(Generator):
    """Writes through the same server; see `Generator`.

    Args:
        engine: The recipe's engine section.

    Raises:
        EngineError: The server cannot be reached, or serves no such model.
    """

    max_length: int | None = None  # The server knows, and says so in its answer.

    def __init__(self, engine: OpenAIEngine) -> None:
        self._server = Server(engine.base_url, timeout_s=engine.timeout_s, retries=engine.retries)
        self._pool = ThreadPoolExecutor(max_workers=engine.concurrency)
        self._model = _choose_model(self._server, engine.served_model)

    def _write(self, prompts: Sequence[np.ndarray], how: DecodingOptions) -> list[Completion]:
        def continue_one(prompt: np.ndarray, seed: int | None) -> Completion:
            request = {"model": self._model, "prompt": np.asarray(prompt).tolist(), "max_tokens": how.max_tokens}
            request |= {"temperature": how.temperature, "stop_token_ids": how.end_ids}
            request |= {} if seed is None else {"seed": seed}
            (choice,) = self._server.ask("completions", request).get("choices") or [{}]
            if not isinstance(choice.get("text"), str):
                raise EngineError(
                    f"{self._server.base_url}: it answered without a text. Expected OpenAI's completions."
                )
            return Completion(choice["text"], choice.get("finish_reason") == "stop")

        return list(self._pool.map(continue_one, prompts, how.seeds or repeat(None, len(prompts))))

    def close(self) -> None:
        """See `Generator.close`."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _choose_model(server: Server, served_model: str | None) -> str:
    served = server.models()
    if served_model is None and served:
        return served[0]
    if served_model not in served:
        raise EngineError(
            f"{server.base_url}: it serves {', '.join(served) or 'no model'}, and '{served_model}' was asked for. "
            "Set served_model to one of them."
        )
    return str(served_model)
