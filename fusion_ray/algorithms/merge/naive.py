"""Every merge method straight from its paper, in float64 on whole tensors: slow, plain, and the oracle of the tests.

models_M are float64 arrays of one shape. Where a method has a base it is models_M[0].
"""

import numpy as np


def naive_linear(models_M: list[np.ndarray], weights_M: list[float], normalize: bool = True) -> np.ndarray:
    """Mean of the models by weight."""
    total = sum(weights_M) if normalize else 1.0
    return np.tensordot(np.array(weights_M), np.stack(models_M), axes=1) / total


def naive_varm(models_M: list[np.ndarray]) -> np.ndarray:
    """VaRM of one matrix (FuseChat v1, section 3.3): squared deltas, their means, their shares."""
    pivot, *targets = models_M
    means_J = np.array([np.mean((target - pivot) ** 2) for target in targets])
    if means_J.sum() == 0:
        return pivot
    return sum(mean / means_J.sum() * target for mean, target in zip(means_J, targets, strict=True))


def naive_varm_grouped(tensors: dict[str, list[np.ndarray]], groups: dict[str, str]) -> dict[str, np.ndarray]:
    """VaRM with weights shared by all tensors of a group."""
    merged = {}
    for name, (pivot, *targets) in tensors.items():
        members = [other for other in tensors if groups[other] == groups[name]]
        means_J = np.array(
            [
                np.mean(np.concatenate([((tensors[o][j + 1] - tensors[o][0]) ** 2).ravel() for o in members]))
                for j in range(len(targets))
            ]
        )
        if means_J.sum() == 0:
            merged[name] = pivot
        else:
            merged[name] = sum(m / means_J.sum() * target for m, target in zip(means_J, targets, strict=True))
    return merged


def naive_varm_elements(models_M: list[np.ndarray]) -> np.ndarray:
    """VaRM of every element on its own; the pivot where no target moved."""
    pivot, *targets = models_M
    squares_J = np.stack([(target - pivot) ** 2 for target in targets])
    total = squares_J.sum(axis=0)
    mixed = (squares_J * np.stack(targets)).sum(axis=0) / np.where(total > 0, total, 1)
    return np.where(total > 0, mixed, pivot)
