"""How large the models, the corpus and the cluster of a plan are: measured where they are here, else as stated."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fusion_ray.corpus.files import chat_files, read_chats
from fusion_ray.errors import FusionRayError, RecipeError
from fusion_ray.pipeline.status import Status
from fusion_ray.recipe import Model, Recipe
from fusion_ray.storage.artifacts import read_manifest
from fusion_ray.storage.checkpoints import open_checkpoint
from fusion_ray.storage.filesystem import locate

# Assumed of a corpus that is not here, unless the command line says more.
ASSUMED_ROWS = 100_000
ASSUMED_TOKENS_PER_ROW = 600  # FuseChat's mixture: 70-74 % of 2,048 is padding (arXiv 2402.16107).
ANSWER_SHARE = 0.7
_BYTES_PER_TOKEN = 4.0  # English text in tokenizers of 32,000 to 256,000 entries.
_SAMPLED_ROWS = 2_000


class Gpu(NamedTuple):
    """A kind of GPU: usable memory, and dense bfloat16 operations per second at its peak (its data sheet)."""

    memory_gib: float
    flops: float


GPUS = {
    "l4": Gpu(22, 121e12),
    "a10g": Gpu(22, 70e12),
    "l40s": Gpu(44, 362e12),
    "a100-40": Gpu(39, 312e12),
    "a100": Gpu(79, 312e12),
    "h100": Gpu(79, 989e12),
    "h200": Gpu(139, 989e12),
    "b200": Gpu(178, 2250e12),
}


@dataclass(frozen=True)
class Cluster:
    """What the plan may use, all nodes together."""

    cpus: int
    gpus: int
    gpu: Gpu
    memory_gib: float
    object_store_gib: float
    disk_gib: float


@dataclass(frozen=True)
class ModelSize:
    """Weights of a model, and how many of them are active for one token (fewer in a mixture of experts)."""

    parameters: float
    active: float


@dataclass(frozen=True)
class CorpusSize:
    """Rows and tokens of the corpus; `source` says where the numbers come from."""

    rows: int
    tokens_per_row: float
    source: str

    @property
    def tokens(self) -> float:
        """Tokens of the whole corpus."""
        return self.rows * self.tokens_per_row


def cluster_size(
    recipe: Recipe,
    *,
    cpus: int | None = None,
    gpus: int | None = None,
    gpu: str = "a100",
    gpu_memory_gib: float | None = None,
    memory_gib: float | None = None,
    object_store_gib: float | None = None,
    disk_gib: float | None = None,
) -> Cluster:
    """The cluster as described; what is not described is this machine.

    Raises:
        RecipeError: The kind of GPU is not in the table.
    """
    if gpu not in GPUS:
        raise RecipeError(f"--gpu {gpu}: expected one of {', '.join(GPUS)}; --gpu-memory states another size.")
    kind = GPUS[gpu]._replace(**({"memory_gib": gpu_memory_gib} if gpu_memory_gib else {}))
    memory = memory_gib or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # Ray gives its object store 30 % of the memory; a local Ray of ours has half a GiB.
    store = object_store_gib or (memory * 0.3 if memory_gib else 0.5)
    return Cluster(
        cpus=cpus or len(os.sched_getaffinity(0)),
        gpus=_gpus_here() if gpus is None else gpus,
        gpu=kind,
        memory_gib=memory,
        object_store_gib=store,
        disk_gib=disk_gib or _free_disk_gib(recipe.folder),
    )


def _gpus_here() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0


def _free_disk_gib(folder: str) -> float:
    if "://" in folder:
        return float("inf")
    place = Path(locate(folder).path)
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free / 2**30


def model_sizes(recipe: Recipe, statuses: list[Status]) -> dict[str, ModelSize | None]:
    """The size of every model of the recipe by name; None where it is neither here nor stated."""
    folders = {
        status.artifact.model: status.artifact.models["model"].place
        for status in statuses
        if status.artifact.stage == "distributions" and status.artifact.role == "main"
    }
    return {name: _model_size(model, folders[name]) for name, model in recipe.models().items()}


def _model_size(model: Model, folder: str) -> ModelSize | None:
    if folder:
        return _measure(folder)
    if model.parameters is None:
        return None
    return ModelSize(model.parameters, model.active_parameters or model.parameters)


def _measure(folder: str) -> ModelSize:
    """Count weights in the safetensors headers; of the experts only those count as active that a token visits."""
    checkpoint = open_checkpoint(folder)
    total = sum(tensor.size for tensor in checkpoint.tensors.values())
    experts = sum(tensor.size for name, tensor in checkpoint.tensors.items() if ".experts." in name)
    share = _visited_share(dict(checkpoint.config))
    return ModelSize(total, total - experts * (1 - share))


def _visited_share(config: dict[str, Any]) -> float:
    count = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts")
    return config["num_experts_per_tok"] / count if count and config.get("num_experts_per_tok") else 1.0


def corpus_size(recipe: Recipe, statuses: list[Status], rows: int | None, tokens_per_row: float | None) -> CorpusSize:
    """Rows and tokens: of the finished corpus, else from a sample of the files, else as stated or assumed."""
    counted, measured, source = _look_at_corpus(recipe, statuses)
    if rows or tokens_per_row:
        source = "as stated" if rows and tokens_per_row else f"{source}, and as stated"
    length = tokens_per_row or measured
    return CorpusSize(rows or counted, min(length, recipe.distributions.max_length), source)


def _look_at_corpus(recipe: Recipe, statuses: list[Status]) -> tuple[int, float, str]:
    artifact = statuses[0].artifact
    try:
        manifest = read_manifest(artifact.folder)
        answers = sum(shard.facts["answer_bytes"] for shard in manifest.shards)
        length = answers / ANSWER_SHARE / _BYTES_PER_TOKEN / max(manifest.rows, 1)
        return manifest.rows, length, "the finished stage corpus"
    except (FusionRayError, KeyError):
        pass
    try:
        return _sample(recipe)
    except FusionRayError:
        rows = recipe.corpus.max_rows or ASSUMED_ROWS
        return rows, ASSUMED_TOKENS_PER_ROW, "assumed, for the corpus is not here (--rows, --tokens-per-row)"


def _sample(recipe: Recipe) -> tuple[int, float, str]:
    uris = chat_files(recipe.corpus.path)
    first = [chat for chat in islice(read_chats(uris[0], recipe.corpus.row_columns), _SAMPLED_ROWS) if chat.messages]
    if not first:
        raise RecipeError(f"{uris[0]}: no usable chat among the first {_SAMPLED_ROWS}.")
    sizes = [sum(len(message["content"].encode()) for message in chat.messages or []) for chat in first]
    length = sum(sizes) / len(sizes) / _BYTES_PER_TOKEN
    if len(first) < _SAMPLED_ROWS and len(uris) == 1:
        rows = len(first)
    else:  # Bytes of text files; Parquet is compressed about three times.
        places = [locate(uri) for uri in uris]
        total = sum(place.filesystem.get_file_info(place.path).size for place in places)
        packed = 3.0 if uris[0].endswith((".parquet", ".arrow")) else 1.0
        rows = int(total * packed / (sum(sizes) / len(sizes) * 1.2))
    rows = min(rows, recipe.corpus.max_rows or rows)
    return rows, length, f"a sample of {len(first)} rows"
