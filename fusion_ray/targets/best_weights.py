"""Which weights a run ends with, and whether it ends early: both by bits per byte of the validation rows."""

import math
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch.distributed
from safetensors.torch import load_file, save_file

from fusion_ray.recipe import EarlyStop
from fusion_ray.targets.deepspeed import Engine


def is_best(values: list[float]) -> bool:
    """Whether the last measurement is below all others; the first of equal ones stays the best.

    >>> is_best([3.0, 2.0]), is_best([2.0, 2.0])
    (True, False)
    """
    return values[-1] < min(values[:-1], default=math.inf)


def is_out_of_patience(values: Iterable[float], early_stop: EarlyStop) -> bool:
    """Whether the last `patience` measurements, or more, have each gained less than `min_gain` on the best before.

    >>> is_out_of_patience([3.0, 2.0, 2.1, 2.05], EarlyStop(patience=2))
    True
    """
    best, waited = math.inf, 0
    for value in values:
        improved = value < best - early_stop.min_gain
        waited = 0 if improved else waited + 1
        best = min(best, value) if improved else best
    return waited >= early_stop.patience


class BestWeights:
    """The best weights so far: this worker's part of them, on its own disk and in every later checkpoint."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._folder = tempfile.TemporaryDirectory(prefix="fusion_ray_best_")
        self._path = Path(self._folder.name) / f"best-{torch.distributed.get_rank()}.safetensors"

    def keep(self) -> None:
        """Take the engine's weights as the best."""
        state = self._engine.state(moments=False)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, self._path)

    def put_back(self) -> None:
        """Copy the best weights back into the engine, whose optimizer cannot be used afterwards."""
        if self._path.exists():
            self._engine.load_state(load_file(self._path), moments=False)

    def save(self, folder: Path) -> None:
        """Add the best weights to a checkpoint."""
        if self._path.exists():
            shutil.copyfile(self._path, folder / self._path.name)

    def restore(self, folder: Path) -> None:
        """Take the best weights from a checkpoint, if there were any by then."""
        if (folder / self._path.name).exists():
            shutil.copyfile(folder / self._path.name, self._path)
