"""Every merge method on the targets of one finished run, by held-out bits per byte: the same documents, paired draws.

    python bench/merge_methods.py [RUN] [--methods varm-matrix ties-1 ...]

RUN is a folder such as runs/demo. Nothing in it changes; the merges and their scores go to a temporary folder.
"""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from measurement import Measurement, report

from fusion_ray.merged.stage import build_merged
from fusion_ray.on_ray import cluster
from fusion_ray.pipeline.graph import build_graph
from fusion_ray.progress import silent
from fusion_ray.recipe import Recipe, load_recipe, parse_recipe
from fusion_ray.report.stage import build_report
from fusion_ray.report.statistics.bootstrap import compare_models, resample_rates
from fusion_ray.report.statistics.rates import OVERALL, Scores, measure_rates
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.filesystem import join
from fusion_ray.storage.run_folder import DOCUMENTS, stage_folder

FIRST = "varm-matrix"
METHODS: dict[str, dict[str, Any]] = {
    **{f"varm-{g}": {"kind": "varm", "granularity": g} for g in ("matrix", "model", "layer", "module", "element")},
    "linear": {"kind": "linear"},
    "sce-0.1": {"kind": "sce", "select_topk": 0.1},
    "sce-1": {"kind": "sce"},
    "sce-0.1-fuseai": {"kind": "sce", "select_topk": 0.1, "dialect": "fuseai"},
    "task_arithmetic": {"kind": "task_arithmetic"},
    "ties-0.2": {"kind": "ties", "density": 0.2},
    "ties-1": {"kind": "ties"},
    "dare_ties-0.5": {"kind": "dare_ties", "density": 0.5},
    "karcher": {"kind": "karcher"},
    "model_stock": {"kind": "model_stock"},
    "rescaled_sum": {"kind": "rescaled_sum"},
}


def score(run: Path, recipe: Recipe, work: Path, name: str) -> Scores:
    """Merge by one method and score the result, and everything the report compares it with, on held-out documents."""
    changed = recipe.model_dump() | {
        "merged": recipe.merged.model_dump(exclude={"base"}) | {"method": METHODS[name]},
        "report": recipe.report.model_dump() | {"samples": 0, "views": 0, "bootstrap": 100},
    }
    asked = parse_recipe(changed)
    merged, made = (_artifact(asked, stage) for stage in ("merged", "report"))
    merged_before = merged.folder
    merged = replace(merged, run=str(work / name))
    build_merged(asked, [merged], silent)
    inputs = tuple(merged if given.folder == merged_before else given for given in made.inputs)
    made = replace(made, run=str(work / name), inputs=inputs)
    scores = stage_folder(str(run), "report", "scores")
    shutil.copytree(scores, join(made.folder, "scores"), ignore=shutil.ignore_patterns("merged"))
    build_report(asked, [made], silent)
    table = pq.read_table(join(made.folder, DOCUMENTS))
    models = tuple(column for column in table.column_names if column not in ("id", "domain", "n_bytes"))
    nll_MN = np.stack([table[model].to_numpy() for model in models])
    return Scores(models, nll_MN, table["n_bytes"].to_numpy(), np.array(table["domain"].to_pylist(), dtype=object))


def _artifact(recipe: Recipe, stage: str) -> Artifact:
    return next(artifact for artifact in build_graph(recipe) if artifact.stage == stage and not artifact.round)


def compare(found: dict[str, Scores]) -> None:
    """One line for each method, with the 95 % interval of its difference from VaRM by matrix."""
    first = found[FIRST]
    joined = first._replace(models=(FIRST,), nll_MN=first.row("merged")[None])
    for name, scores in found.items():
        if name != FIRST:
            joined = joined.with_model(name, scores.row("merged"))
    for target in (model for model in first.models if model.startswith("target:")):
        joined = joined.with_model(target, first.row(target))
    rates, resamples = measure_rates(joined), resample_rates(joined, 2000, 0)
    for name in joined.models:
        value = rates[name][OVERALL] - rates[FIRST][OVERALL]
        interval = compare_models(resamples, name, FIRST, OVERALL, value)
        domains = ", ".join(f"{domain} {rate:.3f}" for domain, rate in rates[name].items() if domain != OVERALL)
        case = f"{name} ({value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]; {domains})"
        ours, peer = rates[name][OVERALL], rates[FIRST][OVERALL]
        report(Measurement("merge_methods", case, "bits per byte", ours, peer, FIRST, ours / peer))


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/demo"))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    given = parser.parse_args()
    recipe = load_recipe(given.run / "recipe.json")
    cluster.connect()
    with tempfile.TemporaryDirectory(prefix="fusion_ray_merge_methods_") as temporary:
        work = Path(temporary)
        wanted = [FIRST, *(name for name in given.methods if name != FIRST)]
        compare({name: score(given.run, recipe, work, name) for name in wanted})


if __name__ == "__main__":
    main()
