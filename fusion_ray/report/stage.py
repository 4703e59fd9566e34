"""Stage `report`: did fusion work, and why.

Reads:  the held-out corpus; the pivot's and sources' held-out distributions; the models of targets and merged; the
        manifests, fused choices, training logs and merge weights of the run.
Writes: scores/<model>/ held-out shards of the trained models; report.json (the numbers), report.html (the page);
        documents.parquet (nll of every document and model); MANIFEST.json; the scores in the merged model's README.

The trained models are scored exactly as the pivot was: its template, its engine, the same documents.
"""

import hashlib
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from fusion_ray.distributions.score import open_reader, render_rows, score_rows, sum_scores
from fusion_ray.models.opening import make_scorer, trained_engine
from fusion_ray.on_ray import cluster, streams
from fusion_ray.on_ray.metrics import set_metrics
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import Recipe
from fusion_ray.report.choices import count_choices, sum_choices
from fusion_ray.report.evaluated_models import list_evaluated_models
from fusion_ray.report.examples import HeldoutShards, make_samples, make_views
from fusion_ray.report.heldout import HeldOut, compare_shard, documents_table, join_shards
from fusion_ray.report.history import describe_report, describe_run
from fusion_ray.report.judge import judge_models
from fusion_ray.report.model_card import add_scores
from fusion_ray.report.numbers import measure
from fusion_ray.report.page import render_page
from fusion_ray.report.run_benchmarks import run_benchmarks
from fusion_ray.report.weights import weights_by_part
from fusion_ray.storage.artifacts import Artifact, model_folder, read_manifest, retract_manifest, write_manifest
from fusion_ray.storage.filesystem import exists, join, read_bytes, sha256_of_file, write_bytes
from fusion_ray.storage.model_files import trained_model
from fusion_ray.storage.peak import take_peaks
from fusion_ray.storage.run_folder import DOCUMENTS, PAGE, REPORT, WEIGHTS
from fusion_ray.storage.shards import ShardRecord, find_shard, read_shard, write_shard

SPLIT = "heldout"


@dataclass(frozen=True)
class ScoredModel:
    """A model of the report and the folder that holds its held-out shards.

    Attributes:
        label: Its name in report.json.
        artifact: Where it comes from.
        folder: Folder of its scored shards.
        records: Its held-out shards, in the order of the corpus; empty before they are scored.
    """

    label: str
    artifact: Artifact
    folder: str
    records: tuple[ShardRecord, ...] = ()


def build_report(recipe: Recipe, artifacts: list[Artifact], tell: Tell) -> None:
    """Score what is not scored yet, compare all models, write the report; see the module.

    Raises:
        ArtifactError: A model of the run is missing, or no held-out document was scored by all models.
    """
    (artifact,) = artifacts
    started = time.monotonic()
    retract_manifest(artifact.folder)
    corpus = artifact.input_of("corpus")
    shards = read_manifest(corpus.folder).shards_of(SPLIT)
    models = [*_scored_before(artifact), *_score_trained(recipe, artifact, corpus, shards, tell)]
    heldout = _compare(corpus, shards, models)
    report = describe_run(recipe, artifact.inputs) | measure(heldout, recipe.report.bootstrap, recipe.seed)
    report["bootstrap"] = recipe.report.bootstrap
    report["scored_with"] = trained_engine(recipe).model_dump(mode="json")
    chosen = _count_chosen(artifact)
    report["chosen"] = {made.name: chosen[made.name] for made in artifact.inputs_of("fused")}
    report["answers"] = _count_answers(artifact, chosen)
    report["merge_weights"] = _merge_weights(_merged(artifact))
    report |= _make_examples(recipe, artifact, HeldoutShards(corpus.folder, tuple(shards)), models, heldout, tell)
    evaluated = list_evaluated_models(recipe, artifact, {model.label: model.artifact for model in models})
    report["judge"] = judge_models(recipe, artifact.folder, evaluated, tell)
    report["benchmarks"] = run_benchmarks(recipe, artifact.folder, artifact.contents, evaluated, tell)
    peaks = take_peaks()
    facts = {"verdict": report["verdict"]["text"], "documents": len(heldout.ids)}
    report["stages"].append(describe_report(artifact, time.monotonic() - started, peaks, facts))
    files = _write_files(artifact, report, heldout)
    _add_scores_to_card(_merged(artifact), report)
    write_manifest(artifact, seconds=time.monotonic() - started, files=files, facts=facts, peak_bytes=peaks)
    tell(Progress("report", 1, 1))


