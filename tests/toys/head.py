"""`ray start --head` for tests: on free ports, waited for, and ended without touching any other Ray."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos import patiently

RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = "a-token-that-only-this-test-knows-0123456789"


@contextmanager
def head() -> Iterator[dict[str, str]]:
    """`ray start --head` with token authentication and the dashboard on loopback; gives a client's environment."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    process, dashboard = patiently(lambda: _start_head(environment))
    try:
        yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        process.terminate()
        process.wait(60)


def _start_head(environment: dict[str, str]) -> "tuple[subprocess.Popen[bytes], int]":
    dashboard, ports = free_port(), [f"--{name}={free_port()}" for name in ("port", "dashboard-agent-listen-port")]
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=150000000", *ports]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={tempfile.mkdtemp('fr')}"]
    return read_until_started(command, environment), dashboard


def read_until_started(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start `ray start --block`, and return once it says that it is up; when it is told to end it does so at once."""
    environment = environment | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    with tempfile.NamedTemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=said, stderr=said)
        until = time.monotonic() + 240
        while "Ray runtime started" not in (text := Path(said.name).read_text()):
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise RuntimeError(text or "timed out during startup")
            time.sleep(0.5)
    return process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
