"""One tensor of M models, seen as blocks of whole rows: what every merge method reads, however large the tensor is.

A row is the last dimension; a tensor of one dimension (or none) is a single row. Methods go over the blocks as often
as they need, so a statistic of the whole tensor costs a pass and no memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class Block(NamedTuple):
    """Rows start.. of a tensor in every model: values_MRC is float32, R rows of C columns."""

    start: int
    values_MRC: np.ndarray


class BlockedTensor(Protocol):
    """A tensor of M models that can be read block by block, again and again, always cut the same way."""

    @property
    def name(self) -> str:
        """Its name, which seeds random choices and appears in errors."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, the same in every model."""
        ...

    @property
    def n_models(self) -> int:
        """M."""
        ...

    def blocks(self) -> Iterator[Block]:
        """The blocks in order."""
        ...


@dataclass(frozen=True)
class MergedTensor:
    """The result of a method on one tensor.

    Attributes:
        weights: The weight of every model, where the method computes one number each; else None.
        blocks: The merged rows in order, float32 [R, C] each; computed as they are asked for.
        squares: Summed squared delta of each target, where the method measured it.
    """

    weights: tuple[float, ...] | None
    blocks: Iterator[np.ndarray]
    squares: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ArrayTensor:
    """A tensor that is in memory: models_M are M float32 arrays of one shape, cut into blocks of some rows."""

    models_M: tuple[np.ndarray, ...]
    block_rows: int = 1 << 30
    name: str = "tensor"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of each array."""
        return self.models_M[0].shape

    @property
    def n_models(self) -> int:
        """Number of arrays."""
        return len(self.models_M)

    def blocks(self) -> Iterator[Block]:
        """The blocks in order."""
        rows, columns = as_rows(self.shape)
        values_MRC = np.stack([model.reshape(rows, columns).astype(np.float32) for model in self.models_M])
        for start in range(0, rows, self.block_rows):
            yield Block(start, values_MRC[:, start : start + self.block_rows])


class Rows(NamedTuple):
    """How a tensor is cut: rows and columns."""

    rows: int
    columns: int


def as_rows(shape: tuple[int, ...]) -> Rows:
    """See a shape as rows of the last dimension.

    >>> as_rows((4, 2, 3)), as_rows((5,)), as_rows(())
    (Rows(rows=8, columns=3), Rows(rows=1, columns=5), Rows(rows=1, columns=1))
    """
    if len(shape) < 2:
        return Rows(1, int(np.prod(shape, dtype=np.int64)))
    return Rows(int(np.prod(shape[:-1], dtype=np.int64)), shape[-1])


def gather(merged: MergedTensor, shape: tuple[int, ...]) -> np.ndarray:
    """Put the blocks of a result together, for tensors that fit in memory."""
    parts = [np.zeros(0, dtype=np.float32), *(block.ravel() for block in merged.blocks)]
    return np.concatenate(parts).reshape(shape)
