"""Merge methods by name: how the plain parameters of a plan become a call of an algorithm."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fusion_ray.algorithms.merge.blocks import BlockedTensor, MergedTensor
from fusion_ray.algorithms.merge.linear import merge_linear
from fusion_ray.algorithms.merge.varm import keep_pivot, merge_varm, merge_varm_elements
from fusion_ray.errors import MergeError

Call = Callable[[BlockedTensor, Mapping[str, Any]], MergedTensor]


def merge_tensor(method: str, tensor: BlockedTensor, parameters: Mapping[str, Any]) -> MergedTensor:
    """Merge one tensor.

    Raises:
        MergeError: There is no such method, or it cannot compute with these tensors or parameters.
    """
    return find_method(method)(tensor, parameters)


def find_method(method: str) -> Call:
    """The call of a method.

    Raises:
        MergeError: There is no such method.
    """
    if method not in METHODS:
        raise MergeError(f"merge: unknown method '{method}'; known: {', '.join(sorted(METHODS))}.")
    return METHODS[method]


def _varm(tensor: BlockedTensor, parameters: Mapping[str, Any]) -> MergedTensor:
    if parameters["granularity"] == "element":
        return merge_varm_elements(tensor)
    if "weights" not in parameters:
        return merge_varm(tensor)
    weights = parameters["weights"]
    return keep_pivot(tensor) if weights is None else merge_varm(tensor, np.array(weights))


def _linear(tensor: BlockedTensor, parameters: Mapping[str, Any]) -> MergedTensor:
    return merge_linear(tensor, parameters["weight"], parameters["normalize"])


METHODS: dict[str, Call] = {
    "linear": _linear,
    "varm": _varm,
}
