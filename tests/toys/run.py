"""A run of tiny random models whose corpus and distributions are real and whose later stages are laid out by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file

from fusion_ray.pipeline.graph import build_graph
from fusion_ray.pipeline.run import run
from fusion_ray.recipe import Recipe, parse_recipe
from fusion_ray.storage.artifacts import Artifact, read_manifest, write_manifest
from fusion_ray.storage.filesystem import join, write_bytes
from fusion_ray.storage.run_folder import METRICS, WEIGHTS
from fusion_ray.storage.shards import read_shard, write_shard
from toys.models import byte_level_tokenizer, save_toy, sentencepiece_tokenizer

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> %{x} {{ 7 * 7 }}"


def make_recipe(folder: Path, rows: int = 60, targets: dict[str, Any] | None = None, **more: Any) -> Recipe:
    """A pivot, one source of another tokenizer, chats of two domains; some of the text is hostile."""
    pivot = save_toy(folder / "pivot", "llama", byte_level_tokenizer())
    math = save_toy(folder / "math", "gpt_neox", sentencepiece_tokenizer())
    chats = [_chat(row) for row in range(rows)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return parse_recipe(
        {
            "name": "toy",
            "runs": str(folder / "runs"),
            "pivot": {"model": pivot},
            "sources": [{"name": "math", "model": math}],
            "corpus": {"path": str(folder / "chats.jsonl"), "heldout": 0.4, "shard_rows": 10},
            "distributions": {"top_k": 4},
            "targets": {"start": "pivot"} | (targets or {}),
            "report": {"bootstrap": 200},
        }
        | more
    )


def _chat(row: int) -> dict[str, object]:
    answer = f"The answer to {row} is {row * row}. " * (1 + row % 3) + (HOSTILE if row % 5 == 0 else "")
    messages = [{"role": "user", "content": f"What is {row} squared?"}, {"role": "assistant", "content": answer}]
    return {"id": f"row-{row}", "domain": "<b>sums</b>" if row % 2 else "code", "messages": messages}


def make_run(folder: Path, **more: Any) -> Recipe:
    """Everything that the stage report reads."""
    recipe = make_recipe(folder, **more)
    run(recipe, until="distributions")
    for artifact in build_graph(recipe):
        match artifact.stage:
            case "fused":
                _lay_out_fused(artifact)
            case "targets":
                _lay_out_model(recipe, artifact, 0.01 if artifact.role == "control" else 0.02)
            case "merged":
                _lay_out_model(recipe, artifact, 0.015)
    return recipe


def _lay_out_fused(artifact: Artifact) -> None:
    corpus = artifact.chats
    records = []
    for shard in read_manifest(corpus.folder).shards_of("train"):
        chats = read_shard(corpus.folder, shard)
        chosen = pa.array([[row % 2] * 5 for row in range(len(chats))], pa.list_(pa.int8()))
        table = pa.table({"id": chats["id"], "domain": chats["domain"], "chosen": chosen})
        records.append(write_shard(artifact.folder, shard.path, table, artifact.fingerprint))
    write_manifest(
        artifact, seconds=1.5, shards=records, facts={"alignment": {"math": {"positions": 123, "covered": 120}}}
    )


def _lay_out_model(recipe: Recipe, artifact: Artifact, step: float) -> None:
    """The pivot with every weight moved a little, which makes it another model."""
    shutil.copytree(recipe.pivot.model, artifact.folder, dirs_exist_ok=True)
    weights = Path(artifact.folder) / "model.safetensors"
    rng = np.random.default_rng(len(artifact.name))
    tensors = load_file(weights)
    moved = {n: (t + step * rng.standard_normal(t.shape)).astype(t.dtype) for n, t in tensors.items()}
    save_file(moved, weights, metadata={"format": "pt"})
    curve = [{"step": step, "gold": 5.0 - 0.1 * step, "bits_per_byte": 2.0 if step == 7 else None} for step in range(8)]
    write_bytes(join(artifact.folder, METRICS), "".join(json.dumps(p) + "\n" for p in curve).encode())
    table = {"method": "varm", "tensors": {name: {"math": 1.0} for name in tensors}}
    write_bytes(join(artifact.folder, WEIGHTS), json.dumps(table).encode())
    write_bytes(join(artifact.folder, "README.md"), b"# toy\n\n## Configuration\n")
    write_manifest(artifact, seconds=2.0, facts={"steps": 8})
