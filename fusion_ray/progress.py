"""How far a piece of work is: told by stages, drawn by the command line, logged by jobs."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report of one piece of work.

    Attributes:
        what: The artifact, such as `distributions/math`.
        done: Units done so far.
        total: Units in all.
        detail: What else is worth seeing on the line: a loss, a rate.
        shard: The shard that was just finished, where it was one.
        left_s: Seconds to go, where the stage knows better than by the share done so far.
    """

    what: str
    done: float
    total: float
    detail: str = ""
    shard: str = ""
    left_s: float | None = None


Tell = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""
