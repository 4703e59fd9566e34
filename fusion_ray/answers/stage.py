"""Stage `answers` (optional): each source answers the training chats that it knows best anew.

Reads:  the corpus; the distributions of the pivot and of the sources that the source is chosen from.
Writes: <source>/train/ shards like the corpus's: the chats up to the answer that was given anew, and that answer;
        <source>/MANIFEST.json with how many were asked for and kept.

A chat is asked again if the source gives its answer fewer bits per byte than every other model does (MinCE). The new
answers hold the source's knowledge in its own words, which is more than the corpus holds of it.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from fusion_ray.answers.write import answer_anew
from fusion_ray.corpus.row_formats import ANSWERS_SCHEMA
from fusion_ray.distributions.mince import best_known
from fusion_ray.distributions.score import open_reader
from fusion_ray.errors import FusionRayError
from fusion_ray.models.generator import Generator
from fusion_ray.models.opening import make_generator
from fusion_ray.on_ray import streams
from fusion_ray.on_ray.shard_loop import make_shards
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import Recipe
from fusion_ray.storage.artifacts import Artifact, Manifest, read_manifest, retract_manifest, write_manifest
from fusion_ray.storage.shards import ShardRecord, read_shard, write_shard

_READ = ["id", "n_bytes", "real_logprobs", "reason"]


def build_answers(recipe: Recipe, artifacts: list[Artifact], tell: Tell) -> None:
    """Let the source of every artifact answer, several side by side while the cluster has room.

    Raises:
        ClusterError: The cluster can never run one actor as the recipe's distributions section asks for it.
        EngineError: A model cannot be loaded or failed while it wrote; finished shards stay.
    """
    streams.build_in_pools(recipe.distributions, artifacts, lambda artifact: _build_one(recipe, artifact, tell))


def _build_one(recipe: Recipe, artifact: Artifact, tell: Tell) -> None:
    started = time.monotonic()
    retract_manifest(artifact.folder)
    planned = read_manifest(artifact.chats.folder).shards_of("train")
    scored = {name: _records(read_manifest(made.folder)) for name, made in artifact.scores.items()}
    settings = recipe.distributions

    def answer(todo: list[ShardRecord]) -> Iterator[dict[str, Any]]:
        return streams.map_in_pool(streams.numbers(len(todo)), _Answer, (recipe, artifact, scored, todo), settings)

    ordered = make_shards(recipe.name, artifact, planned, answer, tell, actors=settings.actors.max)
    counts: Counter[str] = Counter()
    for record in ordered:
        counts.update(record.facts["counts"])
    kept = sum(record.rows for record in ordered)
    tell(Progress(str(artifact), len(planned), max(len(planned), 1), f"{kept:,} of {counts['asked']:,} answers kept"))
    write_manifest(artifact, seconds=time.monotonic() - started, shards=ordered, facts={"answers": dict(counts)})


def _records(manifest: Manifest) -> dict[str, ShardRecord]:
    return {shard.path: shard for shard in manifest.shards}


class _Answer:
    """Holds the model; answers the chats of one shard a call and commits them."""

    def __init__(
        self,
        recipe: Recipe,
        artifact: Artifact,
        scored: dict[str, dict[str, ShardRecord]],
        todo: list[ShardRecord],
    ) -> None:
        self.recipe, self.artifact, self.scored, self.todo = recipe, artifact, scored, todo
        self.engine: tuple[Any, Any, Generator] | FusionRayError
        try:
            self.engine = self._open()
        except FusionRayError as error:  # Kept: if an actor fails to start, Ray does not tell the driver why.
            self.engine = error

    def _open(self) -> tuple[Any, Any, Generator]:
        settings, name = self.recipe.distributions, self.artifact.source
        model, files = self.recipe.models()[name], self.artifact.models
        pivot = files["pivot"].folder if "pivot" in files else None
        tokenizer, reading = open_reader(model, settings, files["model"].folder, pivot)
        generator = make_generator(
            model.engine or settings.engine,
            files["model"].folder,
            max_length=reading.max_length,
            trust_remote_code=model.trust_remote_code,
            threads=max(1, int(settings.cpus_per_actor)),
        )
        return tokenizer, reading.template, generator

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([streams.answer(lambda: self._answer(self.todo[batch["id"][0].as_py()]))])

    def _answer(self, asked: ShardRecord) -> dict[str, Any]:
        if isinstance(self.engine, FusionRayError):
            raise self.engine
        assert self.recipe.answers is not None
        artifact, path = self.artifact, asked.path
        chats = read_shard(artifact.chats.folder, asked)
        scored = {
            name: read_shard(made.folder, self.scored[name][path], _READ) for name, made in artifact.scores.items()
        }
        own = chats.take(best_known(scored, artifact.source)).to_pylist()
        rows, counts = answer_anew(own, *self.engine, self.recipe.answers, self.recipe.seed)
        table = pa.Table.from_pylist(rows, schema=ANSWERS_SCHEMA)
        facts = {"rejected": [], "counts": dict(counts)}
        return asdict(write_shard(artifact.folder, path, table, artifact.fingerprint, facts))
