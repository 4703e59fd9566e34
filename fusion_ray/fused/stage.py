"""Stage `fused`: align each source's distributions to the pivot's tokens and choose who teaches (MinCE).

Reads:  the corpus and the distributions of the pivot and of one source (all sources with `mode: multi`); where sources
        answer anew, what each has answered, and its distributions.
Writes: <source>/{train,validation}/ shards: the pivot's tokens and, at every answer position, the distribution that
        teaches it and the model it comes from; <source>/MANIFEST.json with what alignment and choice measured. The same
        of what a source answered in answers/<source>/.

Shard i needs nothing but shard i of its inputs: one Ray Data task each, no shuffle and no join.
"""

import operator
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from fusion_ray.fused.align_published.vocabulary_map import PairCounts
from fusion_ray.fused.fuse import Fuser, Statistics
from fusion_ray.fused.trust import fit_trust
from fusion_ray.models.folders import load_tokenizer
from fusion_ray.on_ray import streams
from fusion_ray.on_ray.shard_loop import make_shards
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import BytesAlign, Fused, MinCE, Recipe
from fusion_ray.storage.artifacts import Artifact, Manifest, read_manifest, retract_manifest, write_manifest
from fusion_ray.storage.rejections import settle_rejections
from fusion_ray.storage.shards import ShardRecord, read_shard, write_shard

_SPLITS = ("train", "validation")
_COUNTED_SHARDS = 64
_CHUNK_SHARDS = 16
_LOUD_VIOLATION_NATS = 1e-3
_NOT_SUMMED = ("violation_nats", "trust")


def build_fused(recipe: Recipe, artifacts: list[Artifact], tell: Tell) -> None:
    """Make a fused set for every artifact.

    Raises:
        ArtifactError: More rows had to be rejected than fused.max_rejected allows, or an input shard is damaged.
    """
    for artifact in artifacts:
        _build_one(recipe, artifact, tell)


def _build_one(recipe: Recipe, artifact: Artifact, tell: Tell) -> None:
    started = time.monotonic()
    retract_manifest(artifact.folder)
    chats = read_manifest(artifact.chats.folder)
    planned = [shard for split in _SPLITS for shard in chats.shards_of(split)]

    def fuse(todo: list[ShardRecord]) -> Iterator[dict[str, Any]]:
        shards = _Shards(artifact, chats)
        work = _FuseShard(recipe.fused, shards, _gather_statistics(recipe.fused, shards))
        return streams.stream([shard.path for shard in todo], work, cpus=recipe.fused.cpus_per_task)

    ordered = make_shards(recipe.name, artifact, planned, fuse, tell)
    rejected = settle_rejections(artifact, ordered, recipe.fused.max_rejected, chats.rows)
    facts = _sum_facts(ordered) | {"rejected": rejected}
    tell(Progress(str(artifact), 1, 1, _summary(facts)))
    write_manifest(artifact, seconds=time.monotonic() - started, shards=ordered, facts=facts)


class _Shards:
    """Reads the chats of one shard, and what models say of them."""

    def __init__(self, artifact: Artifact, chats: Manifest) -> None:
        self.artifact = artifact
        self.chats = {shard.path: shard for shard in chats.shards}
        self.scored = {
            name: {shard.path: shard for shard in read_manifest(made.folder).shards}
            for name, made in artifact.scores.items()
        }
        self.train = [shard.path for shard in chats.shards_of("train")]
        self.sources = [name for name in artifact.scores if name != "pivot"]

    def read(self, path: str) -> tuple[pa.Table, dict[str, pa.Table]]:
        """The chats, and the distributions by model."""
        chats = read_shard(self.artifact.chats.folder, self.chats[path])
        return chats, {name: self.read_scored(path, name) for name in self.scored}

    def read_scored(self, path: str, name: str, columns: list[str] | None = None) -> pa.Table:
        """The distributions of one model."""
        return read_shard(self.artifact.scores[name].folder, self.scored[name][path], columns)

    @property
    def drawn(self) -> bool:
        """Whether the models' distributions are draws."""
        return bool(self.artifact.scores["pivot"].settings["store"]["kind"] == "sampled")

    @property
    def folders(self) -> dict[str, str]:
        return {name: model.folder for name, model in self.artifact.models.items()}


class _FuseShard:
    """Fuses the shard at a path; runs in a task, and keeps the tokenizers' tables for the next one."""

    def __init__(self, settings: Fused, shards: _Shards, statistics: dict[str, Any]) -> None:
        self.settings = settings
        self.shards = shards
        self.statistics = statistics

    def __call__(self, path: str) -> dict[str, Any]:
        artifact = self.shards.artifact
        statistics = tuple(self.statistics.items())
        fuser = _fuser(self.settings, tuple(self.shards.folders.items()), statistics, self.shards.drawn)
        fuse = fuser.fuse_answers if artifact.role == "answers" else fuser.fuse
        fused = fuse(*self.shards.read(path))
        return asdict(write_shard(artifact.folder, path, fused.table, artifact.fingerprint, fused.facts))


