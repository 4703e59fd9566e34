"""Stage `distributions`: every model, the pivot too, scores the corpus; top-k per answer position is kept.

Reads:  the corpus shards; where sources answer anew, those of their answers; where targets start from a model
        that the run has trained, its folder.
Writes: <model>/{train,validation,heldout}/ shards: tokens, answer spans, boundaries, top-k, the real token's
        log-probability; <model>/MANIFEST.json. The same of a source's answers, scored by it and by the pivot, in
        answers/<source>/<model>/; of the training chats by what targets start from in sft/
        and round-<number>/.

A shard travels through Ray Data as one row: rendered by CPU tasks, scored by an actor that holds the model,
written there under its final name. Shards that are on disk already are not scored again.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from threading import Thread
from typing import Any, NoReturn

import pyarrow as pa
import ray.data

from fusion_ray.distributions.score import (
    RenderSettings,
    count_cut,
    open_reader,
    render_rows,
    score_surviving,
    sum_scores,
)
from fusion_ray.errors import DeadEngineError, FusionRayError
from fusion_ray.models.opening import OpenScorer, open_scorer, trained_engine
from fusion_ray.models.scorer import Scorer
from fusion_ray.on_ray import cluster, streams
from fusion_ray.on_ray.shard_loop import make_shards
from fusion_ray.progress import Tell
from fusion_ray.recipe import Distributions, Model, PlainStore, Recipe, Store
from fusion_ray.storage.artifacts import Artifact, read_manifest, retract_manifest, write_manifest
from fusion_ray.storage.attempts import Attempts, forget_attempts, open_attempts
from fusion_ray.storage.rejections import settle_rejections
from fusion_ray.storage.shards import ShardRecord, read_shard, write_shard
from fusion_ray.storage.topk_codec import compact_topk

# A dead engine may never end by itself, so its actor waits for it no longer than this.
_CLOSING_S = 10.0


def build_distributions(
    recipe: Recipe, artifacts: list[Artifact], tell: Tell, open_scorer: OpenScorer = open_scorer
) -> None:
    """Score the corpus with the model of every artifact, several side by side while the cluster has room.

    Args:
        recipe: The run.
        artifacts: One for each model to score with.
        tell: Receives progress reports.
        open_scorer: Starts the engine in each actor; another one than the recipe's, for benchmarks and tests.

    Raises:
        ClusterError: The cluster can never run one actor as the recipe asks for it.
        ArtifactError: A model had to reject more rows than max_rejected allows.
    """
    streams.build_in_pools(
        recipe.distributions, artifacts, lambda artifact: _build_one(recipe, artifact, tell, open_scorer)
    )


def _build_one(recipe: Recipe, artifact: Artifact, tell: Tell, open_scorer: OpenScorer) -> None:
    started = time.monotonic()
    retract_manifest(artifact.folder)
    forget_attempts(artifact.folder)
    chats = read_manifest(artifact.chats.folder)
    planned = chats.shards_of("train") if artifact.role == "anchor" else list(chats.shards)
    records = make_shards(
        recipe.name,
        artifact,
        planned,
        lambda todo: _score_shards(recipe, artifact, todo, open_scorer),
        tell,
        actors=recipe.distributions.actors.max,
    )
    # An answer of one model may not fit another one's template. Such answers are left out, and are no error.
    cap = 1.0 if artifact.role == "answers" else recipe.distributions.max_rejected
    rejected = settle_rejections(artifact, records, cap, chats.rows)
    sums = {key: sum(r.facts[key] for r in records) for key in ("answer_tokens", "answer_bytes", "nll_nats")}
    facts = {**sums, "cut": sum(r.facts.get("cut", 0) for r in records), "rejected": rejected}
    forget_attempts(artifact.folder)
    write_manifest(artifact, seconds=time.monotonic() - started, shards=records, facts=facts)


def _score_shards(
    recipe: Recipe, artifact: Artifact, todo: list[ShardRecord], open_scorer: OpenScorer
) -> Iterator[Any]:
    """Stream shards through rendering tasks and a pool of scoring actors; yields their records as they finish."""
    settings = recipe.distributions
    render = _Render(recipe, artifact, todo)
    shards = streams.numbers(len(todo))
    pools = settings.cpus_per_actor * settings.actors.max * streams.pools_at_once(settings, len(recipe.models()))
    if settings.gpus_per_actor and cluster.total("CPU") > pools:
        shards = shards.map(render, num_cpus=1, compute=ray.data.TaskPoolStrategy(settings.actors.max))
    # Rendering tasks would wait for ever where actors hold every CPU, and actors that score on CPUs may come to hold
    # all CPUs that a cluster can grow to. In both cases the actors render.
    yield from streams.map_in_pool(shards, _Score, (render, open_scorer), settings)


def _model_of(recipe: Recipe, artifact: Artifact) -> Model:
    """Its part of the recipe; a trained model has the pivot's, and an engine that can load it."""
    model = recipe.models()[artifact.recipe_model]
    return model.model_copy(update={"engine": trained_engine(recipe)}) if artifact.role == "anchor" else model


