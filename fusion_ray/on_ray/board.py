"""A place where workers leave progress reports for the driver; light, so that its process starts quickly."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fusion_ray.progress import Progress, Tell


class _Board:
    def __init__(self) -> None:
        self.waiting: list[Progress] = []

    def put(self, progress: Progress) -> None:
        self.waiting.append(progress)

    def take(self) -> list[Progress]:
        taken, self.waiting = self.waiting, []
        return taken


def open_board() -> Any:
    """Start a board on the driver's node; it ends with the last handle to it."""
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()


def put_on(board: Any, progress: Progress) -> Any:
    """Leave a report without waiting for it; returns the reference, which `ray.get` can wait for."""
    return board.put.remote(progress)


def read_board(board: Any, tell: Tell) -> None:
    """Tell all reports that have come since the last reading."""
    for progress in ray.get(board.take.remote()):
        tell(progress)
