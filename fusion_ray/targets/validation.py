"""Bits per byte of the model in training on the validation rows.

Measured on rows that are not trained on, because a model that has memorised its training rows looks too good on them.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from fusion_ray.targets.rows import TrainingBatch, TrainingRows


class Validation:
    """The validation rows whose answer's bytes are known (a row that was cut is left out).

    Attributes:
        lengths_N: Tokens of each row, 0 where it is left out.
    """

    def __init__(self, rows: TrainingRows) -> None:
        self.rows = rows
        self.bytes_N = np.array([rows.answer_bytes(number) for number in range(len(rows))], dtype=np.int64)
        self.lengths_N = np.where(self.bytes_N > 0, rows.lengths_N, 0)

    def sum_nll(self, student: Callable[..., Any], batches: Iterable[TrainingBatch]) -> np.ndarray:
        """Each row's nll in nats over its answer, as a student sees it; rows in no batch have 0."""
        nll_nats_N = torch.zeros(len(self.rows), dtype=torch.float64)
        for batch in batches:
            _, gold_N, _ = student(batch, 1.0)
            nll_nats_N.index_add_(0, torch.from_numpy(batch.row_N), gold_N.double().cpu())
        return nll_nats_N.numpy()

    def summarise(self, nll_nats_N: np.ndarray) -> float | None:
        """Turn each row's summed nll into the bits per byte of all rows; None where no row's bytes are known."""
        used_N = self.bytes_N > 0
        return float(nll_nats_N[used_N].sum() / math.log(2.0) / self.bytes_N.sum()) if used_N.any() else None
