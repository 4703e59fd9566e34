"""What tests of the training loop share: settings for seconds, rows made by hand, weights to compare."""

import shutil
from pathlib import Path

import pyarrow as pa
import torch

from fusion_ray.recipe import Targets
from fusion_ray.targets.control_arms import as_anchored
from fusion_ray.targets.rows import TrainingRows
from fusion_ray.targets.trackers import TrackedRun
from fusion_ray.targets.trainer import StepReport, Trainer
from toys.fused import toy_fused

RUN = TrackedRun("mine/math", "mine-math-0123", {"epochs": 3})


def settings(**changes: object) -> Targets:
    plain = {
        "dtype": "float32",
        "zero_stage": 0,
        "epochs": 2,
        "learning_rate": 3e-3,
        "tokens_per_step": 256,
        "tokens_per_batch": 128,
        "max_length": 64,
        "lambda_": 0.5,
        "checkpoint_every_steps": 2,
    }
    return Targets(**{**plain, **changes})


def rows(seed: int = 0) -> TrainingRows:
    return TrainingRows([toy_fused(24, vocabulary=280, seed=seed)], max_length=64)


def curve_line(step: int, bits_per_byte: float | None = None) -> StepReport:
    """One update's line of the training curve."""
    return StepReport(step, 4, step / 2, 3.0 - step, 2.0, 1.0, 1e-3, 0.5, 100, 50.0, bits_per_byte)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.engine.full_weights()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class KeptCheckpoints:
    """Keeps the checkpoints that a trainer hands out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[int] = []

    def __call__(self, folder: Path, step: int) -> None:
        shutil.copytree(folder, self.folder / str(step))
        self.steps.append(step)


def anchored_rows(chosen: int | None = None) -> TrainingRows:
    """Rows held to what the pivot's weights as they are would not say; with `chosen` every position has it."""
    table = toy_fused(24)
    if chosen is not None:
        made = [row and [chosen] * len(row) for row in table["chosen"].to_pylist()]
        table = table.set_column(table.column_names.index("chosen"), "chosen", pa.array(made, table["chosen"].type))
    return TrainingRows([as_anchored(table, toy_fused(24))], max_length=64)
