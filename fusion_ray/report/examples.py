"""The report's examples: sample answers of the models, and held-out answers in two tokenizations; Ray tasks."""

import operator
from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple

import pyarrow as pa

from fusion_ray.fused.fuse import Fuser, Statistics
from fusion_ray.models.transformers import TransformersGenerator
from fusion_ray.on_ray import streams
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import DtwAlign, Recipe
from fusion_ray.report.alignment_view import view_alignment
from fusion_ray.report.heldout import HeldOut
from fusion_ray.report.numbers import derive_seed
from fusion_ray.report.samples import Prompt, describe_samples, make_prompt, pick_documents
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.model_files import ModelFiles
from fusion_ray.storage.shards import ShardRecord, read_shard

_COUNTED_SHARDS = 8


class HeldoutShards(NamedTuple):
    """The held-out shards of the corpus or of one model's distributions, in the order of the corpus."""

    folder: str
    records: tuple[ShardRecord, ...]

    def row(self, shard: int, row: int) -> pa.Table:
        """One row, as a table."""
        return read_shard(self.folder, self.records[shard]).slice(row, 1)


def make_samples(
    recipe: Recipe,
    models: Mapping[str, ModelFiles],
    corpus: HeldoutShards,
    pivot: HeldoutShards,
    heldout: HeldOut,
    tell: Tell,
) -> list[dict[str, Any]]:
    """Let every model continue the same few held-out prompts, greedily.

    Args:
        recipe: The run.
        models: By label, all with the pivot's tokenizer.
        corpus, pivot: Held-out shards of the corpus and of the pivot's distributions.
        heldout: Which documents there are.
        tell: Receives progress.
    """
    seed = derive_seed(recipe.seed, "report samples")
    picked = pick_documents(heldout, recipe.report.samples, seed)
    prompts = [_prompt(corpus, pivot, heldout.place(identity)) for identity in picked]
    if not prompts:
        return []
    ends = [prompt.end_id for prompt in prompts if prompt.end_id is not None]

    def generate(label: str) -> dict[str, Any]:
        generator = TransformersGenerator(models[label].folder, trust_remote_code=recipe.pivot.trust_remote_code)
        asked = [prompt.input_ids for prompt in prompts]
        texts = generator.generate(asked, max_tokens=recipe.report.sample_tokens, end_ids=ends)
        return {"label": label, "texts": texts}

    found: dict[str, list[str]] = {}
    for result in streams.stream_with_models(list(models), generate, recipe.distributions):
        found[result["label"]] = result["texts"]
        tell(Progress("report", len(found), len(models) + 1, f"sample answers of {result['label']}"))
    return describe_samples(prompts, {label: found[label] for label in models}, heldout)


def _prompt(corpus: HeldoutShards, pivot: HeldoutShards, place: tuple[int, int]) -> Prompt:
    return make_prompt(corpus.row(*place), pivot.row(*place), 0)


def make_views(
    recipe: Recipe,
    scored: Mapping[str, Artifact],
    corpus: HeldoutShards,
    shards_of: Mapping[str, HeldoutShards],
    heldout: HeldOut,
) -> list[dict[str, Any]]:
    """Lay a few held-out answers out in the pivot's and in each source's tokens.

    Args:
        recipe: The run.
        scored: Artifacts of stage distributions by model name, the pivot's too.
        corpus: Held-out shards of the corpus.
        shards_of: Those of the models, by the same names.
        heldout: Which documents there are.
    """
    picked = pick_documents(heldout, recipe.report.views, derive_seed(recipe.seed, "report views"))
    domains = dict(zip(heldout.ids, heldout.scores.domains_N, strict=True))

    def view(source: str) -> dict[str, Any]:
        folders = {name: scored[name].models["model"].folder for name in ("pivot", source)}
        fuser = Fuser(recipe.fused, folders)
        align = recipe.fused.align
        if isinstance(align, DtwAlign) and align.kind == "ms":
            fuser = Fuser(recipe.fused, folders, {source: _count_pairs(fuser, source, corpus, shards_of)})
        views = []
        for identity in picked:
            place = heldout.place(identity)
            laid_out = view_alignment(fuser, source, shards_of["pivot"].row(*place), shards_of[source].row(*place))
            views.append({"source": source, "id": identity, "domain": str(domains[identity]), **laid_out})
        return {"source": source, "views": views}

    sources = [name for name in scored if name != "pivot"]
    results = {result["source"]: result["views"] for result in streams.stream(sources, view, cpus=1)}
    return [view for source in sources for view in results[source]]


def _count_pairs(
    fuser: Fuser, source: str, corpus: HeldoutShards, shards_of: Mapping[str, HeldoutShards]
) -> Statistics:
    """Count aligned pairs for the map of `ms` over held-out chats; training counted them over its own."""
    parts = [
        fuser.count_pairs(
            read_shard(corpus.folder, corpus.records[n]),
            {name: read_shard(shards_of[name].folder, shards_of[name].records[n]) for name in ("pivot", source)},
        )[source]
        for n in range(min(len(corpus.records), _COUNTED_SHARDS))
    ]
    return Statistics(pairs=reduce(operator.add, parts))
