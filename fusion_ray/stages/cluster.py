"""The Ray cluster that stages run on: connect to it, ask what it has, stream items through it.

With pipeline.py and the stages, the only place that imports ray.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.util

from fusion_ray import errors
from fusion_ray.errors import ClusterError, FusionRayError
from fusion_ray.recipe import Distributions
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.peak import forget_peak, note_worker, read_peak

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
    # What a user must act on comes back as an exception; Ray's own chatter stays in its log files.
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
    """How much of a resource (`CPU`, `GPU`) the cluster has now, whoever uses it; very much where it may grow."""
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

    What others hold does not count: that is only a matter of waiting.

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


def build_in_pools(settings: Distributions, artifacts: list[Artifact], build: Callable[[Artifact], None]) -> None:
    """Build every artifact with a pool of actors of its own, several side by side while the cluster has room.

    Args:
        settings: What an actor asks for, and how many a pool has.
        artifacts: One for each model.
        build: Makes one artifact, by `map_in_pool`.

    Raises:
        ClusterError: The cluster can never run one pool.
    """
    require(
        "distributions",
        cpus=settings.cpus_per_actor,
        gpus=settings.gpus_per_actor,
        nodes=settings.nodes,
        count=settings.actors.min,
        wait_s=settings.wait_s,
    )
    with ThreadPoolExecutor(pools_at_once(settings, len(artifacts))) as pool:
        for future in [pool.submit(build, artifact) for artifact in artifacts]:
            future.result()


def pools_at_once(settings: Distributions, wanted: int) -> int:
    """How many of the wanted actor pools there is room for."""
    fewest = settings.actors.min
    return side_by_side(wanted, cpus=settings.cpus_per_actor * fewest, gpus=settings.gpus_per_actor * fewest)


def map_in_pool(
    shards: "ray.data.Dataset", worker: type, arguments: tuple[Any, ...], settings: Distributions
) -> Iterator[Any]:
    """Give every row to an actor of a pool, and yield the results; see `numbers`, `answer` and `results_of`.

    Ray Data starts an actor anew for ever, should its engine or its node die, and gives it the row that it held.

    Args:
        shards: The rows.
        worker: The actors' class.
        arguments: What each is made with. Ray Data writes them down, dataclasses as trees, and the tree of an artifact
            that a late round is made from never ends: such ones belong inside an object of another kind.
        settings: What an actor asks for, and how many there are.
    """
    mapped = shards.map_batches(
        worker,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=settings.cpus_per_actor,
        num_gpus=settings.gpus_per_actor or None,
        label_selector=label_selector(settings.nodes),
        compute=ray.data.ActorPoolStrategy(min_size=settings.actors.min, max_size=settings.actors.max),
    )
    yield from results_of(mapped)


def side_by_side(wanted: int, *, cpus: float, gpus: float) -> int:
    """How many of the wanted actor pools fit at once, at least one.

    Args:
        wanted: How many there are to run.
        cpus: CPUs of the smallest pool.
        gpus: GPUs, likewise.
    """
    each = {"CPU": cpus, "GPU": gpus}
    fits = [int(total(resource) // size) for resource, size in each.items() if size]
    return max(1, min([wanted, *fits]))


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


def stream(
    items: list[Any],
    function: Callable[[Any], Any],
    *,
    cpus: float,
    gpus: float = 0.0,
    limit: int | None = None,
    nodes: str | None = None,
) -> Iterator[Any]:
    """Run a function on every item as Ray Data tasks and yield the results as they finish, in any order.

    Args:
        items: Work descriptions.
        function: Runs in a task and returns plain data that JSON can hold, with its own identity in it; a
            FusionRayError that it raises reaches the caller unchanged.
        cpus: Logical CPUs of one task.
        gpus: GPUs of one task; Ray ends the process after it, which frees their memory.
        limit: At most this many tasks at once.
        nodes: Label of the nodes that may run them, as `key=value`.
    """
    if not items:
        return
    compute = ray.data.TaskPoolStrategy(limit)
    tasks = numbers(len(items)).map(
        _Call(function, items),
        num_cpus=cpus,
        num_gpus=gpus or None,
        compute=compute,
        label_selector=label_selector(nodes),
    )
    yield from results_of(tasks)


def stream_with_models(items: list[Any], function: Callable[[Any], Any], settings: Distributions) -> Iterator[Any]:
    """`stream`, for tasks that load a model: each has what an actor of the stage distributions has."""
    return stream(items, function, cpus=settings.cpus_per_actor, gpus=settings.gpus_per_actor, nodes=settings.nodes)


def numbers(count: int) -> "ray.data.Dataset":
    """Rows `{"id": 0}`, `{"id": 1}`, ... in blocks of their own, so that each becomes a task.

    They are there from the start: `ray.data.range` would read them in tasks, which wait for ever for a CPU where
    actors hold all of them.
    """
    return ray.data.from_items([{"id": number} for number in range(count)], override_num_blocks=count)


def results_of(dataset: "ray.data.Dataset") -> Iterator[Any]:
    """Yield the results of rows made by `answer`; raises the FusionRayError that one of them holds."""
    for row in dataset.iter_rows():
        note_worker(int(row["peak_bytes"]))
        given = json.loads(row["answer"])
        if "error" in given:
            kind, message = given["error"]
            raise getattr(errors, kind)(message)
        yield given["result"]


def answer(work: Callable[[], Any]) -> dict[str, Any]:
    """Do the work of one task, and give its result, or its FusionRayError, as a row that `results_of` reads.

    An error that a task raises would not arrive as it is: Ray adds words to it, or wraps it and loses what it wraps.
    """
    try:
        given = {"result": work()}
    except FusionRayError as error:
        given = {"error": [type(error).__name__, str(error)]}
    return {"answer": json.dumps(given), "peak_bytes": read_peak()}


class _Call:
    """Adapts a function of an item to Ray Data's rows, which hold only the item's number."""

    def __init__(self, function: Callable[[Any], Any], items: list[Any]) -> None:
        self.function = function
        self.items = items

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        forget_peak()
        return answer(lambda: self.function(self.items[row["id"]]))


def to_ipc(table: pa.Table) -> bytes:
    """Pack a table into one value, so that a shard travels as one row and stays whole."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_ipc(data: bytes) -> pa.Table:
    """Unpack `to_ipc`."""
    return pa.ipc.open_stream(pa.BufferReader(data)).read_all()
