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


def naive_deltas(
    models_M: list[np.ndarray],
    keep_J: list[np.ndarray],
    weights_J: list[float],
    *,
    normalize: bool,
    rescale: bool,
    elect: bool,
    lambda_: float = 1.0,
) -> np.ndarray:
    """Task arithmetic and all that are made from it: mask, rescale, weigh, elect a sign, add to the pivot."""
    pivot, *targets = models_M
    deltas = []
    for target, keep, weight in zip(targets, keep_J, weights_J, strict=True):
        delta = (target - pivot) * keep
        if rescale and np.abs(target - pivot).sum() >= 1e-7 and np.abs(delta).sum() >= 1e-7:
            delta = delta * np.abs(target - pivot).sum() / np.abs(delta).sum()
        deltas.append(delta * weight)
    agrees = np.ones_like(np.stack(deltas))
    if elect:
        sign = np.where(np.sum(deltas, axis=0) >= 0, 1, -1)
        agrees = np.stack([np.sign(delta) == sign for delta in deltas]).astype(float)
    merged = (np.stack(deltas) * agrees).sum(axis=0)
    if normalize:
        weights = np.array(weights_J).reshape(-1, *[1] * pivot.ndim)
        divisor = (agrees * weights).sum(axis=0)
        merged = merged / np.where(divisor == 0, 1, divisor)
    return pivot + lambda_ * merged


def naive_keep_largest(delta: np.ndarray, density: float) -> np.ndarray:
    """TIES: the share of largest magnitude, at least one element; ties to the first."""
    count = delta.size if density >= 1 else max(1, int(density * delta.size))
    keep = np.zeros(delta.size, dtype=bool)
    if density > 0:
        keep[np.argsort(-np.abs(delta).ravel(), kind="stable")[:count]] = True
    return keep.reshape(delta.shape)


def naive_keep_without_outliers(delta: np.ndarray, density: float, gamma: float) -> np.ndarray:
    """Breadcrumbs: without the largest and the smallest."""
    if density >= 1:
        return np.ones(delta.shape, dtype=bool)
    kept = int(density * delta.size)
    smallest = max(0, delta.size - kept - int(gamma * delta.size))
    keep = np.zeros(delta.size, dtype=bool)
    keep[np.argsort(np.abs(delta).ravel(), kind="stable")[smallest : smallest + kept]] = True
    return keep.reshape(delta.shape)


def naive_rank_probability(delta: np.ndarray, density: float, epsilon: float) -> np.ndarray:
    """DELLA: the probability of keeping each element, from its rank within the last dimension."""
    if not 0 < density < 1:
        return np.full(delta.shape, float(density >= 1))
    rows = delta.reshape(-1, delta.shape[-1])
    probability = np.full(rows.shape, density)
    for r, row in enumerate(rows):
        for rank, place in enumerate(np.argsort(np.abs(row), kind="stable")):
            probability[r, place] = density - epsilon + 2 * epsilon * rank / (len(row) - 1)
    return probability.reshape(delta.shape)


def naive_sce(models_M: list[np.ndarray], tau: float, dialect: str) -> np.ndarray:
    """SCE (FuseChat v2, section 3.3): select, calculate, erase."""
    pivot, *targets = models_M
    deltas = np.stack([target - pivot for target in targets])
    selected = np.ones(pivot.shape, dtype=bool)
    if tau < 1:
        variance = deltas.var(axis=0).astype(np.float32)
        count = int(np.count_nonzero(variance) * tau)
        selected[...] = False
        selected.flat[np.argsort(-variance.ravel(), kind="stable")[:count]] = True
    squares = np.array([((delta * selected) ** 2).mean() for delta in deltas])
    if squares.sum() == 0:
        return pivot
    eta = squares / squares.sum()
    moved = deltas * selected if dialect == "paper" else deltas
    sign = np.where(moved.sum(axis=0) >= 0, 1, -1)
    weights = eta.reshape(-1, *[1] * pivot.ndim) * (np.sign(moved) == sign)
    total = weights.sum(axis=0)
    return pivot + (weights * moved).sum(axis=0) / np.where(total > 0, total, 1)


def naive_slerp(start: np.ndarray, end: np.ndarray, t: float, straight_beyond: float = 0.9995) -> np.ndarray:
    """Spherical interpolation (Shoemake 1985) of two vectors of any length."""
    norms = np.linalg.norm(start) * np.linalg.norm(end)
    cosine = np.clip((start * end).sum() / norms, -1, 1) if norms > 0 else 0.0
    if abs(cosine) > straight_beyond:
        return (1 - t) * start + t * end
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)


def naive_nuslerp(models: list[np.ndarray], t: float, base: np.ndarray, axis: int | None) -> np.ndarray:
    """Spherical interpolation of two deltas, whole (axis None) or vector by vector along an axis."""
    first, second = models[0] - base, models[1] - base
    if axis is None:
        return base + naive_slerp(first, second, t, 1 - 1e-16)
    merged = np.empty_like(first)
    for place in np.ndindex(*np.delete(first.shape, axis)):
        at = (*place[:axis], slice(None), *place[axis:])
        merged[at] = naive_slerp(first[at], second[at], t, 1 - 1e-16)
    return base + merged


