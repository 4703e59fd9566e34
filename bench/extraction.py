"""Scoring a corpus: tokens a second and peak memory of our scorers, of bare prefill, and of a naive loop.

    python bench/extraction.py           SmolLM2-135M, 12 chats
    python bench/extraction.py 40        as many chats

Every case reads the same chats with the same model in a process of its own. Those of one engine take turns, and of each
the best of five rounds counts, for a busy machine only ever slows. The naive loop reads once. Tokens are those of the
chats; padding does not count. Goals are judged by processor time, which others on a shared machine disturb little; on a
GPU look at the clock.

Bare prefill is the same engine reading the same tokens without any log-probability. There are two of it: with the
logits at the answer positions (in vLLM at all positions), made and thrown away, which is what no scorer can do without;
and the body alone, without the output head (vLLM samples one token a chat, so it has the head for that one position).
vLLM's own way is its `prompt_logprobs`, as it ships. The naive loop is what the research code of FuseLLM and FuseChat
does: pad to 2,048, all logits in half precision, top-k, Python lists.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chats import chats
from measurement import Measurement, report
from real_models import cache_folder, real_model

from fusion_ray.chat import render_all
from fusion_ray.models.folders import load_model, load_tokenizer
from fusion_ray.models.transformers import TransformersScorer, _batches
from fusion_ray.recipe import TransformersEngine

TOP_K = 10
PADDED = 2048
ROUNDS = 5
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))

Work = Callable[[list[np.ndarray], list[np.ndarray]], object]


def main(n_chats: int) -> None:
    """Run all cases and compare them."""
    request = cache_folder() / "extraction.npz"
    _write_request(request, n_chats)
    found: dict[str, dict | None] = {}
    alone = [[case] for case in VLLM]  # engines do not share a GPU
    for cases in (list(TRANSFORMERS), *(alone if torch.cuda.is_available() else [list(VLLM)]), list(NAIVE)):
        found |= _run_together(cases, request, rounds=1 if "naive" in cases else ROUNDS)
    ours = found["transformers"]
    _report("Transformers scorer against the naive loop", ours, found["naive"], "naive loop", 3.0)
    bare = "prefill with the logits of answers"
    _report("Transformers scorer against bare prefill", ours, found["transformers logits"], bare, 0.9)
    _report("Transformers scorer against its body", ours, found["transformers bare"], "prefill without head", None)
    if found["vllm"] is not None:
        ours = found["vllm"]
        _report("vLLM scorer against bare prefill", ours, found["vllm logits"], "prefill with all logits", None)
        _report("vLLM scorer against its body", ours, found["vllm bare"], "prefill without head", None)
        _report("vLLM scorer against vLLM's own way", ours, found["vllm own"], "vLLM's prompt_logprobs", None)
        _report("vLLM scorer against the naive loop", ours, found["naive"], "naive loop", 3.0)


def _report(case: str, ours: dict | None, peer: dict | None, peer_name: str, goal: float | None) -> None:
    if ours is None or peer is None:
        return
    one, other = ours["tokens_per_cpu_s"], peer["tokens_per_cpu_s"]
    holds = None if goal is None else one / other >= goal
    words = None if goal is None else f"ratio >= {goal}"
    unit = "tokens per processor second"
    report(Measurement("extraction", case, unit, one, other, peer_name, one / other, words, holds))
    for key, unit in (("tokens_per_s", "tokens per second"), ("peak_gib", "peak memory in GiB")):
        report(Measurement("extraction", case, unit, ours[key], peer[key], peer_name, ours[key] / peer[key]))


def _run_together(cases: list[str], request: Path, rounds: int) -> dict[str, dict | None]:
    """Let the cases, each in a process of its own, read the chats in turns; of each the best round counts."""
    with ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        commands = {case: [sys.executable, __file__, "--case", case, str(request)] for case in cases}
        running = {case: stack.enter_context(subprocess.Popen(commands[case], **pipes)) for case in cases}
        found = {case: [_answer(running[case])] for case in cases}
        for _ in range(rounds):
            for case, process in running.items():
                if found[case][-1] is not None:
                    process.stdin.write("again\n")
                    process.stdin.flush()
                    found[case].append(_answer(process))
    return {case: _best(answers[1:]) for case, answers in found.items()}


def _answer(process: subprocess.Popen) -> dict | None:
    """The next JSON line of a case; None where it has ended."""
    return next((json.loads(line) for line in process.stdout if line.startswith("{")), None)


def _best(rounds: list[dict | None]) -> dict | None:
    if not rounds or None in rounds:
        return None
    return {key: max(answer[key] for answer in rounds) for key in rounds[0]}


def _write_request(path: Path, n_chats: int) -> None:
    tokenizer = load_tokenizer(real_model("smollm2"))
    rows = render_all(tokenizer, chats(answer_characters=1200)[:n_chats])
    arrays = {f"ids{i}": row.input_ids for i, row in enumerate(rows)}
    np.savez(path, **arrays, **{f"at{i}": row.positions for i, row in enumerate(rows)})


def _measure(case: str, path: str) -> None:
    saved = np.load(path)
    ids = [saved[f"ids{i}"] for i in range(len(saved.files) // 2)]
    positions = [saved[f"at{i}"] for i in range(len(ids))]
    work = CASES[case](real_model("smollm2"))
    work([ids[0][:50]], [np.arange(1, 50)])  # the first call compiles and allocates
    print("{}", flush=True)
    for _ in sys.stdin:
        started, cpu_started = time.perf_counter(), time.process_time()
        work(ids, positions)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        tokens = sum(map(len, ids))
        found = {"tokens_per_s": tokens / seconds, "tokens_per_cpu_s": tokens / cpu_seconds, "peak_gib": peak}
        print(json.dumps(found), flush=True)


def _transformers(folder: str) -> Work:
    return TransformersScorer(folder, TOP_K, engine=TransformersEngine(tokens_per_batch=2048), threads=THREADS).score


def _transformers_bare(folder: str, logits_at_once: int = 0) -> Work:
    torch.set_num_threads(THREADS)
    model = load_model(folder)

    @torch.inference_mode()
    def read(ids: list[np.ndarray], positions: list[np.ndarray]) -> None:
        for batch in _batches([int(at[-1]) for at in positions], 2048):
            ids_BT = np.zeros((len(batch.rows), batch.length), dtype=np.int64)
            for b, row in enumerate(batch.rows):
                ids_BT[b, : batch.length] = np.resize(ids[row], batch.length)
            hidden_BTD = model.base_model(input_ids=torch.from_numpy(ids_BT), use_cache=False).last_hidden_state
            if logits_at_once:
                at = np.concatenate([b * batch.length + positions[row] - 1 for b, row in enumerate(batch.rows)])
                for hidden in hidden_BTD.flatten(0, 1)[torch.from_numpy(at)].split(logits_at_once):
                    model.lm_head(hidden)

    return read


def _transformers_logits(folder: str) -> Work:
    return _transformers_bare(folder, logits_at_once=341)  # as the scorer: 2 ** 24 over this model's 49,152 tokens


def _vllm(folder: str) -> Work:
    from fusion_ray.models.vllm import VllmScorer

    return VllmScorer(folder, TOP_K, max_length=PADDED, threads=THREADS).score


def _vllm_bare(folder: str, top_k: int | None = None, change: Callable[[Any], None] | None = None) -> Work:
    from vllm import SamplingParams

    from fusion_ray.models.vllm import VllmScorer

    engine = VllmScorer(folder, TOP_K, max_length=PADDED, threads=THREADS)._engine
    if change:
        engine.collective_rpc(lambda worker: change(worker.model_runner.sampler))
    settings = SamplingParams(max_tokens=1, temperature=0, detokenize=False, prompt_logprobs=top_k, flat_logprobs=True)

    def read(ids: list[np.ndarray], _: list[np.ndarray]) -> None:
        engine.generate([{"prompt_token_ids": row.tolist()} for row in ids], settings, use_tqdm=False)

    return read


def _vllm_logits(folder: str) -> Work:
    from vllm.v1.outputs import LogprobsTensors

    def keep_nothing(_: torch.Tensor, k: int, ids: torch.Tensor) -> LogprobsTensors:
        return LogprobsTensors(torch.zeros(len(ids), k + 1, dtype=torch.int32), torch.zeros(len(ids), k + 1), ids)

    return _vllm_bare(folder, 0, lambda sampler: setattr(sampler, "gather_logprobs", keep_nothing))


def _vllm_own(folder: str) -> Work:
    def change(sampler: Any) -> None:
        del sampler.compute_logprobs, sampler.gather_logprobs  # ours; the class has its own

    return _vllm_bare(folder, TOP_K, change)


def _naive(folder: str) -> Work:
    torch.set_num_threads(THREADS)
    model = load_model(folder)

    @torch.inference_mode()
    def read(ids: list[np.ndarray], _: list[np.ndarray]) -> list:
        stored = []
        for start in range(0, len(ids), 2):
            rows = ids[start : start + 2]
            ids_BT = torch.zeros(len(rows), PADDED, dtype=torch.int64)
            mask_BT = torch.zeros_like(ids_BT)
            for b, row in enumerate(rows):
                ids_BT[b, : len(row)] = torch.from_numpy(row.astype(np.int64))
                mask_BT[b, : len(row)] = 1
            logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits.to(torch.float16)
            top = logits_BTV.topk(TOP_K, dim=-1)
            stored += zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return stored

    return read


TRANSFORMERS: dict[str, Callable[[str], Work]] = {
    "transformers": _transformers,
    "transformers logits": _transformers_logits,
    "transformers bare": _transformers_bare,
}
VLLM = {"vllm": _vllm, "vllm logits": _vllm_logits, "vllm own": _vllm_own, "vllm bare": _vllm_bare}
NAIVE = {"naive": _naive}
CASES = TRANSFORMERS | VLLM | NAIVE

if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        _measure(sys.argv[2], sys.argv[3])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
