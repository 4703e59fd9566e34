"""SLERP: go along the arc between two models (Shoemake 1985), each tensor taken as one vector."""

import numpy as np

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor, need_models
from fusion_ray.merged.methods.gram import tensor_gram, weigh_arc
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sums import combine
from fusion_ray.recipe.merge_methods import Slerp

_NEARLY_PARALLEL = 0.9995  # mergekit's and everyone's: beyond it SLERP goes straight.


@method(Slerp)
def merge_slerp(tensor: BlockedTensor, parameters: Slerp, _: Context) -> MergedTensor:
    """Go the share `t` of the arc from model 0 to model 1; between nearly parallel tensors go straight."""
    need_models(tensor, "slerp", 2)
    return combine(tensor, _weigh(tensor_gram(tensor, minus_first=False), parameters.t))


def _weigh(gram_MM: np.ndarray, t: float) -> np.ndarray:
    norms_M = np.sqrt(np.diag(gram_MM))
    norms_M = np.where(norms_M > 1e-8, norms_M, 1.0)
    cosine = float(np.clip(gram_MM[0, 1] / (norms_M[0] * norms_M[1]), -1, 1))
    if abs(cosine) > _NEARLY_PARALLEL:
        return np.array([1 - t, t])
    return weigh_arc(cosine, t)
