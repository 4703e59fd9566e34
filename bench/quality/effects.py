"""Differences between arms over several seeds: documents and seeds are both drawn anew.

Every seed has texts, models and held-out documents of its own. Within a seed two arms are paired by document; over
seeds the seed is a random effect: a draw takes seeds with replacement, then documents of each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from trials import Outcome

from fusion_ray.report.statistics.bootstrap import resample_rates
from fusion_ray.report.statistics.rates import OVERALL, Scores, measure_rates

DRAWS = 10_000


class Effect(NamedTuple):
    """Bits per byte of one model less another's, mean over seeds; below 0 the first is better.

    Attributes:
        value: Mean over seeds.
        low, high: 95 % interval over seeds and documents.
        p_value: Two-sided, of "no difference"; at least 2 / (draws + 1), and with few seeds optimistic.
        better: Seeds in which the first is better.
        seeds: Their number.
        in_sd: value over the standard deviation of the seeds' differences; None for one seed.
        by_seed: The seeds' differences.
    """

    value: float
    low: float
    high: float
    p_value: float
    better: int
    seeds: int
    in_sd: float | None
    by_seed: tuple[float, ...]

    @property
    def interval(self) -> str:
        """The 95 % interval as the tables have it."""
        return f"[{self.low:+.4f}, {self.high:+.4f}]"


def compare(pairs: Sequence[tuple[Outcome, str, Outcome, str]], domain: str = OVERALL) -> Effect:
    """Compare a model of one arm with a model of another, seed by seed.

    Args:
        pairs: For each seed the first arm and its model, the second arm and its model.
        domain: One domain, or all.
    """
    values, draws_SB = [], []
    for seed, (first, model, second, other) in enumerate(pairs):
        scores = _join(first, model, second, other)
        rates = measure_rates(scores)
        values.append(rates["first"][domain] - rates["second"][domain])
        drawn_BM = resample_rates(scores, DRAWS, seed).rates[domain]
        draws_SB.append(drawn_BM[:, 0] - drawn_BM[:, 1])
    rng = np.random.default_rng(0)
    drawn_BS = rng.integers(len(pairs), size=(DRAWS, len(pairs)))
    columns_BS = rng.integers(DRAWS, size=(DRAWS, len(pairs)))
    means_B = np.array(draws_SB)[drawn_BS, columns_BS].mean(axis=1)
    low, high = np.quantile(means_B, [0.025, 0.975])
    fewer = min(int((means_B <= 0).sum()), int((means_B >= 0).sum()))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Effect(
        value=float(np.mean(values)), low=float(low), high=float(high), p_value=min(1.0, 2 * (fewer + 1) / (DRAWS + 1)),
        better=sum(value < 0 for value in values), seeds=len(values),
        in_sd=float(np.mean(values)) / spread if spread else None, by_seed=tuple(values),
    )  # fmt: skip


def _join(first: Outcome, model: str, second: Outcome, other: str) -> Scores:
    """Both models over the documents that both arms could score."""
    place = {key: row for row, key in enumerate(second.ids)}
    rows = [(row, place[key]) for row, key in enumerate(first.ids) if key in place]
    ours, theirs = (np.array(column) for column in zip(*rows, strict=True))
    nll_MN = np.stack([first.scores.row(model)[ours], second.scores.row(other)[theirs]])
    return Scores(("first", "second"), nll_MN, first.scores.bytes_N[ours], first.scores.domains_N[ours])
