"""How the stage `distributions` scales: nodes beside each other, and the driver's memory over long corpora.

    python bench/scaling.py            1, 2, 4 and 8 nodes; 10,000 and 1,000,000 rows
    python bench/scaling.py nodes      the first half (about eight minutes)
    python bench/scaling.py rows       the second half (about eight)

The engine is simulated: it has no model, and takes the time that its tokens need at a fixed speed. All else is the
stage as it is: shards, rendering tasks, actors, the store, commits. Nodes are those of ray.cluster_utils.Cluster on
this one machine, with two CPUs and a GPU each that exist in name only: the work beside the engines (rendering,
encoding, commits, Ray) of all nodes has to fit in the machine's own few cores. So the engines are slow, 200 tokens/s,
for eight nodes to leave the cores idle at times, as nodes with cores of their own do; a last case has engines five
times as fast.

Efficiency is the work done by n nodes, over n times the work of one node in the same time; there are equally many
shards for every node. It is measured in the middle of a run: the first shards of every node wait for processes that
start on the two cores, the last ones leave some nodes idle, and both shrink beside a longer run.
The whole run, from the moment that every engine is loaded, is printed beside. Memory is the driver's largest resident
set beyond what it had before the stage, each case in a process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import ray
from chats import chats
from measurement import Measurement, report
from ray.cluster_utils import Cluster
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusion_ray.corpus.row_formats import CORPUS_SCHEMA
from fusion_ray.distributions.stage import build_distributions
from fusion_ray.models.scorer import Scorer
from fusion_ray.on_ray import cluster
from fusion_ray.pipeline.graph import build_graph
from fusion_ray.progress import silent
from fusion_ray.recipe import Recipe, parse_recipe
from fusion_ray.storage.artifacts import Artifact, read_manifest, write_manifest
from fusion_ray.storage.shards import shard_path, write_shard
from fusion_ray.storage.topk import TopK

TOP_K = 10
NODES = (1, 2, 4, 8)
SHARDS_PER_NODE, ROWS_OF_SHARD, TOKENS_PER_S = 8, 16, 200.0
FAST_NODES, FAST_TOKENS_PER_S = 8, 1000.0
MARGIN = 2  # Shards of each node before the middle of a run, and after it.
LONG_SHARD_ROWS = 2000


@dataclass
class Simulated:
    """A scorer that has no model: every token costs the same time, and every distribution is the same."""

    tokens_per_s: float
    n_tokens: int = 1 << 20
    max_length: int | None = None

    def score(self, _: list[np.ndarray], positions: list[np.ndarray]) -> list[TopK]:
        """See `Scorer.score`; tokens are those that are asked for."""
        time.sleep(sum(map(len, positions)) / self.tokens_per_s)
        return [_distributions(len(asked)) for asked in positions]

    def close(self) -> None:
        """See `Scorer.close`."""


def _distributions(n: int) -> TopK:
    logprobs_K = np.log(0.5 ** np.arange(1, TOP_K + 1)).astype(np.float32)
    ids_K = np.arange(TOP_K, dtype=np.int32)
    return TopK(np.tile(ids_K, (n, 1)), np.tile(logprobs_K, (n, 1)), np.full(n, logprobs_K[0]))


@dataclass
class Opens:
    """Opens simulated engines, which are ready when all of them are."""

    folder: str
    engines: int
    tokens_per_s: float

    def __call__(self, *_: object) -> Scorer:
        """See `OpenScorer`."""
        Path(self.folder, f"ready-{os.getpid()}").touch()
        while len(self.ready()) < self.engines:
            time.sleep(0.05)
        return Simulated(self.tokens_per_s)

    def ready(self) -> list[float]:
        """When each engine was."""
        return [path.stat().st_mtime for path in Path(self.folder).glob("ready-*")]


def main(part: str) -> None:
    """Run the cases and compare them."""
    if part in ("nodes", "all"):
        alone = _run("nodes", 1)
        for nodes in NODES:
            found = _run("nodes", nodes) if nodes > 1 else alone
            case, unit = f"{nodes} nodes of a simulated engine", "tokens per second"
            rate, whole = found["tokens_per_s"], found["whole_tokens_per_s"]
            efficiency = rate / (nodes * alone["tokens_per_s"])
            report(Measurement("scaling", case, unit, rate, rate / efficiency, f"{nodes} times one node", efficiency,
                               "efficiency >= 0.9", efficiency >= 0.9))  # fmt: skip
            ideal, beside = nodes * alone["whole_tokens_per_s"], f"{nodes} times one node"
            report(Measurement("scaling", f"{case}, the whole run", unit, whole, ideal, beside, whole / ideal))
            ideal = nodes * TOKENS_PER_S
            report(Measurement("scaling", case, unit, rate, ideal, "the engines' own speed", rate / ideal))
        rate, ideal = _run("fast", FAST_NODES)["tokens_per_s"], FAST_NODES * FAST_TOKENS_PER_S
        case = f"{FAST_NODES} nodes of engines of {FAST_TOKENS_PER_S:g} tokens/s"
        report(Measurement("scaling", case, "tokens per second", rate, ideal, "the engines' own speed", rate / ideal))
    if part in ("rows", "all"):
        few, many = (_run("rows", rows) for rows in (10_000, 1_000_000))
        ratio = many["peak_mib"] / few["peak_mib"]
        report(Measurement("scaling", "driver, 1,000,000 rows", "largest resident set in MiB", many["peak_mib"],
                           few["peak_mib"], "10,000 rows", ratio, "ratio <= 1.1", ratio <= 1.1))  # fmt: skip
        grown = many["grown_mib"], few["grown_mib"]
        report(Measurement("scaling", "driver, 1,000,000 rows", "MiB grown during the stage", *grown, "10,000 rows"))
        report(Measurement("scaling", "1,000,000 rows", "rows per second", many["rows_per_s"]))


def _run(case: str, size: int) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, "--case", case, str(size)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case} {size}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _measure(case: str, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        speeds = {"nodes": TOKENS_PER_S, "fast": FAST_TOKENS_PER_S}
        measured = _measure_nodes(folder, size, speeds[case]) if case in speeds else _measure_rows(folder, size)
    print(json.dumps(measured))


def _measure_nodes(folder: str, nodes: int, tokens_per_s: float) -> dict[str, float]:
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        machines.add_node(num_cpus=2, num_gpus=1, object_store_memory=100 << 20)
    cluster.connect(machines.address)
    # Longer chats than the long corpus has, as an engine's time should go into tokens.
    rows = [next(chat for chat in chats(answer_characters=400) if len(chat[1]["content"]) == 400)] * ROWS_OF_SHARD
    recipe = _recipe(folder, actors=nodes, gpus=1)
    artifact = _lay_out(recipe, [rows] * SHARDS_PER_NODE * nodes)
    opens = Opens(folder, nodes, tokens_per_s)
    build_distributions(recipe, [artifact], silent, opens)
    shards = read_manifest(artifact.folder).shards
    (tokens,) = {shard.facts["answer_tokens"] for shard in shards}  # The shards are alike.
    done = sorted(Path(artifact.folder, shard.path).stat().st_mtime for shard in shards)
    ray.shutdown()
    machines.shutdown()
    first, last = MARGIN * nodes, len(done) - MARGIN * nodes
    return {
        "tokens_per_s": tokens * (last - first) / (done[last - 1] - done[first - 1]),
        "whole_tokens_per_s": tokens * len(done) / (done[-1] - max(opens.ready())),
    }


def _measure_rows(folder: str, rows: int) -> dict[str, float]:
    cluster.connect("local", num_cpus=3)
    recipe = _recipe(folder, actors=2)
    chat = [{"role": "text", "content": "one word"}]
    artifact = _lay_out(recipe, [[chat] * LONG_SHARD_ROWS] * (rows // LONG_SHARD_ROWS))
    driver, before, started = psutil.Process(), psutil.Process().memory_info().rss, time.monotonic()
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, driver.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    build_distributions(recipe, [artifact], silent, Opens(folder, 2, 1e9))
    done.set()
    watcher.join()
    rate = rows / (time.monotonic() - started)
    return {"peak_mib": peak / 2**20, "grown_mib": (peak - before) / 2**20, "rows_per_s": rate}


def _recipe(folder: str, actors: int, gpus: int = 0) -> Recipe:
    model = f"{folder}/model"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [message["content"] for chat in chats()[:40] for message in chat]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(model)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer.get_vocab()), **shape)).save_pretrained(model)
    Path(folder, "chats.jsonl").write_text('{"text": "laid out below"}\n')
    return parse_recipe(
        {
            "name": "scaling",
            "runs": folder,
            "pivot": {"model": model},
            "sources": [{"name": "none", "model": model}],
            "corpus": {"path": f"{folder}/chats.jsonl"},
            "distributions": {
                "top_k": TOP_K,
                "template": "plain",
                "actors": {"min": actors, "max": actors},
                "gpus_per_actor": gpus,
            },
        }
    )


def _lay_out(recipe: Recipe, shards: list[list[list[dict[str, str]]]]) -> Artifact:
    """Write a corpus of such shards as the stage before does; gives the distributions that are to be made of it."""
    artifact = next(artifact for artifact in build_graph(recipe) if str(artifact) == "distributions/pivot")
    corpus, records = artifact.chats, []
    for number, rows in enumerate(shards):
        ids = [f"{number}-{row}" for row in range(len(rows))]
        columns = [ids, ["all"] * len(rows), rows, [None] * len(rows)]
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, CORPUS_SCHEMA, strict=True)], CORPUS_SCHEMA)
        records.append(write_shard(corpus.folder, shard_path("train", number), table, corpus.fingerprint))
    write_manifest(corpus, seconds=0.0, shards=records)
    return artifact


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        _measure(sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "all")
