"""Bits per byte of the model in training on the validation rows, and which teachers it has overtaken there.

Judged on rows that are not trained on: on training rows a model that has learnt them by heart looks better than any
teacher. Judged per domain, because a source is good at something and not at everything.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fusion_ray.engines.training_data import TrainingBatch, TrainingRows


@dataclass(frozen=True)
class Measured:
    """Bits per byte over all validation rows, and by domain; None where no row's bytes are known."""

    overall: float | None
    by_domain: dict[str, float]


class Validation:
    """The validation rows whose answer's bytes are known (a row that was cut is left out).

    Attributes:
        lengths_N: Tokens of each row, 0 where it is left out.
    """

    def __init__(self, rows: TrainingRows) -> None:
        self.rows = rows
        self.bytes_N = np.array([rows.answer_bytes(number) for number in range(len(rows))], dtype=np.int64)
        self.lengths_N = np.where(self.bytes_N > 0, rows.lengths_N, 0)
        self.domain_N = np.array([rows.domain_of(number) for number in range(len(rows))])

    def sum_nll(self, student: Callable[..., Any], batches: Iterable[TrainingBatch]) -> np.ndarray:
        """Each row's nll in nats over its answer, as a student sees it; rows in no batch have 0."""
        nll_nats_N = torch.zeros(len(self.rows), dtype=torch.float64)
        for batch in batches:
            _, gold_N, _ = student(batch, 1.0)
            nll_nats_N.index_add_(0, torch.from_numpy(batch.row_N), gold_N.double().cpu())
        return nll_nats_N.numpy()

    def summarise(self, nll_nats_N: np.ndarray) -> Measured:
        """Turn each row's summed nll into bits per byte."""
        used_N = self.bytes_N > 0
        if not used_N.any():
            return Measured(None, {})
        by_domain = {}
        for domain in np.unique(self.domain_N[used_N]).tolist():
            here_N = used_N & (self.domain_N == domain)
            by_domain[domain] = float(nll_nats_N[here_N].sum() / math.log(2.0) / self.bytes_N[here_N].sum())
        return Measured(float(nll_nats_N[used_N].sum() / math.log(2.0) / self.bytes_N.sum()), by_domain)

    def overtaken(self, measured: Measured) -> frozenset[tuple[str, int]]:
        """Pairs of domain and model (0 is the pivot) in which the model in training is now at least as good.

        A teacher's own bits per byte are those that the fused set keeps of every row; a teacher without a score in a
        domain is not judged there.
        """
        beaten = set()
        for domain, own in measured.by_domain.items():
            here = np.flatnonzero((self.bytes_N > 0) & (self.domain_N == domain))
            theirs_NM = np.stack([self.rows.bits_per_byte(number) for number in here])
            bytes_N = self.bytes_N[here]
            for model in range(theirs_NM.shape[1]):
                scored_N = np.isfinite(theirs_NM[:, model])
                if not scored_N.any():
                    continue
                weights_N = bytes_N[scored_N]
                if own <= float(np.average(theirs_NM[scored_N, model], weights=weights_N)):
                    beaten.add((domain, model))
        return frozenset(beaten)