# --- scoring ---------------------------------------------------------------------------------------------------


def _scored_before(artifact: Artifact) -> list[ScoredModel]:
    """The pivot and the sources: stage distributions has scored them."""
    found = []
    for scored in artifact.inputs_of("distributions"):
        records = tuple(read_manifest(scored.folder).shards_of(SPLIT))
        label = "pivot" if scored.model == "pivot" else f"source:{scored.model}"
        found.append(ScoredModel(label, scored, scored.folder, records))
    return found


def _merged(artifact: Artifact) -> Artifact:
    """The merged model of the last round."""
    (merged,) = (made for made in artifact.inputs_of("merged") if not made.round)
    return merged


def trained_models(artifact: Artifact) -> list[ScoredModel]:
    """Control arms, targets and the merged model, in this order."""
    models = {arm.model: arm for arm in artifact.inputs_of("targets", "control")}
    models |= {f"target:{made.model}": made for made in artifact.inputs_of("targets") if not made.round}
    models["merged"] = _merged(artifact)
    return [
        ScoredModel(label, model, join(artifact.folder, "scores", label.replace(":", "/")))
        for label, model in models.items()
    ]


def _score_trained(
    recipe: Recipe, artifact: Artifact, corpus: Artifact, shards: list[ShardRecord], tell: Tell
) -> list[ScoredModel]:
    """Score the held-out shards of every trained model as tasks; shards that are scored already stay."""
    settings = recipe.distributions
    cluster.require("report", cpus=settings.cpus_per_actor, gpus=settings.gpus_per_actor, nodes=settings.nodes)
    models = trained_models(artifact)
    batches = [
        (model, shards[start :: settings.actors.max])
        for model in models
        for start in range(min(settings.actors.max, len(shards)))
    ]

    def score(batch: tuple[ScoredModel, list[ShardRecord]]) -> dict[str, Any]:
        model, mine = batch
        records = [record.__dict__ for record in _score_shards(recipe, corpus, model, mine)]
        return {"label": model.label, "records": records}

    found: dict[str, list[ShardRecord]] = {model.label: [] for model in models}
    rows = len(models) * sum(shard.rows for shard in shards)
    tell(Progress("report", 0, len(batches) + 1))
    for done, result in enumerate(streams.stream_with_models(batches, score, settings), start=1):
        found[result["label"]] += [ShardRecord(**record) for record in result["records"]]
        tell(Progress("report", done, len(batches) + 1, f"scored {result['label']}"))
        rows_done = sum(record.rows for records in found.values() for record in records)
        set_metrics(recipe.name, artifact, rows_done=rows_done, rows_total=rows)
    return [
        ScoredModel(m.label, m.artifact, m.folder, tuple(sorted(found[m.label], key=lambda record: record.path)))
        for m in models
    ]


def _score_shards(recipe: Recipe, corpus: Artifact, model: ScoredModel, shards: list[ShardRecord]) -> list[ShardRecord]:
    """Score some shards with one model, which is loaded only if one of them is missing."""
    fingerprint = scores_fingerprint(recipe, corpus.fingerprint, model.artifact.fingerprint)
    found = [find_shard(model.folder, shard.path, fingerprint) for shard in shards]
    todo = [shard for shard, record in zip(shards, found, strict=True) if record is None]
    records = [record for record in found if record is not None]
    if not todo:
        return records
    settings = recipe.distributions
    folder = trained_model(model.label, model_folder(model.artifact)).folder
    tokenizer, rendering = open_reader(recipe.pivot, settings, folder, folder)
    scorer = make_scorer(
        trained_engine(recipe),
        folder,
        top_k=1,
        max_length=settings.max_length,
        threads=max(1, int(settings.cpus_per_actor)),
        trust_remote_code=recipe.pivot.trust_remote_code,
    )
    for shard in todo:
        scored = score_rows(render_rows(read_shard(corpus.folder, shard), tokenizer, rendering), scorer)
        records.append(write_shard(model.folder, shard.path, scored, fingerprint, sum_scores(scored)))
    scorer.close()
    return records


def scores_fingerprint(recipe: Recipe, corpus: str, model: str) -> str:
    """What a scored shard depends on; adding a source to the run leaves the scores of the other targets valid.

    Args:
        recipe: The run.
        corpus, model: Fingerprints of these artifacts.
    """
    engine = trained_engine(recipe).model_dump(mode="json")
    settings = recipe.distributions
    reading = [recipe.pivot.template or settings.template, settings.max_length, settings.too_long]
    parts = [corpus, model, engine, reading]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


