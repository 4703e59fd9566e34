"""What tests of the training loop share: settings for seconds, rows made by hand, weights to compare."""

import shutil
from pathlib import Path

import torch

from fusion_ray.recipe import Targets
from fusion_ray.targets.rows import TrainingRows
from fusion_ray.targets.trainer import Trainer
from toys.fused import toy_fused


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


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.engine.full_weights()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Shelf:
    """Keeps the checkpoints that a trainer hands out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[int] = []

    def __call__(self, folder: Path, step: int) -> None:
        shutil.copytree(folder, self.folder / str(step))
        self.steps.append(step)