@lru_cache(maxsize=1)
def _fuser(
    settings: Fused, folders: tuple[tuple[str, str], ...], statistics: tuple[tuple[str, Any], ...], drawn: bool
) -> Fuser:
    known = {name: ray.get(reference) for name, reference in statistics}
    return Fuser(settings, dict(folders), known, drawn=drawn)


def _gather_statistics(settings: Fused, shards: _Shards) -> dict[str, Any]:
    """Statistics of each source over the train split, as references into Ray's object store."""
    task = ray.remote(num_cpus=settings.cpus_per_task)
    sources = shards.sources
    # An estimate is enough for shares of tails and for trust.
    sample = shards.train[:: max(1, len(shards.train) // _COUNTED_SHARDS)][:_COUNTED_SHARDS]
    known: dict[str, Any] = {}
    if isinstance(settings.align, BytesAlign):
        if settings.align.inner_tail == "unigram":
            known = {name: task(_count_tokens).remote(shards, name, sample) for name in sources}
    elif settings.align.kind == "ms":
        counted = [task(_count).remote(Fuser.count_pairs, settings, shards, chunk) for chunk in _chunks(shards.train)]
        known = {name: task(_sum_pairs).remote(name, *counted) for name in sources}
    if shards.artifact.role == "answers" or not isinstance(settings.choose, MinCE) or settings.choose.trust != "fitted":
        return known
    given = [part for name, statistics in known.items() for part in (name, statistics)]
    ratios = [task(_count).remote(Fuser.count_ratios, settings, shards, chunk, *given) for chunk in _chunks(sample)]
    return {name: task(_fit_trust).remote(name, known.get(name, Statistics()), *ratios) for name in sources}


def _chunks(paths: list[str]) -> list[list[str]]:
    return [paths[start : start + _CHUNK_SHARDS] for start in range(0, len(paths), _CHUNK_SHARDS)]


def _count_tokens(shards: _Shards, name: str, paths: list[str]) -> Statistics:
    counts_U = np.zeros(len(load_tokenizer(shards.folders[name])), dtype=np.int64)
    for path in paths:
        ids = shards.read_scored(path, name, ["input_ids"])["input_ids"].combine_chunks().flatten().to_numpy()
        counts_U += np.bincount(ids, minlength=len(counts_U))[: len(counts_U)]
    return Statistics(counts_U=counts_U)


def _count(
    count: Callable[..., dict[str, Any]], settings: Fused, shards: _Shards, paths: list[str], *given: Any
) -> dict[str, Any]:
    """What a method of Fuser counts in some shards, summed by source.

    `given` are names and statistics in turn, because Ray resolves references only among the arguments themselves.
    """
    fuser = Fuser(settings, shards.folders, dict(zip(given[::2], given[1::2], strict=True)))
    total: dict[str, Any] = {}
    for path in paths:
        for name, counts in count(fuser, *shards.read(path)).items():
            total[name] = total[name] + counts if name in total else counts
    return total


def _sum_pairs(name: str, *chunks: dict[str, PairCounts]) -> Statistics:
    return Statistics(pairs=reduce(operator.add, (chunk[name] for chunk in chunks)))


def _fit_trust(name: str, known: Statistics, *chunks: dict[str, np.ndarray]) -> Statistics:
    return known._replace(trust=fit_trust(sum((chunk[name] for chunk in chunks), start=np.zeros(1, dtype=np.int64))))


def _sum_facts(records: list[ShardRecord]) -> dict[str, Any]:
    """Totals over shards: alignment by source, choice by domain."""
    alignment: dict[str, dict[str, float]] = {}
    chosen: dict[str, Counter[str]] = {}
    for record in records:
        for source, counts in record.facts["alignment"].items():
            total = alignment.setdefault(source, dict.fromkeys(counts, 0.0))
            for key, value in counts.items():
                total[key] = max(total[key], value) if key in _NOT_SUMMED else total[key] + value
        for domain, choices in record.facts["chosen"].items():
            chosen.setdefault(domain, Counter()).update(choices)
    return {"alignment": alignment, "chosen": {domain: dict(counts) for domain, counts in chosen.items()}}


def _summary(facts: dict[str, Any]) -> str:
    parts = []
    for source, counts in facts["alignment"].items():
        coverage = counts["covered"] / counts["positions"] if counts["positions"] else 1.0
        loud = f", conservation off by {counts['violation_nats']:.2g} nats" * (
            counts["violation_nats"] > _LOUD_VIOLATION_NATS
        )
        parts.append(f"{source}: {coverage:.1%} covered{loud}")
    return "; ".join(parts)
