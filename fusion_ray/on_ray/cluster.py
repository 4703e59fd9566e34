"""The Ray cluster that stages run on: connect to it, ask what it has, refuse what it can never give."""

import logging
import os
import signal
import sys
import threading
import time
from typing import Any

import ray
import ray.data
import ray.util

from fusion_ray.errors import ClusterError

_LOCAL_OBJECT_STORE_BYTES = 512 << 20


_WITHOUT_END = 1e6


def connect(address: str | None = None, num_cpus: int | None = None) -> None:
    """Join the cluster at `address` (or RAY_ADDRESS), or start a local one; nothing happens when already connected.

    Raises:
        ClusterError: There is no cluster at the address.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # What users must act on is raised as an exception; Ray's other messages stay in its log files.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {
            "include_dashboard": False,
            "num_cpus": num_cpus,
            "object_store_memory": _LOCAL_OBJECT_STORE_BYTES,
        }
    on_stop = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **options)
    except ConnectionError as error:
        raise ClusterError(f"No Ray cluster at '{address}' ({error}). Start one with `ray start --head`.") from error
    except Exception as error:  # Ray raises bare exceptions where its processes do not come up.
        raise ClusterError(
            f"Ray did not start at '{address}': {error} A machine that is busy or short of memory is the usual cause; "
            "run again, the logs lie in /tmp/ray."
        ) from error
    if callable(on_stop) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_stop)  # Ray has put its own handler there.
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A shard's bytes depend on its inputs alone, so the order in which shards finish is free.
    context.execution_options.preserve_order = False


def total(resource: str) -> float:
    """How much of a resource (`CPU`, `GPU`) the cluster has now, in use or not; a huge number where it may grow."""
    return _WITHOUT_END if can_autoscale() else float(ray.cluster_resources().get(resource, 0.0))


def largest_node(resource: str) -> float:
    """The most that a single node has of a resource now, whoever uses it."""
    return max((float(node["Resources"].get(resource, 0.0)) for node in ray.nodes() if node["Alive"]), default=0.0)


def can_autoscale() -> bool:
    """Whether the cluster may grow: its head carries the resource `autoscaling_head`, or RAY_AUTOSCALING is set.

    Ray itself does not tell a driver whether an autoscaler is there.
    """
    return bool(os.environ.get("RAY_AUTOSCALING") or ray.cluster_resources().get("autoscaling_head"))


def require(
    what: str,
    *,
    cpus: float,
    gpus: float = 0.0,
    nodes: str | None = None,
    count: int = 1,
    wait_s: float | None = None,
) -> None:
    """Refuse a request that the cluster can never satisfy: at once on a fixed one, after `wait_s` where it may grow.

    Resources that others hold count as there: they only have to be waited for.

    Args:
        what: Whose request it is, and in which section of the recipe its settings stand.
        cpus: CPUs that one process needs, all on one node.
        gpus: GPUs, likewise.
        nodes: Label that the node must carry, as `key=value`.
        count: Such processes that are needed at the same time.
        wait_s: How long a cluster that can grow may take to; None does not wait for it.

    Raises:
        ClusterError: There is no room for so many processes of that size.
    """
    if _room(cpus, gpus, nodes) >= count:
        return
    if can_autoscale() and (wait_s is None or _grows(cpus, gpus, nodes, count, wait_s)):
        return
    waited = f" after {wait_s:g} s ({what}.wait_s)" if can_autoscale() else ""
    there = _nodes(nodes)
    found = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in there) or "no nodes"
    labelled = f" labelled {nodes}" if nodes else ""
    times = f"{count} times " if count > 1 else ""
    raise ClusterError(
        f"{what} asks for {times}{cpus:g} CPU and {gpus:g} GPU on one node{labelled}; this cluster has{waited}: "
        f"{found}{labelled}. Ask for less in the recipe (cpus_per_*, gpus_per_*, actors.min, nodes) or start other "
        "nodes."
    )


def label_selector(nodes: str | None) -> dict[str, str]:
    """What Ray calls a label selector, from a recipe's `nodes`; empty where any node will do.

    >>> label_selector("pool=train"), label_selector(None)
    ({'pool': 'train'}, {})
    """
    key, _, value = (nodes or "").partition("=")
    return {key: value} if nodes else {}


def _nodes(nodes: str | None) -> list[dict[str, float]]:
    labels = label_selector(nodes).items()
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and labels <= node["Labels"].items()]


def _room(cpus: float, gpus: float, nodes: str | None) -> int:
    """How many processes of that size the cluster could hold if it were empty."""
    wanted = {name: each for name, each in (("CPU", cpus), ("GPU", gpus)) if each}
    fits = [
        min((int(node.get(name, 0) / each + 1e-9) for name, each in wanted.items()), default=sys.maxsize)
        for node in _nodes(nodes)
    ]
    return sum(fits)


def _grows(cpus: float, gpus: float, nodes: str | None, count: int, wait_s: float) -> bool:
    """Ask the autoscaler for room, by a placement group that never gets used, and wait for the nodes."""
    deadline = time.monotonic() + wait_s
    bundle = {name: each for name, each in (("CPU", cpus), ("GPU", gpus)) if each}
    demand = ray.util.placement_group([bundle] * count, bundle_label_selector=[label_selector(nodes)] * count)
    try:
        while _room(cpus, gpus, nodes) < count:
            if time.monotonic() >= deadline:
                return False
            demand.wait(min(1.0, wait_s))
    finally:
        ray.util.remove_placement_group(demand)
    return True
