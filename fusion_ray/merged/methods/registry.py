"""Merge methods by name: how the plain parameters of a plan become a call of an algorithm."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.arcee_fusion import merge_arcee_fusion
from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.breadcrumbs import merge_breadcrumbs
from fusion_ray.merged.methods.dare import merge_dare
from fusion_ray.merged.methods.della import merge_della
from fusion_ray.merged.methods.karcher import merge_karcher
from fusion_ray.merged.methods.linear import merge_linear
from fusion_ray.merged.methods.model_stock import merge_model_stock
from fusion_ray.merged.methods.multislerp import merge_multislerp
from fusion_ray.merged.methods.pointwise import merge_nearswap, merge_passthrough, merge_ram, merge_ramplus
from fusion_ray.merged.methods.rescaled_sum import merge_rescaled_sum
from fusion_ray.merged.methods.sce import merge_sce
from fusion_ray.merged.methods.slerp import merge_nuslerp, merge_slerp
from fusion_ray.merged.methods.sparsify import key_of
from fusion_ray.merged.methods.task_arithmetic import Mixing, merge_task_arithmetic
from fusion_ray.merged.methods.ties import merge_ties
from fusion_ray.merged.methods.varm import keep_pivot, merge_varm, merge_varm_elements

Parameters = Mapping[str, Any]
Call = Callable[[BlockedTensor, Parameters, Sequence[int]], MergedTensor]


def merge_tensor(
    method: str, tensor: BlockedTensor, parameters: Parameters, *, seed: int, names: Sequence[str]
) -> MergedTensor:
    """Merge one tensor.

    Args:
        method: Name of the method.
        tensor: The tensor in every model that the method looks at, the base first where it has one.
        parameters: The method's parameters; values for each target as tuples. `based` says for the methods that
            can do without whether model 0 is a base.
        seed: Seeds random choices, together with the tensor's name and the models' names.
        names: Names of the models.

    Raises:
        MergeError: There is no such method, or it cannot compute with these tensors or parameters.
    """
    if method not in CALLS:
        raise MergeError(f"merge: unknown method '{method}'; known: {', '.join(sorted(CALLS))}.")
    keys_J = [key_of(seed, tensor.name, name) for name in names[1:]]
    return CALLS[method](tensor, parameters, keys_J)


def _varm(tensor: BlockedTensor, given: Parameters, _: Sequence[int]) -> MergedTensor:
    if given["granularity"] == "element":
        return merge_varm_elements(tensor)
    if "weights" not in given:
        return merge_varm(tensor)
    weights = given["weights"]
    return keep_pivot(tensor) if weights is None else merge_varm(tensor, np.array(weights))


def _mixing(given: Parameters) -> Mixing:
    return Mixing(given["weight"], given["normalize"], given["rescale"], given["lambda_"])


def _dare(elect: bool) -> Call:
    return lambda tensor, given, keys_J: merge_dare(tensor, _mixing(given), given["density"], keys_J, elect=elect)


def _della(elect: bool) -> Call:
    return lambda tensor, given, keys_J: merge_della(
        tensor, _mixing(given), given["density"], given["epsilon"], keys_J, elect=elect
    )


def _breadcrumbs(elect: bool) -> Call:
    return lambda tensor, given, _: merge_breadcrumbs(
        tensor, _mixing(given), given["density"], given["gamma"], elect=elect
    )


CALLS: dict[str, Call] = {
    "varm": _varm,
    "rescaled_sum": lambda tensor, given, _: merge_rescaled_sum(tensor, given["reach"]),
    "linear": lambda tensor, given, _: merge_linear(tensor, given["weight"], given["normalize"]),
    "sce": lambda tensor, given, _: merge_sce(tensor, given["select_topk"], given["dialect"]),
    "task_arithmetic": lambda tensor, given, _: merge_task_arithmetic(tensor, _mixing(given)),
    "ties": lambda tensor, given, _: merge_ties(tensor, _mixing(given), given["density"]),
    "dare_ties": _dare(True),
    "dare_linear": _dare(False),
    "della": _della(True),
    "della_linear": _della(False),
    "breadcrumbs": _breadcrumbs(False),
    "breadcrumbs_ties": _breadcrumbs(True),
    "slerp": lambda tensor, given, _: merge_slerp(tensor, given["t"]),
    "nuslerp": lambda tensor, given, _: merge_nuslerp(
        tensor,
        given["weight"],
        based=given.get("based", True),
        flatten=given["nuslerp_flatten"],
        row_wise=given["nuslerp_row_wise"],
    ),
    "multislerp": lambda tensor, given, _: merge_multislerp(
        tensor,
        given["weight"],
        based=given.get("based", True),
        normalize=given["normalize_weights"],
        eps=given["eps"],
    ),
    "karcher": lambda tensor, given, _: merge_karcher(tensor, given["max_iter"], given["tol"]),
    "model_stock": lambda tensor, given, _: merge_model_stock(tensor, given["filter_wise"]),
    "ram": lambda tensor, given, _: merge_ram(tensor, given["epsilon"]),
    "ramplus_tl": lambda tensor, given, _: merge_ramplus(tensor, given["r"], given["alpha"], given["epsilon"]),
    "nearswap": lambda tensor, given, _: merge_nearswap(tensor, given["t"]),
    "arcee_fusion": lambda tensor, _given, _: merge_arcee_fusion(tensor),
    "passthrough": lambda tensor, given, _: merge_passthrough(tensor, given["scale"]),
}
