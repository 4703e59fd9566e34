"""Watch for warnings that a training worker is about to end, and save a checkpoint after the running update.

There are two. Ray drains a node that its provider is about to take away (spot, autoscaler, `drain-node`), and Ray Train
tells all workers within seconds. Or the process gets SIGTERM (Slurm, a container's runtime); then the worker ends after
the checkpoint, and Ray Train starts the group again.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train.torch import TorchConfig

_ASK_EVERY_S = 5.0
_COMMIT_WITHIN_S = 60.0
_terminated = threading.Event()


class WatchingTorch(TorchConfig):
    """Ray Train's set-up of torch, in workers that take SIGTERM as a warning."""

    @property
    def backend_cls(self) -> type:
        """The class that sets up the workers; Ray asks for it by this name."""
        return _WatchingBackend


class _WatchingBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_start(worker_group, backend_config)
        # Through the group and not in the training function: that runs in a thread, which may set no handler.
        worker_group.execute(_take_sigterm_as_a_warning)


def _take_sigterm_as_a_warning() -> None:
    signal.signal(signal.SIGTERM, lambda *_: _terminated.set())


class PreemptionWatch:
    """Asked after every update, by all workers together: is a checkpoint wanted now?"""

    def __init__(self) -> None:
        self._asked_at = time.monotonic()
        self._known: set[str] = set()

    def __call__(self, anyone: Callable[[bool], bool]) -> bool:
        """Whether a checkpoint is wanted, the same answer in every worker.

        Args:
            anyone: Whether any worker says yes; called in all of them equally often.
        """
        if anyone(_terminated.is_set()):
            return True
        if not anyone(time.monotonic() - self._asked_at > _ASK_EVERY_S):
            return False
        self._asked_at = time.monotonic()
        # This call waits for all workers, so they make it together, and not after every update.
        drained = ray.train.get_preemption_info()
        new = set(drained.preempted_node_ids) - self._known if drained else set()
        self._known |= new
        return bool(new)


def end_if_terminated() -> None:
    """Leave the process after SIGTERM, once the checkpoint just reported is safe."""
    if _terminated.is_set():
        ray.train.get_all_reported_checkpoints(timeout_s=_COMMIT_WITHIN_S)
        os._exit(128 + signal.SIGTERM)
