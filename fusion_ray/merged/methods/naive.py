"""Every merge method straight from its paper, in float64 on whole tensors: slow, plain, and the oracle of the tests.

`naive_KIND` is the method KIND. It takes models_M, float64 arrays of one shape, the base first where the method has
one, and the method's parameters by their names; a parameter with a value for each target is a sequence. Methods that
draw are also given draws_J: for each target an array of numbers between 0 and 1. Methods that can do without a base are
told whether there is one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Arrays = Sequence[np.ndarray]


def naive_linear(models_M: Arrays, weight: Sequence[float], normalize: bool = True) -> np.ndarray:
    """Mean of the models by weight."""
    total = sum(weight) if normalize else 1.0
    return np.tensordot(np.array(weight), np.stack(models_M), axes=1) / total


def naive_passthrough(models_M: Arrays, scale: Sequence[float] = (1.0,)) -> np.ndarray:
    """The one model, times a factor."""
    return models_M[0] * scale[0]


def naive_varm(models_M: Arrays, granularity: str = "matrix") -> np.ndarray:
    """VaRM of one matrix (FuseChat v1, section 3.3): squared deltas, their means, their shares."""
    base, *targets = models_M
    if granularity == "element":
        return _naive_varm_elements(base, targets)
    means_J = np.array([np.mean((target - base) ** 2) for target in targets])
    if means_J.sum() == 0:
        return base
    return sum(mean / means_J.sum() * target for mean, target in zip(means_J, targets, strict=True))


def naive_varm_grouped(tensors: dict[str, list[np.ndarray]], groups: dict[str, str]) -> dict[str, np.ndarray]:
    """VaRM with weights shared by all tensors of a group."""
    merged = {}
    for name, (base, *targets) in tensors.items():
        members = [other for other in tensors if groups[other] == groups[name]]
        means_J = np.array(
            [
                np.mean(np.concatenate([((tensors[o][j + 1] - tensors[o][0]) ** 2).ravel() for o in members]))
                for j in range(len(targets))
            ]
        )
        if means_J.sum() == 0:
            merged[name] = base
        else:
            merged[name] = sum(m / means_J.sum() * target for m, target in zip(means_J, targets, strict=True))
    return merged


def _naive_varm_elements(base: np.ndarray, targets: Arrays) -> np.ndarray:
    """VaRM of every element on its own; the base where no target moved."""
    squares_J = np.stack([(target - base) ** 2 for target in targets])
    total = squares_J.sum(axis=0)
    weighted = (squares_J * np.stack(targets)).sum(axis=0) / np.where(total > 0, total, 1)
    return np.where(total > 0, weighted, base)


def naive_rescaled_sum(models_M: Arrays, reach: str = "one") -> np.ndarray:
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


def naive_sce(models_M: Arrays, select_topk: float = 1.0, dialect: str = "paper") -> np.ndarray:
    """SCE (FuseChat v2, section 3.3): select, calculate, erase."""
    base, *targets = models_M
    deltas = np.stack([target - base for target in targets])
    selected = np.ones(base.shape, dtype=bool)
    if select_topk < 1:
        variance = deltas.var(axis=0).astype(np.float32)
        count = int(np.count_nonzero(variance) * select_topk)
        selected[...] = False
        selected.flat[np.argsort(-variance.ravel(), kind="stable")[:count]] = True
    squares = np.array([((delta * selected) ** 2).mean() for delta in deltas])
    if squares.sum() == 0:
        return base
    eta = squares / squares.sum()
    moved = deltas * selected if dialect == "paper" else deltas
    sign = np.where(moved.sum(axis=0) >= 0, 1, -1)
    weights = eta.reshape(-1, *[1] * base.ndim) * (np.sign(moved) == sign)
    total = weights.sum(axis=0)
    return base + (weights * moved).sum(axis=0) / np.where(total > 0, total, 1)


def naive_deltas(
    models_M: Arrays,
    keep_J: Arrays,
    weight: Sequence[float],
    *,
    elect: bool,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> np.ndarray:
    """Task arithmetic and all that are made from it: mask, rescale, weigh, elect a sign, add to the base."""
    base, *targets = models_M
    deltas = []
    for target, keep, factor in zip(targets, keep_J, weight, strict=True):
        delta = (target - base) * keep
        if rescale and np.abs(target - base).sum() >= 1e-7 and np.abs(delta).sum() >= 1e-7:
            delta = delta * np.abs(target - base).sum() / np.abs(delta).sum()
        deltas.append(delta * factor)
    agrees = np.ones_like(np.stack(deltas))
    if elect:
        sign = np.where(np.sum(deltas, axis=0) >= 0, 1, -1)
        agrees = np.stack([np.sign(delta) == sign for delta in deltas]).astype(float)
    merged = (np.stack(deltas) * agrees).sum(axis=0)
    if normalize:
        weights = np.array(weight).reshape(-1, *[1] * base.ndim)
        divisor = (agrees * weights).sum(axis=0)
        merged = merged / np.where(divisor == 0, 1, divisor)
    return base + lambda_ * merged


def naive_task_arithmetic(models_M: Arrays, **options: Any) -> np.ndarray:
    """All of every delta."""
    return naive_deltas(models_M, [np.ones(models_M[0].shape)] * (len(models_M) - 1), elect=False, **options)


def naive_ties(models_M: Arrays, density: Sequence[float], **options: Any) -> np.ndarray:
    """The largest of each delta, and an election."""
    keep_J = [naive_keep_largest(delta, share) for delta, share in zip(_deltas(models_M), density, strict=True)]
    return naive_deltas(models_M, keep_J, elect=True, **options)


def naive_dare_linear(
    models_M: Arrays, draws_J: Arrays, density: Sequence[float], *, elect: bool = False, **options: Any
) -> np.ndarray:
    """What the draws leave of each delta."""
    keep_J = [draws < share for draws, share in zip(draws_J, density, strict=True)]
    return naive_deltas(models_M, keep_J, elect=elect, **options)


def naive_dare_ties(models_M: Arrays, draws_J: Arrays, **options: Any) -> np.ndarray:
    """What the draws leave of each delta, and an election."""
    return naive_dare_linear(models_M, draws_J, elect=True, **options)


def naive_della_linear(
    models_M: Arrays,
    draws_J: Arrays,
    density: Sequence[float],
    epsilon: Sequence[float],
    *,
    elect: bool = False,
    **options: Any,
) -> np.ndarray:
    """What the draws leave of each delta, by probabilities that grow with the magnitude."""
    given = zip(_deltas(models_M), draws_J, density, epsilon, strict=True)
    keep_J = [draws < naive_rank_probability(delta, share, spread) for delta, draws, share, spread in given]
    return naive_deltas(models_M, keep_J, elect=elect, **options)


def naive_della(models_M: Arrays, draws_J: Arrays, **options: Any) -> np.ndarray:
    """The same, and an election."""
    return naive_della_linear(models_M, draws_J, elect=True, **options)


def naive_breadcrumbs(
    models_M: Arrays, density: Sequence[float], gamma: Sequence[float], *, elect: bool = False, **options: Any
) -> np.ndarray:
    """Each delta without its largest and smallest elements."""
    given = zip(_deltas(models_M), density, gamma, strict=True)
    keep_J = [naive_keep_without_outliers(delta, share, dropped) for delta, share, dropped in given]
    return naive_deltas(models_M, keep_J, elect=elect, **options)


def naive_breadcrumbs_ties(models_M: Arrays, **options: Any) -> np.ndarray:
    """The same, and an election."""
    return naive_breadcrumbs(models_M, elect=True, **options)


def _deltas(models_M: Arrays) -> list[np.ndarray]:
    return [target - models_M[0] for target in models_M[1:]]


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


def naive_slerp(models_M: Arrays, t: float) -> np.ndarray:
    """Spherical interpolation (Shoemake 1985) of two models."""
    start, end = models_M
    return naive_arc(start, end, t)


def naive_arc(start: np.ndarray, end: np.ndarray, t: float, straight_beyond: float = 0.9995) -> np.ndarray:
    """The point at the share t of the arc between two vectors of any length."""
    norms = np.linalg.norm(start) * np.linalg.norm(end)
    cosine = np.clip((start * end).sum() / norms, -1, 1) if norms > 0 else 0.0
    if abs(cosine) > straight_beyond:
        return (1 - t) * start + t * end
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)


def naive_nuslerp(
    models_M: Arrays, has_base: bool, weight: Sequence[float], nuslerp_flatten: bool, nuslerp_row_wise: bool
) -> np.ndarray:
    """Spherical interpolation of two deltas, whole or vector by vector along the last or the first dimension."""
    base, first, second = models_M if has_base else (np.zeros_like(models_M[0]), *models_M)
    first, second, t = first - base, second - base, weight[1] / sum(weight)
    if nuslerp_flatten:
        return base + naive_arc(first, second, t, 1 - 1e-16)
    axis = 0 if nuslerp_row_wise else first.ndim - 1
    merged = np.empty_like(first)
    for place in np.ndindex(*np.delete(first.shape, axis)):
        at = (*place[:axis], slice(None), *place[axis:])
        merged[at] = naive_arc(first[at], second[at], t, 1 - 1e-16)
    return base + merged


def naive_multislerp(
    models_M: Arrays, has_base: bool, weight: Sequence[float], normalize_weights: bool = True, eps: float = 1e-8
) -> np.ndarray:
    """Barycentre on a sphere by the tangent space at the weighted mean."""
    base, *targets = models_M if has_base else (np.zeros_like(models_M[0]), *models_M)
    points, total = [target - base for target in targets], sum(weight) if normalize_weights else 1.0
    weights = [factor / total for factor in weight]
    norms = [np.linalg.norm(point) for point in points]
    units = [point / (norm + eps) for point, norm in zip(points, norms, strict=True)]
    mean = sum(w * unit for w, unit in zip(weights, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(w * (unit - (unit * mean).sum() * mean) for w, unit in zip(weights, units, strict=True))
    angle = np.linalg.norm(tangent) + eps
    direction = mean * np.cos(angle) + tangent * np.sin(angle) / angle
    return base + direction * sum(w * norm for w, norm in zip(weights, norms, strict=True))


def naive_karcher(models_M: Arrays, max_iter: int, tol: float) -> np.ndarray:
    """Mean on the unit sphere by gradient steps along the logarithms, times the mean length."""
    norms = [np.linalg.norm(model) for model in models_M]
    units = [model / norm for model, norm in zip(models_M, norms, strict=True)]
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


def naive_model_stock(models_M: Arrays, filter_wise: bool = False) -> np.ndarray:
    """Model stock, equation 4: t = N cos / (1 + (N - 1) cos), with the mean cosine of all pairs of deltas."""
    base, *targets = models_M
    if filter_wise and base.ndim > 1:
        return np.stack([naive_model_stock([model[row] for model in models_M]) for row in range(len(base))])
    deltas = [target - base for target in targets]
    cosines = []
    for i, first in enumerate(deltas):
        for second in deltas[i + 1 :]:
            norms = max(np.linalg.norm(first) * np.linalg.norm(second), 1e-6)
            cosines.append(np.clip((first * second).sum() / norms, -1, 1))
    cosine, count = np.mean(cosines), len(targets)
    share = count * cosine / (1 + (count - 1) * cosine)
    return share * np.mean(targets, axis=0) + (1 - share) * base


def naive_ram(models_M: Arrays, epsilon: float) -> np.ndarray:
    """RAM: the mean delta of the targets that moved an element."""
    return naive_ramplus_tl(models_M, 0.0, 0.0, epsilon)


def naive_ramplus_tl(models_M: Arrays, r: float, alpha: float, epsilon: float) -> np.ndarray:
    """RAM+: as RAM, but scale what one target alone moved."""
    base, *targets = models_M
    moved = np.stack([np.abs(target - base) > epsilon for target in targets])
    several = moved.sum(axis=0) > 1
    merged = base.copy()
    for target, mine in zip(targets, moved, strict=True):
        ratio = (mine & several).sum() / max((mine & ~several).sum(), epsilon)
        factor = 1 + r * np.clip(ratio, 0, alpha)
        share = np.where(several, 1 / np.maximum(moved.sum(axis=0), 1), factor)
        merged += np.where(mine, target - base, 0) * share
    return merged


def naive_nearswap(models_M: Arrays, t: float) -> np.ndarray:
    """Go at most t from the base towards the other."""
    base, other = models_M
    share = np.clip(t / np.maximum(np.abs(base - other), 1e-6), 0, 1)
    return share * other + (1 - share) * base


def naive_arcee_fusion(models_M: Arrays) -> np.ndarray:
    """Take what changed much in rows whose softmax changed much."""
    base, other = models_M
    p = np.exp(other) / np.exp(other).sum(axis=-1, keepdims=True) + 1e-8
    q = np.exp(base) / np.exp(base).sum(axis=-1, keepdims=True) + 1e-8
    importance = np.abs(other - base) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    ordered = np.sort(importance.ravel())
    q1, median, q3 = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= median + 1.5 * (q3 - q1), other, base)
