"""Stage `fused`: align each source's distributions to the pivot's tokens and choose who teaches (MinCE).

Reads:  the corpus and the distributions of the pivot and of one source (all sources with `mode: multi`).
Writes: <source>/{train,validation}/ shards: the pivot's tokens and, at every answer position, the distribution that
        teaches it and the model it comes from; <source>/MANIFEST.json with what alignment and choice measured.

Shard i needs nothing but shard i of its inputs: one Ray Data task each, no shuffle and no join.
"""

import time
from collections import Counter
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import ray

from fusion_ray.engines.fusing import Fuser
from fusion_ray.engines.models import load_tokenizer
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import BytesAlign, Fused, Recipe
from fusion_ray.stages import cluster
from fusion_ray.storage.artifacts import Artifact, Manifest, read_manifest, retract_manifest, write_manifest
from fusion_ray.storage.rejections import settle_rejections
from fusion_ray.storage.shards import ShardRecord, find_shard, read_shard, write_shard

_SPLITS = ("train", "validation")
_COUNTED_SHARDS = 64
_LOUD_VIOLATION_NATS = 1e-3


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
        work = _FuseShard(recipe.fused, artifact, manifests, _count_tokens(recipe.fused, artifact, manifests))
        for result in cluster.stream(todo, work, cpus=recipe.fused.cpus_per_task):
            record = ShardRecord(**result)
            records[record.path] = record
            tell(Progress(str(artifact), len(records), len(paths)))
    ordered = [records[path] for path in paths]
    rejected = settle_rejections(artifact, ordered, recipe.fused.max_rejected)
    facts = _sum_facts(ordered) | {"rejected": rejected}
    tell(Progress(str(artifact), len(paths), max(len(paths), 1), _summary(facts)))
    write_manifest(artifact, seconds=time.monotonic() - started, shards=ordered, facts=facts)


class _FuseShard:
    """Fuses the shard at a path; runs in a task, and keeps the tokenizers' tables for the next one."""

    def __init__(
        self, settings: Fused, artifact: Artifact, manifests: dict[str, Manifest], counts: dict[str, Any]
    ) -> None:
        self.settings = settings
        self.artifact = artifact
        self.counts = counts
        self.records = {
            label: {shard.path: shard for shard in manifest.shards} for label, manifest in manifests.items()
        }

    def __call__(self, path: str) -> dict[str, Any]:
        tables = {
            label: read_shard(input_.folder, self.records[label][path])
            for label, input_ in self.artifact.inputs.items()
        }
        folders = tuple((name, model.folder) for name, model in self.artifact.models.items())
        fuser = _fuser(self.settings, folders, tuple(self.counts.items()), self.artifact.fingerprint)
        fused = fuser.fuse(tables.pop("corpus"), tables)
        return asdict(write_shard(self.artifact.folder, path, fused.table, self.artifact.fingerprint, fused.facts))


@lru_cache(maxsize=1)
def _fuser(settings: Fused, folders: tuple[tuple[str, str], ...], counts: tuple[tuple[str, Any], ...], _: str) -> Fuser:
    return Fuser(settings, dict(folders), {name: ray.get(reference) for name, reference in counts})


def _count_tokens(settings: Fused, artifact: Artifact, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """How often each source token occurs in the train split, in Ray's object store.

    An estimate is enough (it only shares out the tails inside groups): a fixed sample of shards is counted.
    """
    if not (isinstance(settings.align, BytesAlign) and settings.align.inner_tail == "unigram"):
        return {}
    counter = ray.remote(num_cpus=settings.cpus_per_task)(_count_shards)
    counts = {}
    for name, model in artifact.models.items():
        if name != "pivot":
            shards = manifests[name].shards_of("train")
            sample = shards[:: max(1, len(shards) // _COUNTED_SHARDS)][:_COUNTED_SHARDS]
            counts[name] = counter.remote(artifact.inputs[name].folder, sample, model.folder)
    return counts


def _count_shards(folder: str, shards: list[ShardRecord], model_folder: str) -> np.ndarray:
    counts_U = np.zeros(len(load_tokenizer(model_folder)), dtype=np.int64)
    for shard in shards:
        ids = read_shard(folder, shard, ["input_ids"])["input_ids"].combine_chunks().flatten().to_numpy()
        counts_U += np.bincount(ids, minlength=len(counts_U))[: len(counts_U)]
    return counts_U


def _sum_facts(records: list[ShardRecord]) -> dict[str, Any]:
    """Totals over shards: alignment by source, choice by domain."""
    alignment: dict[str, dict[str, float]] = {}
    chosen: dict[str, Counter[str]] = {}
    for record in records:
        for source, counts in record.facts["alignment"].items():
            total = alignment.setdefault(source, dict.fromkeys(counts, 0.0))
            for key, value in counts.items():
                total[key] = max(total[key], value) if key == "violation_nats" else total[key] + value
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