def naive_multislerp(points: list[np.ndarray], weights: list[float], eps: float = 1e-8) -> np.ndarray:
    """Barycentre on a sphere by the tangent space at the weighted mean."""
    norms = [np.linalg.norm(point) for point in points]
    units = [point / (norm + eps) for point, norm in zip(points, norms, strict=True)]
    mean = sum(w * unit for w, unit in zip(weights, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(w * (unit - (unit * mean).sum() * mean) for w, unit in zip(weights, units, strict=True))
    angle = np.linalg.norm(tangent) + eps
    direction = mean * np.cos(angle) + tangent * np.sin(angle) / angle
    return direction * sum(w * norm for w, norm in zip(weights, norms, strict=True))


def naive_karcher(models: list[np.ndarray], max_iter: int, tol: float) -> np.ndarray:
    """Mean on the unit sphere by gradient steps along the logarithms, times the mean length."""
    norms = [np.linalg.norm(model) for model in models]
    units = [model / norm for model, norm in zip(models, norms, strict=True)]
    mean = np.mean(units, axis=0)
    mean = mean / np.linalg.norm(mean)
    for _ in range(max_iter):
        tangent = np.zeros_like(mean)
        for unit in units:
            dot = np.clip((mean * unit).sum(), -1, 1)
            if np.arccos(dot) >= tol:
                tangent += np.arccos(dot) / np.sin(np.arccos(dot)) * (unit - dot * mean) / len(units)
        step = np.linalg.norm(tangent)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
        mean = mean / np.linalg.norm(mean)
    return mean * np.mean(norms)


def naive_model_stock(models_M: list[np.ndarray], filter_wise: bool = False) -> np.ndarray:
    """Model stock, equation 4: t = N cos / (1 + (N - 1) cos), with the mean cosine of all pairs of deltas."""
    pivot, *targets = models_M
    if filter_wise and pivot.ndim > 1:
        return np.stack([naive_model_stock([model[row] for model in models_M]) for row in range(len(pivot))])
    deltas = [target - pivot for target in targets]
    cosines = []
    for i, first in enumerate(deltas):
        for second in deltas[i + 1 :]:
            norms = max(np.linalg.norm(first) * np.linalg.norm(second), 1e-6)
            cosines.append(np.clip((first * second).sum() / norms, -1, 1))
    cosine, count = np.mean(cosines), len(targets)
    share = count * cosine / (1 + (count - 1) * cosine)
    return share * np.mean(targets, axis=0) + (1 - share) * pivot


def naive_rescaled_sum(models_M: list[np.ndarray], reach: str = "one") -> np.ndarray:
    """The base plus the deltas' sum, scaled to the root mean square of their lengths weighed by their squares.

    `each`: scaled so that, weighed by their lengths, the deltas' own directions see it go as far as they went.
    """
    base, *targets = models_M
    lengths = [np.linalg.norm(target - base) for target in targets]
    whole = sum(target - base for target in targets)
    if not any(lengths):
        return base
    if reach == "each":
        along = sum(float(np.sum(whole * (target - base))) for target in targets)
        return base + whole * min(1.0, sum(length**2 for length in lengths) / max(along, 1e-300))
    wanted = np.sqrt(sum(length**4 for length in lengths) / sum(length**2 for length in lengths))
    return base + whole * min(1.0, wanted / max(np.linalg.norm(whole), 1e-300))


def naive_ram(models_M: list[np.ndarray], epsilon: float, r: float = 0.0, alpha: float = 0.0) -> np.ndarray:
    """RAM; with r and alpha RAM+: scale what one target alone moved."""
    pivot, *targets = models_M
    moved = np.stack([np.abs(target - pivot) > epsilon for target in targets])
    several = moved.sum(axis=0) > 1
    merged = pivot.copy()
    for target, mine in zip(targets, moved, strict=True):
        ratio = (mine & several).sum() / max((mine & ~several).sum(), epsilon)
        factor = 1 + r * np.clip(ratio, 0, alpha)
        share = np.where(several, 1 / np.maximum(moved.sum(axis=0), 1), factor)
        merged += np.where(mine, target - pivot, 0) * share
    return merged


def naive_nearswap(base: np.ndarray, other: np.ndarray, t: float) -> np.ndarray:
    """Go at most t from the base towards the other."""
    share = np.clip(t / np.maximum(np.abs(base - other), 1e-6), 0, 1)
    return share * other + (1 - share) * base


def naive_arcee_fusion(base: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Take what changed much in rows whose softmax changed much."""
    p = np.exp(other) / np.exp(other).sum(axis=-1, keepdims=True) + 1e-8
    q = np.exp(base) / np.exp(base).sum(axis=-1, keepdims=True) + 1e-8
    importance = np.abs(other - base) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    ordered = np.sort(importance.ravel())
    q1, median, q3 = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= median + 1.5 * (q3 - q1), other, base)
