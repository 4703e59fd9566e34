"""Answering anew: new tokens a second of prompts that are continued together, of groups of one length, and one by one.

    python bench/answering.py           SmolLM2-135M, 16 prompts, 32 new tokens each
    python bench/answering.py 64        as many prompts

All three ways draw with the same seeds, take turns, and of each the best of three rounds counts.
"""

import sys
import time

import numpy as np
from chats import chats
from measurement import Measurement, report
from real_models import real_model

from fusion_ray.chat import render_all
from fusion_ray.models.folders import load_tokenizer
from fusion_ray.models.transformers import TransformersGenerator

NEW_TOKENS = 32
ROUNDS = 3


def main(n_prompts: int) -> None:
    """Measure all ways and compare them."""
    folder = real_model("smollm2")
    # Whole conversations are the prompts: as long, and of as many lengths, as questions that hold a text.
    prompts = [row.input_ids for row in render_all(load_tokenizer(folder), chats(answer_characters=600)[:n_prompts])]
    generator = TransformersGenerator(folder)
    generator.sample(prompts[:1], max_tokens=2, end_ids=[], temperature=1.0, seeds=[0])  # the first call allocates
    ways = {
        "together": lambda: _write(generator, [prompts]),
        "groups of one length": lambda: _write(generator, _of_one_length(prompts)),
        "one by one": lambda: _write(generator, [[prompt] for prompt in prompts]),
    }
    seconds = {name: float("inf") for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    speed = {name: len(prompts) * NEW_TOKENS / taken for name, taken in seconds.items()}
    for peer in ("groups of one length", "one by one"):
        ratio, case = speed["together"] / speed[peer], f"{len(prompts)} prompts of {_lengths(prompts)} tokens"
        unit, goal = "new tokens per second", "ratio >= 2" if peer == "one by one" else None
        holds = ratio >= 2 if goal else None
        report(Measurement("answering", case, unit, speed["together"], speed[peer], peer, ratio, goal, holds))


def _write(generator: TransformersGenerator, groups: list[list[np.ndarray]]) -> None:
    for group in groups:
        seeds = list(range(len(group)))
        generator.sample(group, max_tokens=NEW_TOKENS, end_ids=[], temperature=1.0, seeds=seeds)


def _of_one_length(prompts: list[np.ndarray]) -> list[list[np.ndarray]]:
    lengths = sorted({len(prompt) for prompt in prompts})
    return [[prompt for prompt in prompts if len(prompt) == length] for length in lengths]


def _lengths(prompts: list[np.ndarray]) -> str:
    return f"{min(map(len, prompts))} to {max(map(len, prompts))}"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16)
