"""Learn the weights of a merge: descend the fusion loss of the mixture, and keep what does best on validation rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fusion_ray.algorithms.fuse.packing import Batch, plan_epoch
from fusion_ray.algorithms.merge.learned import Descent, with_pivot
from fusion_ray.engines.mixture import Mixture
from fusion_ray.engines.training_data import TrainingRows, check_rows, make_batch
from fusion_ray.engines.validation import Validation
from fusion_ray.errors import NonFiniteError, RecipeError
from fusion_ray.merge_methods import Learned
from fusion_ray.training import Targets

_PAD_ID = 0
_MEASUREMENTS = 12


@dataclass(frozen=True)
class Point:
    """Where the descent stood after some steps.

    Attributes:
        step: Steps done; 0 is VaRM.
        bits_per_byte: Of the validation rows.
        weights: Of the targets in each part of the model.
    """

    step: int
    bits_per_byte: float
    weights: Mapping[str, tuple[float, ...]]


Report = Callable[[Point], None]


def learn_weights(
    mixture: Mixture,
    parts: Mapping[str, str],
    start: Mapping[str, Sequence[float]],
    descended: TrainingRows,
    judged: TrainingRows,
    settings: Targets,
    method: Learned,
    report: Report = lambda _: None,
) -> list[Point]:
    """Descend from `start`, each step over all rows, measuring on others about every twelfth of the way.

    Neither may hold rows that the targets were trained on: these look best where the targets have learnt them by heart.

    Args:
        mixture: The model.
        parts: The part of the model each tensor belongs to.
        start: Weights of the targets in each part.
        descended: Rows to descend on.
        judged: Rows to choose by.
        settings: Of the stage targets: the loss, and the tokens of a batch.
        method: How many steps, how long, and within what bounds.
        report: Called with each point that was measured.

    Returns:
        The points measured, `start` first; see `best_point`.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
        RecipeError: No answer token to descend on, or no validation row to choose by.
        CorruptArtifactError: The rows are for another vocabulary.
    """
    judge = Validation(judged)
    if not judge.lengths_N.any() or not descended.answers_N.any():
        raise RecipeError(
            "merged.method learned: too few validation chats, half of which are descended on and half are to choose "
            "by; expected some with answers in each half. Raise corpus.validation, or use varm."
        )
    check_rows(descended, mixture.vocabulary, "the fused sets' validation split")
    names = list(start)
    begin_GJ = np.array([start[name] for name in names], dtype=np.float64)
    descent = Descent(
        begin_GJ, learning_rate=method.learning_rate, steps=method.steps, simplex=method.members == "simplex"
    )
    batches = _batches(descended.lengths_N, settings)
    points: list[Point] = []
    for number in range(method.steps + 1):
        row_of = dict(zip(names, descent.weights_GJ, strict=True))
        mixture.set_weights({tensor: with_pivot(row_of[part]) for tensor, part in parts.items()})
        if number % max(1, method.steps // _MEASUREMENTS) == 0 or number == method.steps:
            weights = {name: tuple(row.tolist()) for name, row in row_of.items()}
            points.append(Point(number, _measure(mixture, judge, settings), weights))
            report(points[-1])
        if number < method.steps:
            _backward(mixture, descended, batches, settings, number)
            slopes = mixture.take_slopes()
            descent.step(np.stack([_add(slopes, parts, name) for name in names]))
    return points


def best_point(points: Sequence[Point]) -> Point:
    """The point of lowest bits per byte; of equal ones the earliest, so that VaRM wins ties."""
    return min(points, key=lambda point: (point.bits_per_byte, point.step))


def _batches(lengths_N: np.ndarray, settings: Targets) -> list[Batch]:
    """All rows, in batches."""
    tokens = {"tokens_per_step": int(lengths_N.sum()), "tokens_per_batch": settings.tokens_per_batch}
    return [batch for step in plan_epoch(lengths_N, **tokens, seed=0, epoch=0) for batch in step.batches]


def _backward(mixture: Mixture, rows: TrainingRows, batches: Sequence[Batch], settings: Targets, number: int) -> None:
    """Add up the gradients of the mean loss over all answer tokens."""
    answers = float(rows.answers_N.sum())
    for batch in batches:
        laid_out = make_batch(rows, batch, settings, lambda_=settings.lambda_, pad_id=_PAD_ID).to(mixture.device)
        loss, _, _ = mixture.student(laid_out, answers)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteError(
                f"merged: the loss became {value} in step {number + 1} of learning the weights. Lower "
                "merged.method.learning_rate, or use members: simplex."
            )
        loss.backward()


@torch.no_grad()
def _measure(mixture: Mixture, judge: Validation, settings: Targets) -> float:
    batches = _batches(judge.lengths_N, settings)
    laid_out = (make_batch(judge.rows, batch, settings, lambda_=1.0, pad_id=_PAD_ID) for batch in batches)
    overall = judge.summarise(judge.sum_nll(mixture.student, (batch.to(mixture.device) for batch in laid_out))).overall
    if overall is None or not math.isfinite(overall):
        raise NonFiniteError(
            f"merged: the mixture has {overall} bits per byte on validation rows while its weights are learned. "
            "Lower merged.method.learning_rate, or use members: simplex."
        )
    return overall


def _add(slopes: Mapping[str, np.ndarray], parts: Mapping[str, str], part: str) -> np.ndarray:
    return np.sum([slopes[name] for name in slopes if parts[name] == part], axis=0)
