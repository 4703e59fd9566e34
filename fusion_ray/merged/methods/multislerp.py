"""Multi-SLERP: the barycentre of any number of tensors on a sphere, found in the tangent space at their mean."""

import numpy as np

from fusion_ray.errors import MergeError
from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.gram import from_deltas, length, tensor_gram
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sums import combine
from fusion_ray.recipe.merge_methods import Multislerp


@method(Multislerp)
def merge_multislerp(tensor: BlockedTensor, parameters: Multislerp, context: Context) -> MergedTensor:
    """Merge the targets' deltas as points of a sphere; without a base the targets themselves.

    Raises:
        MergeError: The weights sum to 0, or the weighted points cancel out.
    """
    weights = context.per_target(parameters.weight)
    weights_J = np.asarray(weights, dtype=np.float64)
    if parameters.normalize_weights:
        if weights_J.sum() == 0:
            raise MergeError(f"multislerp: tensor {tensor.name}: the weights {list(weights)} sum to 0.")
        weights_J = weights_J / weights_J.sum()
    if len(weights_J) == 1:
        return combine(tensor, np.array([0.0, 1.0]) if context.has_base else np.ones(1))
    gram_MM = tensor_gram(tensor, minus_first=context.has_base)
    if context.has_base:
        return combine(tensor, from_deltas(_weigh(gram_MM[1:, 1:], weights_J, parameters.eps, tensor.name)))
    return combine(tensor, _weigh(gram_MM, weights_J, parameters.eps, tensor.name))


def _weigh(gram_JJ: np.ndarray, weights_J: np.ndarray, eps: float, name: str) -> np.ndarray:
    norms_J = np.sqrt(np.diag(gram_JJ))
    if not norms_J.any():
        return weights_J  # Nothing moved, so nothing is added, whatever the weights.
    units_JJ = np.diag(1 / (norms_J + eps))  # Row j: the unit vector of point j by its coefficients.
    mean_J = weights_J @ units_JJ
    mean_length = length(mean_J, gram_JJ)
    if mean_length < eps:
        if len(weights_J) == 2:
            return weights_J
        raise MergeError(
            f"multislerp: tensor {name}: the weighted points cancel out, so their mean has no direction. "
            "Change the weights."
        )
    mean_J = mean_J / mean_length
    dots_J = units_JJ @ gram_JJ @ mean_J
    tangent_J = weights_J @ (units_JJ - dots_J[:, None] * mean_J)
    angle = length(tangent_J, gram_JJ) + eps
    return (mean_J * np.cos(angle) + tangent_J * (np.sin(angle) / angle)) * float(norms_J @ weights_J)
