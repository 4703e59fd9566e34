"""Stage `distributions`: every model, the pivot too, scores the corpus; top-k per answer position is kept.

Reads:  the corpus shards.
Writes: <model>/{train,validation,heldout}/ shards: tokens, answer spans, boundaries, top-k, the real token's
        log-probability; <model>/MANIFEST.json.

A shard travels through Ray Data as one row: rendered by CPU tasks, scored by an actor that holds the model,
written there under its final name. Shards that are on disk already are not scored again.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray.data

from fusion_ray.engines.scorer import Scorer, open_scorer
from fusion_ray.engines.scoring import RenderSettings, open_reader, render_rows, score_rows, sum_scores
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import CompactStore, Distributions, Model, Recipe, SampledStore, Store
from fusion_ray.stages import cluster
from fusion_ray.storage.artifacts import Artifact, read_manifest, retract_manifest, write_manifest
from fusion_ray.storage.draws_codec import store_draws
from fusion_ray.storage.rejections import settle_rejections
from fusion_ray.storage.shards import ShardRecord, find_shard, read_shard, write_shard
from fusion_ray.storage.topk_codec import compact_topk


def build_distributions(recipe: Recipe, artifacts: list[Artifact], tell: Tell) -> None:
    """Score the corpus with the model of every artifact, several side by side while the cluster has room.

    Raises:
        ClusterError: The cluster can never run one actor as the recipe asks for it.
        ArtifactError: A model had to reject more rows than max_rejected allows.
    """
    settings = recipe.distributions
    cluster.require("distributions", cpus=settings.cpus_per_actor, gpus=settings.gpus_per_actor, nodes=settings.nodes)
    with ThreadPoolExecutor(_side_by_side(settings, len(artifacts))) as pool:
        futures = [pool.submit(_build_one, recipe, artifact, tell) for artifact in artifacts]
        for future in futures:
            future.result()


def _side_by_side(settings: Distributions, wanted: int) -> int:
    """How many models fit at once, each with its smallest actor pool."""
    fits = [wanted]
    if settings.cpus_per_actor:
        fits.append(int(cluster.total("CPU") // (settings.cpus_per_actor * settings.actors.min)))
    if settings.gpus_per_actor:
        fits.append(int(cluster.total("GPU") // (settings.gpus_per_actor * settings.actors.min)))
    return max(1, min(fits))


def _build_one(recipe: Recipe, artifact: Artifact, tell: Tell) -> None:
    started = time.monotonic()
    retract_manifest(artifact.folder)
    corpus = artifact.inputs["corpus"]
    planned = read_manifest(corpus.folder).shards
    found = {shard.path: find_shard(artifact.folder, shard.path, artifact.fingerprint) for shard in planned}
    records = [record for record in found.values() if record]
    todo = [shard for shard in planned if not found[shard.path]]
    total_rows = sum(shard.rows for shard in planned)
    done_rows, tokens = sum(record.rows for record in records), 0
    tell(Progress(str(artifact), done_rows, total_rows))
    for result in _score_shards(recipe, artifact, todo):
        record = ShardRecord(**result)
        records.append(record)
        done_rows += record.rows
        tokens += record.facts["answer_tokens"]
        rate = tokens / (time.monotonic() - started)
        tell(Progress(str(artifact), done_rows, total_rows, f"{rate:,.0f} answer tokens/s", record.path))
    order = {shard.path: number for number, shard in enumerate(planned)}
    records.sort(key=lambda record: order[record.path])
    rejected = settle_rejections(artifact, records, recipe.distributions.max_rejected)
    sums = {key: sum(r.facts[key] for r in records) for key in ("answer_tokens", "answer_bytes", "nll_nats")}
    facts = {**sums, "rejected": rejected}
    write_manifest(artifact, seconds=time.monotonic() - started, shards=records, facts=facts)


def _score_shards(recipe: Recipe, artifact: Artifact, todo: list[ShardRecord]) -> Iterator[Any]:
    """Stream shards through rendering tasks and a pool of scoring actors; yields their records as they finish."""
    if not todo:
        return
    settings = recipe.distributions
    render = _Render(recipe, artifact, todo)
    shards = cluster.numbers(len(todo))
    pools = settings.cpus_per_actor * settings.actors.max * _side_by_side(settings, len(recipe.models()))
    if cluster.total("CPU") > pools:
        shards = shards.map(render, num_cpus=1, compute=ray.data.TaskPoolStrategy(settings.actors.max))
    # Where actors take every CPU, rendering tasks would wait for ever: then the actors render.
    scored = shards.map_batches(
        _Score,
        fn_constructor_args=(recipe, artifact, render),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=settings.cpus_per_actor,
        num_gpus=settings.gpus_per_actor or None,
        label_selector=cluster.label_selector(settings.nodes),
        compute=ray.data.ActorPoolStrategy(min_size=settings.actors.min, max_size=settings.actors.max),
    )
    yield from cluster.results_of(scored)


class _Render:
    """Reads a corpus shard and tokenises it; a task, so that no accelerator waits for a tokenizer."""

    def __init__(self, recipe: Recipe, artifact: Artifact, todo: list[ShardRecord]) -> None:
        self.model = recipe.models()[artifact.name]
        self.settings = recipe.distributions
        self.artifact = artifact
        self.todo = todo

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = self.todo[row["id"]]
        chats = read_shard(self.artifact.inputs["corpus"].folder, shard)
        files = {label: files.folder for label, files in self.artifact.models.items()}
        rendered = render_rows(chats, *_reader(self.model, self.settings, files["model"], files.get("pivot")))
        return {"path": shard.path, "rendered": cluster.to_ipc(rendered)}


@lru_cache(maxsize=2)
def _reader(model: Model, settings: Distributions, folder: str, pivot: str | None) -> tuple[Any, RenderSettings]:
    return open_reader(model, settings, folder, pivot)


class _Score:
    """Holds the model; scores one shard a call and commits it."""

    def __init__(self, recipe: Recipe, artifact: Artifact, render: _Render) -> None:
        self.artifact = artifact
        self.render = render
        self.store = recipe.distributions.store
        model = recipe.models()[artifact.name]
        self.scorer: Scorer = open_scorer(model, recipe.distributions, artifact.models["model"].folder)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (row,) = batch.to_pylist()
        row = row if "rendered" in row else self.render(row)
        scored = score_rows(cluster.from_ipc(row["rendered"]), self.scorer)
        table = _pack(scored, self.store)
        record = write_shard(self.artifact.folder, row["path"], table, self.artifact.fingerprint, sum_scores(scored))
        return cluster.result_table(asdict(record))


def _pack(scored: pa.Table, store: Store) -> pa.Table:
    match store:
        case CompactStore():
            return compact_topk(scored)
        case SampledStore():
            return store_draws(scored, store.draws)
    return scored
