"""Which rows are trained on in which step, and how they are packed into batches with almost no padding.

The plan of an epoch depends on row lengths, seed and epoch alone, never on how many workers share it. A step is cut
into batches; a batch is a rectangle of lanes, and every lane is filled with whole rows.
Position ids restart with each row, and rows never attend to one another.
"""

import bisect
from typing import NamedTuple

import numpy as np

from fusion_ray.errors import RecipeError

_LITTLE_PADDING = 0.02


class Batch(NamedTuple):
    """Rows that go through the model together.

    Attributes:
        width: Tokens of a lane.
        lanes: Row numbers of each lane, left to right.
    """

    width: int
    lanes: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> list[int]:
        """Row numbers, lane by lane."""
        return [row for lane in self.lanes for row in lane]


class Step(NamedTuple):
    """Batches whose gradients make one update."""

    batches: tuple[Batch, ...]

    @property
    def rows(self) -> list[int]:
        """Row numbers, batch by batch."""
        return [row for batch in self.batches for row in batch.rows]


class Lanes(NamedTuple):
    """A batch laid out: token ids (B lanes of width W), their positions, and where each row begins."""

    input_ids_BW: np.ndarray
    position_ids_BW: np.ndarray
    starts: dict[int, tuple[int, int]]


def count_steps(lengths_N: np.ndarray, tokens_per_step: int) -> int:
    """Updates in one epoch: enough that none gets more than `tokens_per_step` on average."""
    return max(1, int(np.ceil(lengths_N.sum() / tokens_per_step)))


def plan_epoch(
    lengths_N: np.ndarray, *, tokens_per_step: int, tokens_per_batch: int, seed: int, epoch: int
) -> list[Step]:
    """Shuffle the rows and cut them into steps of nearly equal size, and each step into batches.

    The steps of an epoch share its tokens evenly, so that no small last step takes as large an update as the others.

    Args:
        lengths_N: Tokens of each row; a row of length 0 is left out.
        tokens_per_step: Tokens of one update, all workers together.
        tokens_per_batch: Tokens that one worker takes through the model at a time, padding included.
        seed: Same seed, same epoch: same plan.
        epoch: Counted from 0.

    Raises:
        RecipeError: A row is longer than a batch or a step.
    """
    rows = np.random.default_rng([seed, epoch]).permutation(np.flatnonzero(lengths_N))
    if len(rows) == 0:
        return []
    worst = int(rows[lengths_N[rows].argmax()])
    for name, limit in (("tokens_per_batch", tokens_per_batch), ("tokens_per_step", tokens_per_step)):
        if lengths_N[worst] > limit:
            raise RecipeError(
                f"row {worst} has {lengths_N[worst]} tokens, more than targets.{name} {limit}. "
                f"Raise {name}, or lower targets.max_length."
            )
    ends = np.cumsum(lengths_N[rows])
    n_steps = min(count_steps(lengths_N, tokens_per_step), len(rows))
    step_of_row = np.minimum((ends - lengths_N[rows] / 2) * n_steps / ends[-1], n_steps - 1).astype(int)
    members = [rows[step_of_row == step] for step in range(n_steps)]
    return [Step(tuple(_cut_into_batches(part, lengths_N, tokens_per_batch))) for part in members if len(part)]


def share_of_padding(steps: list[Step], lengths_N: np.ndarray) -> float:
    """Part of all positions that goes through the model without carrying a token."""
    batches = [batch for step in steps for batch in step.batches]
    positions = sum(batch.width * len(batch.lanes) for batch in batches)
    return 1.0 - sum(int(lengths_N[batch.rows].sum()) for batch in batches) / positions


def _cut_into_batches(rows: np.ndarray, lengths_N: np.ndarray, tokens_per_batch: int) -> list[Batch]:
    """Take the narrowest lanes that waste almost nothing, because attention costs the square of the width."""
    longest = int(lengths_N[rows].max())
    total = int(lengths_N[rows].sum())
    # Few rows seldom fill lanes of a given width, so lanes of the step's total length are tried too.
    candidates = {longest, longest * 3 // 2, longest * 2, longest * 3} | {-(-total // n) for n in range(1, 9)}
    widths = sorted(width for width in candidates if longest <= width <= tokens_per_batch)
    tried = []
    for width in widths:
        batches = _group_lanes(_fill_lanes(rows, lengths_N, width), lengths_N, tokens_per_batch)
        tried.append((share_of_padding([Step(tuple(batches))], lengths_N), width, batches))
        if tried[-1][0] <= _LITTLE_PADDING:
            break
    return min(tried)[2]


def _group_lanes(lanes: list[tuple[int, ...]], lengths_N: np.ndarray, tokens_per_batch: int) -> list[Batch]:
    """Put the fullest lanes together, so that a batch is no wider than it must be."""
    used = [int(lengths_N[list(lane)].sum()) for lane in lanes]
    order = sorted(range(len(lanes)), key=lambda lane: -used[lane])
    batches = []
    while order:
        width = used[order[0]]
        together, order = order[: tokens_per_batch // width], order[tokens_per_batch // width :]
        batches.append(Batch(width, tuple(lanes[lane] for lane in together)))
    return batches


def _fill_lanes(rows: np.ndarray, lengths_N: np.ndarray, width: int) -> list[tuple[int, ...]]:
    """Best fit, longest first: each row goes into the lane that it leaves the least room in."""
    order = rows[np.argsort(-lengths_N[rows], kind="stable")].tolist()
    lanes: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, lane), sorted
    for row in order:
        length = int(lengths_N[row])
        place = bisect.bisect_left(rooms, (length, -1))
        if place == len(rooms):
            rooms.append((width, len(lanes)))
            lanes.append([])
        room, lane = rooms.pop(place)
        lanes[lane].append(row)
        bisect.insort(rooms, (room - length, lane))
    return [tuple(lane) for lane in lanes]


def lay_out(batch: Batch, input_ids_of_rows: dict[int, np.ndarray], pad_id: int) -> Lanes:
    """Write a batch's rows into its lanes; padding is a document of its own, seen by no other row."""
    shape = (len(batch.lanes), batch.width)
    input_ids_BW = np.full(shape, pad_id, dtype=np.int64)
    position_ids_BW = np.zeros(shape, dtype=np.int64)
    starts = {}
    for lane, rows in enumerate(batch.lanes):
        column = 0
        for row in rows:
            ids = input_ids_of_rows[row]
            input_ids_BW[lane, column : column + len(ids)] = ids
            position_ids_BW[lane, column : column + len(ids)] = np.arange(len(ids))
            starts[row] = (lane, column)
            column += len(ids)
        position_ids_BW[lane, column:] = np.arange(batch.width - column)
    return Lanes(input_ids_BW, position_ids_BW, starts)
