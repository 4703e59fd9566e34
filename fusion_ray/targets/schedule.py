"""The learning rate of a step, as a share of the highest: warmup, then cosine, linear or constant."""

import math
from typing import Literal

ScheduleName = Literal["cosine", "linear", "constant"]


def learning_rate_share(step: int, total: int, *, kind: ScheduleName, warmup: float) -> float:
    """Share of the highest learning rate that the update number `step` (from 0) of `total` uses.

    Warmup rises linearly over the first `warmup` share of the updates, rounded up; cosine and linear then fall to
    0 at the end of training.

    >>> [round(learning_rate_share(step, 4, kind="linear", warmup=0.25), 3) for step in range(4)]
    [1.0, 1.0, 0.667, 0.333]
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if kind == "constant":
        return 1.0
    gone = (step - rising) / max(1, total - rising)
    return 1.0 - gone if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * gone))