# --- comparing -------------------------------------------------------------------------------------------------


def _compare(corpus: Artifact, shards: list[ShardRecord], models: list[ScoredModel]) -> HeldOut:
    def compare(index: int) -> dict[str, Any]:
        tables = {model.label: read_shard(model.folder, model.records[index]) for model in models}
        return {"index": index} | compare_shard(read_shard(corpus.folder, shards[index]), tables)

    parts = sorted(streams.stream(list(range(len(shards))), compare, cpus=1), key=lambda part: part["index"])
    return join_shards([model.label for model in models], parts)


def _fused_sets(artifact: Artifact) -> list[Artifact]:
    return [*artifact.inputs_of("fused"), *artifact.inputs_of("fused", "answers")]


def _count_chosen(artifact: Artifact) -> dict[str, Any]:
    """Whom each fused set chose in training, by domain."""
    fused = _fused_sets(artifact)
    items = [(made, record) for made in fused for record in read_manifest(made.folder).shards_of("train")]

    def count(item: tuple[Artifact, ShardRecord]) -> dict[str, Any]:
        made, record = item
        table = read_shard(made.folder, record, columns=["domain", "chosen"])
        return {"fused": made.name, "counts": count_choices(table, list(made.models))}

    results = list(streams.stream(items, count, cpus=1))
    return {made.name: sum_choices(r["counts"] for r in results if r["fused"] == made.name) for made in fused}


def _count_answers(artifact: Artifact, chosen: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """By source, the answers that it was asked for anew, what became of them, and how many teach."""
    taught = {made.source: chosen[made.name] for made in artifact.inputs_of("fused", "answers")}
    return {
        made.source: {**read_manifest(made.folder).facts["answers"]}
        | {"taught": sum(counts["rows"].get(made.source, 0) for counts in taught[made.source].values())}
        for made in artifact.inputs_of("answers")
    }


def _merge_weights(merged: Artifact) -> dict[str, Any] | None:
    uri = join(merged.folder, WEIGHTS)
    return weights_by_part(json.loads(read_bytes(uri))) if exists(uri) else None


def _make_examples(
    recipe: Recipe, artifact: Artifact, corpus: HeldoutShards, models: list[ScoredModel], heldout: HeldOut, tell: Tell
) -> dict[str, Any]:
    shards_of = {model.label: HeldoutShards(model.folder, model.records) for model in models}
    scored = {m.label.removeprefix("source:"): m.artifact for m in models if m.artifact.stage == "distributions"}
    trained = [model for model in models if model.artifact.stage != "distributions"]
    files = {"pivot": artifact.models["pivot"]}
    files |= {model.label: trained_model(model.label, model_folder(model.artifact)) for model in trained}
    by_name = {label.removeprefix("source:"): shards for label, shards in shards_of.items()}
    return {
        "samples": make_samples(recipe, files, corpus, shards_of["pivot"], heldout, tell),
        "views": make_views(recipe, scored, corpus, by_name, heldout),
    }


# --- writing ---------------------------------------------------------------------------------------------------


def _add_scores_to_card(merged: Artifact, report: Mapping[str, Any]) -> None:
    """Complete the merged model's README, and its manifest with it."""
    uri = join(merged.folder, "README.md")
    if not exists(uri):
        return
    write_bytes(uri, add_scores(read_bytes(uri).decode(), report).encode())
    manifest = read_manifest(merged.folder)
    files = {**manifest.files, "README.md": sha256_of_file(uri)}
    write_manifest(
        merged, seconds=manifest.seconds, shards=list(manifest.shards), files=files, facts=manifest.facts,
        peak_bytes=manifest.peak_bytes,
    )  # fmt: skip


def _write_files(artifact: Artifact, report: Mapping[str, Any], heldout: HeldOut) -> dict[str, str]:
    """Write the report's files; their hashes by name."""
    buffer = io.BytesIO()
    pq.write_table(documents_table(heldout), buffer, compression="zstd")
    contents = {
        REPORT: (json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        PAGE: render_page(report).encode(),
        DOCUMENTS: buffer.getvalue(),
    }
    for name, content in contents.items():
        write_bytes(join(artifact.folder, name), content)
    return {name: sha256_of_file(join(artifact.folder, name)) for name in contents}
