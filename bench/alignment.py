"""Alignment: exact (`bytes`) beside the published modes, in quality and speed.

    python bench/alignment.py            # everything, about twenty minutes on two cores
    python bench/alignment.py laws       # conservation on real pairs x kinds of text
    python bench/alignment.py speed      # tokens per second and core, and beside literal dynamic time warping
    python bench/alignment.py growth     # time and memory of texts that are one group, by their length
    python bench/alignment.py modes      # the table of docs/fused.md: every mode on a real model's distributions

Times are CPU seconds of one thread. `warm` means that the strings of the text have been seen before, as most have
after the first shards of a corpus; `cold` that none has.
"""

import argparse
import os
import time
import tracemalloc
from collections.abc import Callable
from functools import cache, partial
from itertools import permutations

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from measurement import Measurement, report
from modes import measure_modes
from real_tokenizers import real_tokenizer
from scored import answers_of, bigrams, made_up
from texts import KINDS, code, prose

from fusion_ray.chat.answer_tokens import AnswerTokens, offsets_of
from fusion_ray.fused.align.exact import project
from fusion_ray.fused.align.projector import Projector, build_projector
from fusion_ray.fused.align_published.naive import edit_distance, warp_naively
from fusion_ray.fused.align_published.spellings import read_spellings
from fusion_ray.storage.topk import TopK

NAMES = ("llama2", "mistral_v1", "llama3_1", "qwen3", "gemma3", "deepseek_v3", "gpt4o", "unigram_ja")
SPEED_PAIRS = (
    ("llama3_1", "qwen3"),
    ("qwen3", "llama3_1"),
    ("mistral_v1", "qwen3"),
    ("qwen3", "mistral_v1"),
    ("gemma3", "deepseek_v3"),
    ("deepseek_v3", "gpt4o"),
)
TOP_K = 10


def main() -> None:
    measures = {"laws": measure_laws, "speed": measure_speed, "growth": measure_growth, "modes": measure_modes}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(measures))
    parts = parser.parse_args().parts or list(measures)
    if unknown := set(parts) - set(measures):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(measures)}")
    for part in parts:
        measures[part]()


def measure_laws() -> None:
    """The most that any group of any kind of text loses, by pair, with made-up distributions."""
    for pivot, source in permutations(NAMES, 2):
        projector = build_projector(real_tokenizer(pivot), real_tokenizer(source))
        ours = answers_of(real_tokenizer(pivot), list(KINDS.values()))
        theirs = answers_of(real_tokenizer(source), list(KINDS.values()))
        topk = made_up(theirs, projector.source, TOP_K, np.random.default_rng(0))
        found = [project(ours, theirs, topk, projector, inner_tail=tail) for tail in ("unigram", "none")]
        worst = max(projection.violation_nats for projection in found)
        case = f"conservation: {pivot} <- {source}, {len(KINDS)} kinds of text"
        report(Measurement("alignment", case, "1e-6 nats", 1e6 * worst, goal="<= 100", holds=worst <= 1e-4))


def measure_speed() -> None:
    """Projected pivot tokens per second and core; exact alignment beside literal dynamic time warping."""
    texts = prose(400_000) + code(200_000)
    for pivot, source in SPEED_PAIRS:
        projector, ours, theirs, topk = _prepared(pivot, source, tuple(texts))
        _compile(projector, ours, theirs, topk)
        cold = _cpu_seconds(partial(project, ours, theirs, topk, projector), repeats=1)
        warm = _cpu_seconds(partial(project, ours, theirs, topk, projector), repeats=5)
        case = f"{pivot} <- {source}, {len(ours)} tokens, k = {TOP_K}"
        _report("speed, cold", case, "tokens/s/core", len(ours) / cold)
        _report("speed, warm", case, "tokens/s/core", len(ours) / warm, ">= 1e6", len(ours) / warm >= 1e6)
    for tokens in (500, 2048):
        _beside_literal(tokens)


REPEATED = ("{}", "ok", "[]", "хаха", "=", "_", "#")
SHORT, LONG = 1_000, 200_000


