"""Learn the weights of a merge: descend the fusion loss of the mixture, and keep what does best on validation rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fusion_ray.algorithms.fuse.packing import Step, plan_epoch
from fusion_ray.algorithms.merge.learned import Descent, with_pivot
from fusion_ray.engines.mixture import Mixture
from fusion_ray.engines.training_data import TrainingRows, check_rows, make_batch
from fusion_ray.engines.validation import Validation
from fusion_ray.errors import NonFiniteError, RecipeError
from fusion_ray.merge_methods import Learned
from fusion_ray.recipe import Targets

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
    train: TrainingRows,
    validation: TrainingRows,
    settings: Targets,
    method: Learned,
    report: Report = lambda _: None,
) -> list[Point]:
    """Descend from `start`, measuring on the validation rows about every twelfth of the way.

    Args:
        mixture: The model.
        parts: The part of the model each tensor belongs to.
        start: Weights of the targets in each part.
        train: Rows to descend on.
        validation: Rows to choose by.
        settings: Of the stage targets: the loss, and the tokens of a step and of a batch.
        method: How many steps, how long, and within what bounds.
        report: Called with each point that was measured.

    Returns:
        The points measured, `start` first; see `best_point`.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
        RecipeError: No answer token to descend on, or no validation row to choose by.
        CorruptArtifactError: The rows are for another vocabulary.
    """
    check_rows(train, mixture.vocabulary, "the fused sets' train split")
    judge = Validation(validation)
    if not judge.lengths_N.any():
        raise RecipeError(
            "merged.method learned: no validation row to choose by; expected some. Raise corpus.validation, "
            "or use varm."
        )
    names = list(start)
    begin_GJ = np.array([start[name] for name in names], dtype=np.float64)
    descent = Descent(
        begin_GJ, learning_rate=method.learning_rate, steps=method.steps, simplex=method.members == "simplex"
    )
    steps = _Steps(train.lengths_N, settings, method.seed)
    points: list[Point] = []
    for number in range(method.steps + 1):
        row_of = dict(zip(names, descent.weights_GJ, strict=True))
        mixture.set_weights({tensor: with_pivot(row_of[part]) for tensor, part in parts.items()})
        if number % max(1, method.steps // _MEASUREMENTS) == 0 or number == method.steps:
            weights = {name: tuple(row.tolist()) for name, row in row_of.items()}
            points.append(Point(number, _measure(mixture, judge, settings, method.seed), weights))
            report(points[-1])
        if number < method.steps:
            _backward(mixture, train, steps[number], settings, number)
            slopes = mixture.take_slopes()
            descent.step(np.stack([_add(slopes, parts, name) for name in names]))
    return points


def best_point(points: Sequence[Point]) -> Point:
    """The point of lowest bits per byte; of equal ones the earliest, so that VaRM wins ties."""
    return min(points, key=lambda point: (point.bits_per_byte, point.step))


class _Steps:
    """The rows of each step, epoch after epoch without end."""

    def __init__(self, lengths_N: np.ndarray, settings: Targets, seed: int) -> None:
        self._plan = lambda epoch: _plan(lengths_N, settings, seed, epoch)
        self._per_epoch = len(self._plan(0))

    def __getitem__(self, number: int) -> Step:
        return self._plan(number // self._per_epoch)[number % self._per_epoch]


def _plan(lengths_N: np.ndarray, settings: Targets, seed: int, epoch: int) -> list[Step]:
    tokens = {"tokens_per_step": settings.tokens_per_step, "tokens_per_batch": settings.tokens_per_batch}
    return plan_epoch(lengths_N, **tokens, seed=seed, epoch=epoch)


def _backward(mixture: Mixture, rows: TrainingRows, step: Step, settings: Targets, number: int) -> None:
    """Add up the gradients of a step's mean loss over its answer tokens."""
    answers = float(rows.answers_N[step.rows].sum())
    for batch in step.batches:
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
def _measure(mixture: Mixture, judge: Validation, settings: Targets, seed: int) -> float:
    batches = [batch for step in _plan(judge.lengths_N, settings, seed, 0) for batch in step.batches]
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
