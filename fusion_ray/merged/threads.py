"""Work on several tensors at once, by threads: the compiled loops let go of Python's lock while they run."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from fusion_ray.merged.plan import TensorJob
from fusion_ray.storage.checkpoints import TensorReader

Found = TypeVar("Found")


def over_tensors(
    jobs: Sequence[TensorJob], work: Callable[[int, TensorReader], Found], threads: int = 1
) -> list[Found]:
    """Call `work` with the number of each job and a reader that no other thread uses; results are in the jobs' order.

    Several threads begin with the largest tensors, so that no large one is left for the end.
    """
    order = list(range(len(jobs)))
    if threads == 1:
        with TensorReader() as reader:
            return [work(number, reader) for number in order]
    order.sort(key=lambda number: -jobs[number].slot.nbytes)
    own = threading.local()
    with ExitStack() as readers, ThreadPoolExecutor(threads) as pool:

        def call(number: int) -> Found:
            if not hasattr(own, "reader"):
                own.reader = readers.enter_context(TensorReader())
            return work(number, own.reader)

        found = dict(zip(order, pool.map(call, order), strict=True))
    return [found[number] for number in range(len(jobs))]