def measure_growth() -> None:
    """Texts of one string over and over, which some pairs cut nowhere: what a token costs in short and in long ones."""
    for pivot, source in (("llama3_1", "gemma3"), ("mistral_v1", "gpt4o")):
        # So few strings are remembered that each text is new every time.
        projector = build_projector(real_tokenizer(pivot), real_tokenizer(source), max_strings=1)
        for part in REPEATED:
            # Short texts come twenty to a shard, so that what a shard costs whatever it holds weighs little.
            (short_us, short_bytes, _), (long_us, long_bytes, longest) = (
                _cost_of_token(pivot, source, projector, [part * (characters // len(part))] * rows)
                for characters, rows in ((SHORT, 20), (LONG, 1))
            )
            case = f"{pivot} <- {source}, {part!r} for {LONG} characters, groups of up to {longest} tokens"
            for unit, long, short in (
                ("us of CPU a token", long_us, short_us),
                ("bytes a token", long_bytes, short_bytes),
            ):
                ratio, peer = long / short, f"for {SHORT} characters"
                report(Measurement("alignment", case, unit, long, short, peer, ratio, "ratio <= 2", ratio <= 2))


def _cost_of_token(pivot: str, source: str, projector: Projector, texts: list[str]) -> tuple[float, float, int]:
    """Microseconds and bytes for each token of both sides, and the pivot tokens of the longest group."""
    ours, theirs = (answers_of(real_tokenizer(name), texts) for name in (pivot, source))
    topk = made_up(theirs, projector.source, TOP_K, np.random.default_rng(0))
    groups = project(ours, theirs, topk, projector).groups
    taken = _cpu_seconds(partial(project, ours, theirs, topk, projector), repeats=1)
    tracemalloc.start()
    project(ours, theirs, topk, projector)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tokens = len(ours) + len(theirs)
    return 1e6 * taken / tokens, peak / tokens, int((groups.pivot_stop - groups.pivot_start).max())


def _beside_literal(tokens: int) -> None:
    """One answer of this many tokens: literal warping alone, against all of exact alignment."""
    pivot, source = "mistral_v1", "qwen3"
    whole = "".join(prose(400_000))
    rows = [whole[start : start + 4 * tokens] for start in range(0, 64 * 4 * tokens, 4 * tokens)]
    projector, ours, theirs, topk = _prepared(pivot, source, tuple(row for row in rows if row))
    _compile(projector, ours, theirs, topk)
    project(ours, theirs, topk, projector)
    ours_s = _cpu_seconds(partial(project, ours, theirs, topk, projector), repeats=5) / len(ours.ended)
    first, second = (read_spellings(real_tokenizer(name)) for name in (pivot, source))
    p = [first.written[token].replace(first.marker, "") for token in ours.ids_T[: ours.turn_offsets[1]]]
    s = [second.written[token].replace(second.marker, "") for token in theirs.ids_T[: theirs.turn_offsets[1]]]
    distance = cache(edit_distance)  # kinder to the literal method than the research code, which computes every cell
    peer_s = _cpu_seconds(partial(warp_naively, p, s, distance), repeats=1)
    report(
        Measurement(
            "alignment", f"one answer of {len(p)} x {len(s)} tokens, {pivot} <- {source}", "CPU s", ours_s, peer_s,
            f"literal dynamic time warping, {1e6 * peer_s / len(p) / len(s):.2f} us a cell", ours_s / peer_s,
            "ratio <= 0.001", ours_s / peer_s <= 1e-3,
        )
    )  # fmt: skip


@cache
def _prepared(pivot: str, source: str, texts: tuple[str, ...]) -> tuple[Projector, AnswerTokens, AnswerTokens, TopK]:
    projector = build_projector(real_tokenizer(pivot), real_tokenizer(source))
    ours, theirs = answers_of(real_tokenizer(pivot), list(texts)), answers_of(real_tokenizer(source), list(texts))
    return projector, ours, theirs, bigrams(theirs, TOP_K)


def _compile(projector: Projector, ours: AnswerTokens, theirs: AnswerTokens, topk: TopK) -> None:
    """Let every loop be compiled on the first row alone, so that `cold` is about strings."""
    count = int(theirs.turn_offsets[1])
    first = TopK(topk.ids_TK[:count], topk.logprobs_TK[:count], topk.real_logprobs_T[:count])
    project(_first_row(ours), _first_row(theirs), first, projector)


def _first_row(answers: AnswerTokens) -> AnswerTokens:
    stop = int(answers.turn_offsets[1])
    return AnswerTokens(
        answers.ids_T[:stop], answers.boundaries_T[:stop], offsets_of([stop]), answers.ended[:1], offsets_of([1])
    )


def _cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least of some runs: everything else on the machine only adds."""
    taken = []
    for _ in range(repeats):
        started = time.thread_time()
        work()
        taken.append(time.thread_time() - started)
    return min(taken)


def _report(what: str, case: str, unit: str, ours: float, goal: str | None = None, holds: bool | None = None) -> None:
    report(Measurement("alignment", f"{what}: {case}", unit, float(ours), goal=goal, holds=holds))


if __name__ == "__main__":
    main()
