"""Real scorers that die, or take something else down, at a planted chat; opened in the actors of the stage."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from fusion_ray.corpus.row_formats import CORPUS_SCHEMA
from fusion_ray.errors import DeadEngineError
from fusion_ray.models.opening import OpenScorer
from fusion_ray.models.scorer import Scorer
from fusion_ray.models.transformers import TransformersScorer
from fusion_ray.pipeline.graph import build_graph
from fusion_ray.recipe import Distributions, Model, Recipe, parse_recipe
from fusion_ray.storage.artifacts import Artifact, write_manifest
from fusion_ray.storage.shards import shard_path, write_shard
from fusion_ray.storage.topk import TopK
from toys.models import byte_level_tokenizer, save_toy

PLANTED = "zanzibar"


def dying_recipe(folder: Path, runs: str, planted: tuple[int, ...] = (), rows: int = 60) -> Recipe:
    """A recipe over chats in shards of ten; those of the planted numbers hold the planted word."""
    model = folder / "pivot"
    if not model.exists():
        save_toy(model, "llama", byte_level_tokenizer())
    chats = [
        {"id": f"row-{n}", "text": f"The answer to {n} is {n * n}. " * (1 + n % 3) + PLANTED * (n in planted)}
        for n in range(rows)
    ]
    path = folder / f"{runs}.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return parse_recipe(
        {
            "name": "toy",
            "runs": str(folder / runs),
            "pivot": {"model": str(model)},
            "sources": [{"name": "other", "model": str(model)}],
            "corpus": {"path": str(path), "heldout": 0, "validation": 0, "shard_rows": 10},
            "distributions": {"top_k": 4, "template": "plain", "max_rejected": 0.5},
        }
    )


def dying_artifact(recipe: Recipe, lay_out: bool = False) -> Artifact:
    """The pivot's distributions; with `lay_out` the corpus is written, as one shard, without the stage that does."""
    artifact = next(artifact for artifact in build_graph(recipe) if str(artifact) == "distributions/pivot")
    corpus = artifact.chats
    if lay_out:
        rows = [json.loads(line) for line in Path(recipe.corpus.path).read_text().splitlines()]
        messages = [[{"role": "text", "content": row["text"]}] for row in rows]
        columns = [[row["id"] for row in rows], ["all"] * len(rows), messages, [None] * len(rows)]
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, CORPUS_SCHEMA, strict=True)], CORPUS_SCHEMA)
        record = write_shard(corpus.folder, shard_path("train", 0), table, corpus.fingerprint)
        write_manifest(corpus, seconds=0.0, shards=[record])
    return artifact


def opens(what_happens: Callable[[], None]) -> OpenScorer:
    """Opens a scorer to which something happens when it reads the planted word."""

    def open_dying(_: Model, settings: Distributions, folder: str) -> Scorer:
        return DyingScorer(folder, settings.top_k, what_happens)

    return open_dying


class DyingScorer(TransformersScorer):
    """A Transformers scorer to which something happens when it reads the planted word."""

    def __init__(self, folder: str, top_k: int, what_happens: Callable[[], None]) -> None:
        super().__init__(folder, top_k, threads=1)
        self.what_happens = what_happens
        self.planted = byte_level_tokenizer()(PLANTED, add_special_tokens=False)["input_ids"][2:]

    def score(self, input_ids: list[np.ndarray], positions: list[np.ndarray]) -> list[TopK]:
        """Score, unless the planted word is there."""
        word = ",".join(map(str, self.planted))
        if any(word in ",".join(map(str, row.tolist())) for row in input_ids):
            self.what_happens()
        return super().score(input_ids, positions)


def vanish() -> None:
    """The process ends without a word, as by a fault of the driver or for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    """The engine says that it is dead."""
    raise DeadEngineError("the planted chat: CUDA error: an illegal memory access was encountered")


@dataclass
class Once:
    """Does something the first time, in whichever process, and leaves a file to tell that it did."""

    file: Path
    what: Callable[[], None]

    def __call__(self) -> None:
        if not self.file.exists():
            self.file.write_text(f"{os.getpid()}@{ray.get_runtime_context().get_node_id()}")
            self.what()


@dataclass
class KillDriver:
    """Kills the process whose id is in a file."""

    file: Path

    def __call__(self) -> None:
        os.kill(int(self.file.read_text()), signal.SIGKILL)
        wait()


def wait() -> None:
    """Stay in the middle of a shard until this process is killed."""
    while True:
        time.sleep(1)
