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
from collections.abc import Callable, Iterable
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
from fusion_ray.on_ray.metrics import set_shard_metrics
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import BytesAlign, Fused, MinCE, Recipe
from fusion_ray.storage.artifacts import Artifact, Manifest, read_manifest, retract_manifest, write_manifest
from fusion_ray.storage.rejections import settle_rejections
from fusion_ray.storage.shards import ShardRecord, find_shard, read_shard, write_shard

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
    manifests = {label: read_manifest(input_.folder) for label, input_ in artifact.inputs.items()}
    paths = [shard.path for split in _SPLITS for shard in manifests["corpus"].shards_of(split)]
    found = {path: find_shard(artifact.folder, path, artifact.fingerprint) for path in paths}
    records = {path: record for path, record in found.items() if record}
    todo = [path for path in paths if path not in records]
    tell(Progress(str(artifact), len(records), len(paths)))
    if todo:
        rows = sum(shard.rows for split in _SPLITS for shard in manifests["corpus"].shards_of(split))
        shards = _Shards(artifact, manifests)
        work = _FuseShard(recipe.fused, shards, _gather_statistics(recipe.fused, shards))
        for result in streams.stream(todo, work, cpus=recipe.fused.cpus_per_task):
            record = ShardRecord(**result)
            records[record.path] = record
            tell(Progress(str(artifact), len(records), len(paths), shard=record.path))
            set_shard_metrics(recipe.name, artifact, list(records.values()), rows, time.monotonic() - started)
    ordered = [records[path] for path in paths]
    rejected = settle_rejections(artifact, ordered, recipe.fused.max_rejected, manifests["corpus"].rows)
    facts = _sum_facts(ordered) | {"rejected": rejected}
    tell(Progress(str(artifact), len(paths), max(len(paths), 1), _summary(facts)))
    write_manifest(artifact, seconds=time.monotonic() - started, shards=ordered, facts=facts)


class _Shards:
    """Reads shard i of every input."""

    def __init__(self, artifact: Artifact, manifests: dict[str, Manifest]) -> None:
        self.artifact = artifact
        self.records = {
            label: {shard.path: shard for shard in manifest.shards} for label, manifest in manifests.items()
        }
        self.train = [shard.path for shard in manifests["corpus"].shards_of("train")]

    def read(self, path: str, labels: Iterable[str] | None = None) -> dict[str, pa.Table]:
        inputs = self.artifact.inputs
        return {label: read_shard(inputs[label].folder, self.records[label][path]) for label in labels or inputs}

    @property
    def drawn(self) -> bool:
        return bool(self.artifact.inputs["pivot"].settings["store"]["kind"] == "sampled")

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
        artifact, tables = self.shards.artifact, self.shards.read(path)
        statistics = tuple(self.statistics.items())
        fuser = _fuser(self.settings, tuple(self.shards.folders.items()), statistics, self.shards.drawn)
        fuse = fuser.fuse_answers if artifact.of_answers else fuser.fuse
        fused = fuse(tables.pop("corpus"), tables)
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
    sources = [name for name in shards.artifact.inputs if name not in ("corpus", "pivot")]
    # An estimate is enough for shares of tails and for trust.
    sample = shards.train[:: max(1, len(shards.train) // _COUNTED_SHARDS)][:_COUNTED_SHARDS]
    known: dict[str, Any] = {}
    if isinstance(settings.align, BytesAlign):
        if settings.align.inner_tail == "unigram":
            known = {name: task(_count_tokens).remote(shards, name, sample) for name in sources}
    elif settings.align.kind == "ms":
        counted = [task(_count).remote(Fuser.count_pairs, settings, shards, chunk) for chunk in _chunks(shards.train)]
        known = {name: task(_sum_pairs).remote(name, *counted) for name in sources}
    if shards.artifact.of_answers or not isinstance(settings.choose, MinCE) or settings.choose.trust != "fitted":
        return known
    given = [part for name, statistics in known.items() for part in (name, statistics)]
    ratios = [task(_count).remote(Fuser.count_ratios, settings, shards, chunk, *given) for chunk in _chunks(sample)]
    return {name: task(_fit_trust).remote(name, known.get(name, Statistics()), *ratios) for name in sources}


def _chunks(paths: list[str]) -> list[list[str]]:
    return [paths[start : start + _CHUNK_SHARDS] for start in range(0, len(paths), _CHUNK_SHARDS)]


def _count_tokens(shards: _Shards, name: str, paths: list[str]) -> Statistics:
    counts_U = np.zeros(len(load_tokenizer(shards.folders[name])), dtype=np.int64)
    for path in paths:
        ids = shards.read(path, [name])[name]["input_ids"].combine_chunks().flatten().to_numpy()
        counts_U += np.bincount(ids, minlength=len(counts_U))[: len(counts_U)]
    return Statistics(counts_U=counts_U)


def _count(
    count: Callable[..., dict[str, Any]], settings: Fused, shards: _Shards, paths: list[str], *given: Any
) -> dict[str, Any]:
    """What a method of Fuser counts in some shards, summed by source.

    `given` are names and statistics in turn: Ray looks for references among the arguments, and no deeper.
    """
    fuser = Fuser(settings, shards.folders, dict(zip(given[::2], given[1::2], strict=True)))
    total: dict[str, Any] = {}
    for path in paths:
        tables = shards.read(path)
        for name, counts in count(fuser, tables.pop("corpus"), tables).items():
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
