"""A cluster that grows from no workers and shrinks back, under Ray's own autoscaler.

The provider is Ray's fake one: its nodes are real raylets, on this machine. What a cloud adds (instances that boot,
setup commands, spot prices) is not in it.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from chaos import patiently, small_recipe
from toys.head import RAY, free_port, read_until_started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"


def config(gcs: str) -> dict[str, Any]:
    """Pools as in cluster/, only small."""
    pool = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2, "labels": {"pool": "cpu"}}
    head = {"resources": {"CPU": 0, "autoscaling_head": 1}, "node_config": {}, "max_workers": 0}
    more = {"launch_multiple": True, "head_node_id": HEAD_ID, "disable_node_updaters": True}
    commands = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "toy",
        "max_workers": 3,
        "idle_timeout_minutes": 0.1,
        # By its class and not its type, for then Ray would read an example.yaml that its wheel lacks.
        "provider": {"type": "external", "module": PROVIDER, "gcs_address": gcs} | more,
        "available_node_types": {"ray.head.default": head, "cpu": pool},
        "head_node_type": "ray.head.default",
        "upscaling_speed": 10.0,
        "file_mounts": {},
        "cluster_synced_files": [],
    } | {f"{name}_commands": [] for name in commands}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    process, gcs = patiently(lambda: _start(tmp_path))
    yield gcs
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(60)
    for child in family:  # Nodes that the provider started do not end with the head.
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _start(folder: Path) -> "tuple[subprocess.Popen[bytes], str]":
    gcs = f"{ray.util.get_node_ip_address()}:{free_port()}"
    file = folder / "autoscaler.yaml"
    file.write_text(yaml.safe_dump(config(gcs)))
    environment = os.environ | {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "disabled",
    }
    command = [RAY, "start", "--head", "--block", "--num-cpus=0", "--resources", '{"autoscaling_head": 1}']
    command += [f"--port={gcs.rpartition(':')[2]}", f"--autoscaling-config={file}", "--include-dashboard=false"]
    command += ["--object-store-memory=150000000", f"--temp-dir={tempfile.mkdtemp('fr')}"]
    return read_until_started(command, environment), gcs


def _workers(gcs: str) -> int:
    """Raylets of this cluster, the head's not counted."""
    count = 0
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or [""]
        count += line[0].endswith("/raylet") and any(gcs in argument for argument in line)
    return count - 1


def test_workers_come_when_a_stage_needs_them_and_go_when_it_is_done(address: str, tmp_path: Path) -> None:
    assert _workers(address) == 0
    recipe = small_recipe(tmp_path)
    command = [sys.executable, "-m", "fusion_ray", "run", str(recipe), "--address", address, "--until", "distributions"]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    most = 0
    while driver.poll() is None:
        most = max(most, _workers(address))
        time.sleep(0.5)
    assert driver.stdout is not None
    assert driver.returncode == 0, driver.stdout.read()[-3000:]
    driver.stdout.close()
    assert most == 2
    until = time.monotonic() + 180
    while _workers(address) and time.monotonic() < until:
        time.sleep(1)
    assert _workers(address) == 0