class _Render:
    """Reads a corpus shard and tokenises it; a task, so that no accelerator waits for a tokenizer."""

    def __init__(self, recipe: Recipe, artifact: Artifact, todo: list[ShardRecord]) -> None:
        self.model = _model_of(recipe, artifact)
        self.settings = recipe.distributions
        self.artifact = artifact
        self.todo = todo

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Runs in a task. If it fails, the actor renders the shard again, and can tell the driver why."""
        try:
            return row | {"rendered": self.render(row["id"])}
        except FusionRayError:
            return row | {"rendered": b""}

    def render(self, number: int) -> bytes:
        """One shard, by its number in `todo`."""
        chats = read_shard(self.artifact.chats.folder, self.todo[number])
        files = {label: files.folder for label, files in self.artifact.models.items()}
        return streams.to_ipc(
            render_rows(chats, *_reader(self.model, self.settings, files["model"], files.get("pivot")))
        )


@lru_cache(maxsize=2)
def _reader(model: Model, settings: Distributions, folder: str, pivot: str | None) -> tuple[Any, RenderSettings]:
    return open_reader(model, settings, folder, pivot)


class _Score:
    """Holds the model; scores one shard a call and commits it."""

    def __init__(self, render: _Render, open_scorer: OpenScorer) -> None:
        self.render = render
        self.artifact = render.artifact
        self.store = render.settings.store
        self.scorer: Scorer | FusionRayError
        try:
            self.scorer = open_scorer(render.model, render.settings, self.artifact.models["model"].folder)
        except FusionRayError as error:  # Kept: if an actor fails to start, Ray does not tell the driver why.
            self.scorer = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([streams.answer(lambda: self._score(*batch.to_pylist()))])

    def _score(self, row: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self.scorer, FusionRayError):
            raise self.scorer
        path = self.render.todo[row["id"]].path
        rendered = streams.from_ipc(row.get("rendered") or self.render.render(row["id"]))
        attempts = open_attempts(self.artifact.folder, path)
        try:
            scored = score_surviving(rendered, self.scorer, attempts)
        except DeadEngineError as error:
            _leave(self.scorer, attempts, error)
        facts = sum_scores(scored) | {"cut": count_cut(rendered)}
        record = write_shard(self.artifact.folder, path, _pack(scored, self.store), self.artifact.fingerprint, facts)
        attempts.end()
        return asdict(record) | {"actor": f"{socket.gethostname()}/{os.getpid()}"}


def _pack(scored: pa.Table, store: Store) -> pa.Table:
    return scored if isinstance(store, PlainStore) else compact_topk(scored)


def _leave(scorer: Scorer, attempts: Attempts, error: DeadEngineError) -> NoReturn:
    """End this process, and the engine's own ones with it, so that Ray starts the actor anew."""
    attempts.explain(str(error))
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()
    closing = Thread(target=scorer.close, daemon=True)
    closing.start()
    closing.join(_CLOSING_S)
    os._exit(1)
