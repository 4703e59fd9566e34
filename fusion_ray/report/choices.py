"""Whom the fused sets chose as the teacher, by domain."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fusion_ray.report.heldout import domain_label
from fusion_ray.storage.topk import GOLD


def count_choices(fused: pa.Table, models: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
    """Count a fused shard's choices: by domain, then by model, rows and answer positions.

    A row counts for the model that teaches most of its positions; `gold` are positions without a teacher.

    Args:
        fused: Columns `domain` and `chosen` of a fused shard.
        models: The pivot, then the sources, as `chosen` numbers them.
    """
    names = [GOLD, *models]
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for domain, chosen in zip(fused["domain"].to_pylist(), fused["chosen"], strict=True):
        if not chosen.is_valid or not len(chosen.values):
            continue
        per_model = np.bincount(np.asarray(chosen.values).astype(np.int64) + 1, minlength=len(names))
        found = counts.setdefault(domain_label(domain), Counter())
        found["rows", names[int(per_model.argmax())]] += 1
        for name, n in zip(names, per_model.tolist(), strict=True):
            found["positions", name] += n
    return {
        domain: {kind: {name: found[kind, name] for name in names} for kind in ("rows", "positions")}
        for domain, found in counts.items()
    }


def sum_choices(parts: Iterable[dict[str, dict[str, dict[str, int]]]]) -> dict[str, Any]:
    """The counts of several shards together, domains in order."""
    total: dict[str, dict[str, Counter[str]]] = {}
    for part in parts:
        for domain, kinds in part.items():
            for kind, counts in kinds.items():
                total.setdefault(domain, {}).setdefault(kind, Counter()).update(counts)
    return {domain: {kind: dict(found) for kind, found in total[domain].items()} for domain in sorted(total)}
