"""End a run at once when it is told to: everything finished is on disk, everything else is made again."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType


def stop_on_signals(say: Callable[[str], None]) -> None:
    """From here on SIGINT and SIGTERM end this process with 128 + the signal's number, after one line.

    The process does not wait for threads or workers: files appear whole or not at all, so there is nothing to save,
    and Slurm, Kubernetes and Ray kill what takes longer than seconds. Call it from the main thread.

    Args:
        say: Tells the user that the run stopped, and by which signal.
    """

    def stop(number: int, _: FrameType | None) -> None:
        say(signal.Signals(number).name)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
