"""What each alignment mode makes of a real model's distributions; the table of docs/fused.md."""

import hashlib
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from chats import chats
from gold import measure_gold
from measurement import Measurement, report
from real_models import cache_folder, real_model
from real_tokenizers import real_tokenizer
from scored import answers_of, score_with_model
from tokenizers import Tokenizer

from fusion_ray.chat.answer_tokens import AnswerTokens
from fusion_ray.fused.align.exact import Projection, project
from fusion_ray.fused.align.projector import Projector, build_projector
from fusion_ray.fused.align_published.dtw import count_pairs, project_dtw
from fusion_ray.fused.align_published.vocabulary_map import build_map
from fusion_ray.storage.topk import TopK

PIVOTS = ("llama2", "mistral_v1", "llama3_1", "qwen3", "gemma3", "deepseek_v3")
SOURCES = ("smollm2", "gemma3")
ROWS, TOP_K = 24, 10
COLUMNS = (
    "pivot <- source", "mode", "moved", "one-hot", "wrong byte", "mass kept", "mass lost", "real token lost",
    "bits per byte", "tokens/s",
)  # fmt: skip


class Scored(NamedTuple):
    """Texts as a source reads them, with its distributions."""

    tokenizer: Tokenizer
    answers: AnswerTokens
    topk: TopK


def measure_modes() -> None:
    """Print the table, and report coverage and conservation of every pair."""
    texts = [row[-1]["content"] for row in chats()[:ROWS]]
    n_bytes = sum(len(text.encode()) for text in texts)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for source in SOURCES:
        scored = _score(source, texts)
        kept, bits = f"{1 - scored.topk.tail_T.mean():.1%}", _bits(scored.topk.nll_nats, n_bytes)
        print(f"| {source} itself | | | | | {kept} | | | {bits} | |")
        for pivot in PIVOTS:
            if pivot != source:
                _measure_pair(pivot, source, scored, texts, n_bytes)


def _measure_pair(pivot: str, source: str, scored: Scored, texts: list[str], n_bytes: int) -> None:
    tokenizer = real_tokenizer(pivot)
    projector = build_projector(tokenizer, scored.tokenizer)
    ours = answers_of(tokenizer, texts)
    for mode in ("bytes", "em", "mined", "ms"):
        found, seconds = _align(mode, tokenizer, ours, scored, projector)
        print(_row(f"{pivot} <- {source}", mode, found, len(ours) / seconds, n_bytes), flush=True)
        if mode == "bytes":
            covered = found.counts["covered"] / found.counts["positions"]
            _report(f"coverage: {pivot} <- {source}", "share", covered, "1.0", covered == 1.0)
            own = scored.topk.nll_nats / np.log(2) / n_bytes
            lost = found.counts["projected_nll"] / np.log(2) / n_bytes - own
            _report(f"projected less own nll: {pivot} <- {source}", "bits/byte", lost, "<= 0", lost <= 1e-6)
    for strategy in ("observed", "bayesian"):
        gold = measure_gold(strategy, tokenizer, ours, scored.tokenizer, scored.answers, scored.topk)
        shares = [gold.taught / gold.positions, 0.0, gold.wrong_byte / gold.positions, gold.mass_kept, gold.mass_lost]
        shares.append(gold.real_lost / gold.taught)
        print(
            f"| {pivot} <- {source} | GOLD, {strategy} | "
            + " | ".join(f"{share:.1%}" for share in shares)
            + " | - | - |"
        )


def _align(
    mode: str, tokenizer: Tokenizer, ours: AnswerTokens, scored: Scored, projector: Projector
) -> tuple[Projection, float]:
    """Align once to compile and to meet every string, then again on the clock."""
    if mode == "bytes":
        project(ours, scored.answers, scored.topk, projector)
        started = time.thread_time()
        return project(ours, scored.answers, scored.topk, projector), time.thread_time() - started
    exact = build_map(tokenizer, scored.tokenizer, "em")
    counts = count_pairs(ours, scored.answers, exact, projector) if mode == "ms" else None
    mapping = build_map(tokenizer, scored.tokenizer, mode, counts=counts)  # type: ignore[arg-type]
    project_dtw(ours, scored.answers, scored.topk, projector, mapping)
    started = time.thread_time()
    return project_dtw(ours, scored.answers, scored.topk, projector, mapping), time.thread_time() - started


def _row(pair: str, mode: str, found: Projection, speed: float, n_bytes: int) -> str:
    positions = found.counts["positions"]
    covered_T = found.covered_T
    if mode == "bytes":
        moved, one_hot, wrong, lost = found.counts["covered"], 0.0, 0.0, 0.0
        kept = float(np.exp(found.topk.logprobs_TK[covered_T].astype(np.float64)).sum(axis=1).mean())
        bits = _bits(found.counts["projected_nll"], n_bytes)
    else:
        moved, one_hot, wrong = (found.counts[key] for key in ("transferred", "one_hot", "wrong_boundary"))
        kept = found.counts["mass_moved"] / max(moved, 1)
        lost = (found.counts["mass_unmapped"] + found.counts["mass_collided"]) / max(moved, 1)
        bits = "-"
    gone = float(np.isneginf(found.topk.real_logprobs_T[covered_T]).mean())
    shares = [moved / positions, one_hot / positions, wrong / positions, kept, lost, gone]
    return f"| {pair} | {mode} | " + " | ".join(f"{share:.1%}" for share in shares) + f" | {bits} | {speed:,.0f} |"


def _score(name: str, texts: list[str]) -> Scored:
    """Distributions of a real model; kept on disk, because they take minutes."""
    key = hashlib.sha256("\0".join([name, str(TOP_K), *texts]).encode()).hexdigest()[:16]
    file = Path(cache_folder()) / "scored" / f"{name}-{key}.npz"
    if not file.is_file():
        _, _, topk = score_with_model(real_model(name), texts, TOP_K)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, ids=topk.ids_TK, logprobs=topk.logprobs_TK, real=topk.real_logprobs_T)
    tokenizer = Tokenizer.from_file(f"{real_model(name)}/tokenizer.json")
    with np.load(file) as arrays:
        return Scored(tokenizer, answers_of(tokenizer, texts), TopK(arrays["ids"], arrays["logprobs"], arrays["real"]))


def _bits(nll_nats: float, n_bytes: int) -> str:
    return f"{nll_nats / np.log(2) / n_bytes:.4f}"


def _report(case: str, unit: str, ours: float, goal: str, holds: bool) -> None:
    report(Measurement("alignment", case, unit, float(ours), goal=goal, holds=bool(holds)))
