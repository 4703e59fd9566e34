"""Stream items through Ray Data: as tasks, or through pools of actors that hold a model."""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.util

from fusion_ray import errors
from fusion_ray.errors import FusionRayError
from fusion_ray.on_ray.cluster import label_selector, require, total
from fusion_ray.recipe import Distributions
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.peak import forget_peak, note_worker, read_peak


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

    If an actor's engine or node dies, Ray Data starts another actor, as often as needed, and gives it the same row.

    Args:
        shards: The rows.
        worker: The actors' class.
        arguments: What each actor is made with. Ray Data serialises dataclass arguments recursively, which never ends
            for an artifact of a late round: pass artifacts inside a plain object.
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

    The rows exist from the start. `ray.data.range` would make them in tasks, which wait for ever where actors hold
    every CPU.
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

    A raised error would not arrive unchanged: Ray adds to its message, or wraps it and loses the original.
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
