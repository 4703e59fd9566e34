"""Merge weights by layer and module, from the weight of every tensor."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion_ray.merged.methods.varm import group_of

OUTSIDE = "outside layers"
_NUMBER = re.compile(r"\.(\d+)$")


def weights_by_part(content: Mapping[str, Any]) -> dict[str, Any]:
    """Average the weights of the tensors of every layer and module.

    Args:
        content: Of weights.json: `method`, and by tensor the weight of every target, or null where the tensor has no
            single weight for each (element-wise methods) or no target moved it (the pivot's was kept).

    Returns:
        `method`, `targets`, `parts` (layer, module, number of tensors, mean weight of every target; in model order)
        and `without_weights`, the tensors that have none.
    """
    tensors: Mapping[str, Mapping[str, float] | None] = content["tensors"]
    weighed = {name: found for name, found in tensors.items() if found is not None}
    targets = list(dict.fromkeys(target for found in weighed.values() for target in found))
    parts: dict[tuple[int, str, str], list[list[float]]] = {}
    for name, found in weighed.items():
        parts.setdefault(_place(name), []).append([found.get(target, 0.0) for target in targets])
    return {
        "method": content["method"],
        "targets": targets,
        "parts": [
            {
                "layer": layer,
                "module": module,
                "tensors": len(rows),
                "weights": dict(zip(targets, np.mean(rows, axis=0).tolist(), strict=True)),
            }
            for (_, layer, module), rows in sorted(parts.items())
        ],
        "without_weights": sorted(tensors.keys() - weighed.keys()),
    }


def _place(name: str) -> tuple[int, str, str]:
    """Order, layer and module of a tensor; what lies outside any layer comes first."""
    layer, module = group_of(name, "layer"), group_of(name, "module")
    number = _NUMBER.search(layer)
    if number is None or layer == module:
        return (-1, OUTSIDE, module.rpartition(".")[2])
    return (int(number.group(1)), number.group(1), module.removeprefix(layer).lstrip("."))
