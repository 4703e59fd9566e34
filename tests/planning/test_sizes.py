"""How large models, corpus and cluster are taken to be: counted, sampled, stated or assumed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from fusion_ray.pipeline.graph import build_graph
from fusion_ray.pipeline.status import list_statuses
from fusion_ray.planning.sizes import GPUS, CorpusSize, Gpu, ModelSize, cluster_size, corpus_size, model_sizes
from fusion_ray.recipe import Recipe, parse_recipe
from fusion_ray.storage.artifacts import write_manifest
from fusion_ray.storage.shards import ShardRecord


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    plain = {
        "name": "x",
        "runs": str(folder / "runs"),
        "pivot": {"model": "no/pivot"},
        "sources": [{"name": "math", "model": "no/math"}],
        "corpus": {"path": str(folder / "chats.jsonl")},
    }
    return parse_recipe(plain | sections)


def chats(sizes: list[int]) -> list[dict[str, Any]]:
    """A chat of so many bytes for each; none for 0."""
    return [
        {"messages": [{"role": "user", "content": "ä"}, {"role": "assistant", "content": "y" * (n - 2)}] if n else []}
        for n in sizes
    ]


def write_chats(path: Path, sizes: list[int]) -> None:
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats(sizes)))


def size_of(recipe: Recipe, rows: int | None = None, tokens_per_row: float | None = None) -> CorpusSize:
    return corpus_size(recipe, list_statuses(recipe), rows, tokens_per_row)


def test_what_is_said_of_a_cluster_goes_before_this_machine(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    said = cluster_size(recipe, cpus=3, gpus=2, gpu="h100", memory_gib=100, object_store_gib=7, disk_gib=9)
    assert (said.cpus, said.gpus, said.gpu, said.memory_gib) == (3, 2, GPUS["h100"], 100)
    assert (said.object_store_gib, said.disk_gib) == (7, 9)
    assert cluster_size(recipe, gpu_memory_gib=50).gpu == Gpu(50, 312e12)
    assert cluster_size(recipe, memory_gib=100).object_store_gib == 30
    assert cluster_size(recipe, gpus=0).gpus == 0


def test_what_is_not_said_is_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = cluster_size(recipe_of(tmp_path))
    (line,) = [text for text in Path("/proc/meminfo").read_text().splitlines() if text.startswith("MemTotal")]
    assert here.memory_gib == pytest.approx(int(line.split()[1]) / 2**20, rel=0.01)
    assert here.cpus == len(os.sched_getaffinity(0))
    assert here.object_store_gib == 0.5
    assert here.disk_gib == pytest.approx(shutil.disk_usage(tmp_path).free / 2**30, rel=0.05)
    assert cluster_size(recipe_of(tmp_path, runs="s3://bucket/runs")).disk_gib == float("inf")
    command = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cluster_size(recipe_of(tmp_path)).gpus == 0
    for code, expected in ((0, 2), (1, 0)):
        command.write_text(f"#!/bin/sh\necho one\necho two\nexit {code}\n")
        command.chmod(0o755)
        assert cluster_size(recipe_of(tmp_path)).gpus == expected


@pytest.mark.parametrize(
    ("config", "active"),
    [
        ({"num_local_experts": 4, "num_experts_per_tok": 1}, 10 + 20),
        ({"num_experts": 8, "num_experts_per_tok": 2}, 10 + 20),
        ({"n_routed_experts": 2, "num_experts_per_tok": 1}, 10 + 40),
        ({"num_local_experts": 4}, 90),
        ({"num_experts_per_tok": 1}, 90),
        ({}, 90),
    ],
)
def test_of_the_experts_those_are_active_that_a_token_visits(
    config: dict[str, int], active: int, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["X"], "model_type": "x"} | config))
    weights = {"model.embed.weight": np.zeros((2, 5), np.float32)}
    weights |= {f"layers.0.mlp.experts.{n}.up.weight": np.zeros((4, 10), np.float32) for n in range(2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    recipe = recipe_of(tmp_path, pivot={"model": str(tmp_path), "parameters": 7e9})
    assert model_sizes(recipe, list_statuses(recipe))["pivot"] == ModelSize(90, active)


def test_a_model_that_is_not_here_has_the_size_that_is_stated(tmp_path: Path) -> None:
    pivot = {"model": "no/pivot", "parameters": 7.0, "active_parameters": 2.0}
    sources = [{"name": "math", "model": "no/math", "parameters": 5.0}, {"name": "code", "model": "no/code"}]
    recipe = recipe_of(tmp_path, pivot=pivot, sources=sources, answers={})
    assert model_sizes(recipe, list_statuses(recipe)) == {
        "pivot": ModelSize(7.0, 2.0),
        "math": ModelSize(5.0, 5.0),
        "code": None,
    }


def test_a_corpus_that_is_not_here_is_assumed_and_what_is_stated_goes_first(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    assumed = "assumed, for the corpus is not here (--rows, --tokens-per-row)"
    assert size_of(recipe) == CorpusSize(100_000, 600, assumed)
    assert size_of(recipe, rows=7) == CorpusSize(7, 600, f"{assumed}, and as stated")
    assert size_of(recipe, tokens_per_row=9) == CorpusSize(100_000, 9, f"{assumed}, and as stated")
    assert size_of(recipe, 7, 9) == CorpusSize(7, 9, "as stated")
    few = recipe_of(tmp_path, corpus={"path": str(tmp_path / "no.jsonl"), "max_rows": 50})
    assert size_of(few).rows == 50
    short = recipe_of(tmp_path, distributions={"max_length": 500})
    assert size_of(short).tokens_per_row == 500
    assert size_of(short, 1, 499).tokens_per_row == 499


def test_a_small_file_is_counted_and_rows_without_a_chat_are_left_out(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", [100, 0, 300])
    assert size_of(recipe_of(tmp_path)) == CorpusSize(2, 200 / 4, "a sample of 2 rows")
    cut = {"path": str(tmp_path / "chats.jsonl"), "max_rows": 1}
    assert size_of(recipe_of(tmp_path, corpus=cut)).rows == 1
    write_chats(tmp_path / "chats.jsonl", [0])
    assert size_of(recipe_of(tmp_path)).source.startswith("assumed")


@pytest.mark.parametrize("count", [1999, 2000, 2500])
def test_of_a_large_file_the_rows_are_estimated_from_its_bytes(count: int, tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", [100] * count)
    found = size_of(recipe_of(tmp_path))
    size = (tmp_path / "chats.jsonl").stat().st_size
    assert found.rows == (count if count < 2000 else int(size / 120))
    assert found.tokens_per_row == 25
    assert found.source == f"a sample of {min(count, 2000)} rows"


@pytest.mark.parametrize(("ending", "packed"), [("jsonl", 1), ("parquet", 3)])
def test_of_several_files_the_first_is_sampled_and_all_are_weighed(ending: str, packed: int, tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    folder.mkdir()
    for name in "ab":
        if ending == "jsonl":
            write_chats(folder / f"{name}.jsonl", [100, 300])
        else:
            pq.write_table(pa.Table.from_pylist(chats([100, 300])), folder / f"{name}.parquet")
    size = sum(path.stat().st_size for path in folder.iterdir())
    found = size_of(recipe_of(tmp_path, corpus={"path": str(folder)}))
    assert found == CorpusSize(int(size * packed / (200 * 1.2)), 50, "a sample of 2 rows")


def test_a_finished_corpus_is_counted_by_its_manifest(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", [100])
    recipe = recipe_of(tmp_path)
    corpus = build_graph(recipe, need_inputs=False)[0]
    shards = [ShardRecord(f"train/{n}.parquet", 20, 1, "", {"answer_bytes": 5_600}) for n in range(2)]
    write_manifest(corpus, seconds=1.0, shards=shards)
    # 11,200 bytes of answers, 70 % of all text, four bytes a token, over 40 rows.
    found = size_of(recipe)
    assert (found.rows, found.source) == (40, "the finished stage corpus")
    assert found.tokens_per_row == pytest.approx(100)
    write_manifest(corpus, seconds=1.0, shards=[])
    assert (size_of(recipe).rows, size_of(recipe).tokens_per_row) == (0, 0)
    write_manifest(corpus, seconds=1.0, shards=[ShardRecord("train/0.parquet", 1, 1, "", {"answer_bytes": 5_600})])
    assert size_of(recipe).tokens_per_row == pytest.approx(2_000)
    write_manifest(corpus, seconds=1.0, shards=[ShardRecord("train/0.parquet", 20, 1, "", {})])
    assert size_of(recipe).source == "a sample of 1 rows", "a manifest that does not count answers says nothing"
