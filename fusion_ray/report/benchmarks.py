"""Benchmarks side by side: every model's value of every metric, and intervals of the merged model's differences."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion_ray.report.statistics.bootstrap import Difference, resample_mean

MERGED = "merged"


def compare_benchmarks(by_model: Mapping[str, Mapping[str, Any]], draws: int, seed: int) -> dict[str, Any]:
    """Put the models' results of each task beside each other.

    Args:
        by_model: What `run_harness` gave for each model; the merged one is among them.
        draws: Of the bootstrap over documents.
        seed: Equal seeds give equal draws.

    Returns:
        By task, by metric: `higher_is_better`, `documents`, `values` by model, and the merged model's `differences`
        from each other model, with intervals; those only where the metric is a mean over documents.
    """
    found: dict[str, Any] = {}
    for task, result in by_model[MERGED].items():
        for metric, better in result["higher_is_better"].items():
            values = {model: results[task]["metrics"][metric] for model, results in by_model.items()}
            pairs = {model: results[task]["values"].get(metric) for model, results in by_model.items()}
            found.setdefault(task, {})[metric] = {
                "higher_is_better": better,
                "documents": result["documents"],
                "values": values,
                "differences": {
                    f"{MERGED} - {model}": difference._asdict()
                    for model in by_model
                    if model != MERGED and (difference := _compare(values, pairs, model, draws, seed)) is not None
                },
            }
    return found


def benchmark_columns(benchmarks: Mapping[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """Every task and metric with its title, an arrow telling which way is better; nothing where none were run."""
    arrows = {True: " ↑", False: " ↓", None: ""}
    tasks = benchmarks["tasks"] if benchmarks else {}
    return [
        (f"{task} {metric.partition(',')[0]}{arrows[found['higher_is_better']]}", found)
        for task, metrics in tasks.items()
        for metric, found in metrics.items()
    ]


def best_value(found: Mapping[str, Any]) -> float | None:
    """The best model's value of a metric; None where the harness does not say which way is better."""
    better = found["higher_is_better"]
    return None if better is None else (max if better else min)(found["values"].values())


def _compare(
    values: Mapping[str, float], pairs: Mapping[str, Any], other: str, draws: int, seed: int
) -> Difference | None:
    """The merged model minus another over the same documents; None where the metric is no mean over them."""
    if not pairs[MERGED] or not pairs[other]:
        return None
    ours_N2, theirs_N2 = np.array(pairs[MERGED]), np.array(pairs[other])
    if not np.array_equal(ours_N2[:, 1], theirs_N2[:, 1]):
        return None
    for model, found_N2 in ((MERGED, ours_N2), (other, theirs_N2)):
        if not np.isclose(found_N2[:, 0].sum() / found_N2[:, 1].sum(), values[model], rtol=1e-6, atol=1e-9):
            return None
    return resample_mean(ours_N2[:, 0] - theirs_N2[:, 0], ours_N2[:, 1], draws, seed)
