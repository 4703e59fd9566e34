"""Peak memory of the processes that make an artifact: this one, and the workers that tell theirs.

Resident memory as Linux counts it, shared pages included; an engine's own child processes and GPUs are not in it.
"""

import threading
from pathlib import Path

_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")


class _Heard(threading.local):
    """The largest worker that this thread has heard of since it last wrote a manifest."""

    worker_bytes = 0


_heard = _Heard()


def forget_peak() -> None:
    """Let this process's peak start anew from what it holds now, since Ray reuses processes; best effort."""
    try:
        _FORGET.write_text("5")
    except OSError:
        return  # A sandbox may forbid it: then the peak is the process's whole life.


def read_peak() -> int:
    """The most memory that this process has held, bytes; 0 where the system does not tell."""
    if not _STATUS.is_file():
        return 0
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines.get("VmHWM", "0 kB").split()[0]) * 1024


def note_worker(peak_bytes: int) -> None:
    """Remember, in this thread, what a worker of the artifact in the making has told."""
    _heard.worker_bytes = max(_heard.worker_bytes, peak_bytes)


def take_peaks() -> dict[str, int]:
    """Peaks for a manifest: of this process, and of the largest worker heard of, which is forgotten with this."""
    peaks = {"driver": read_peak(), "worker": _heard.worker_bytes}
    _heard.worker_bytes = 0
    return peaks
