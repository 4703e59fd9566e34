"""One tensor of M models in blocks of whole rows: what every merge method reads, however large the tensor is.

A row runs along the last dimension; a tensor of one dimension or none is a single row. A method may go over the blocks
as often as it likes. A number that depends on the whole tensor thus costs one more pass, but no memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from fusion_ray.errors import MergeError


class Block(NamedTuple):
    """Some rows of a tensor in every model, from row `start` on; values_MRC is float32."""

    start: int
    values_MRC: np.ndarray


class BlockedTensor(Protocol):
    """A tensor of M models that can be read block by block, as often as needed and always cut the same way."""

    @property
    def name(self) -> str:
        """Its name, for errors and for the keys of random draws."""
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
        weights: The weight of every model or of every target, where the method has one number for each; else None.
        blocks: The merged rows in order, float32 [R, C] each; computed as they are asked for.
        squares: Sum of squares of each target's delta, where the method measured it (VaRM).
    """

    weights: tuple[float, ...] | None
    blocks: Iterator[np.ndarray]
    squares: tuple[float, ...] | None = None


class RowShape(NamedTuple):
    """The shape of a tensor that is seen as rows."""

    rows: int
    columns: int


def as_rows(shape: tuple[int, ...]) -> RowShape:
    """The shape of a tensor as rows along its last dimension.

    >>> as_rows((4, 2, 3)), as_rows((5,)), as_rows(())
    (RowShape(rows=8, columns=3), RowShape(rows=1, columns=5), RowShape(rows=1, columns=1))
    """
    if len(shape) < 2:
        return RowShape(1, int(np.prod(shape, dtype=np.int64)))
    return RowShape(int(np.prod(shape[:-1], dtype=np.int64)), shape[-1])


def keep_base(tensor: BlockedTensor) -> MergedTensor:
    """The base's tensor as it is: no target moved it, so no target has a weight."""
    return MergedTensor(None, (block.values_MRC[0] for block in tensor.blocks()))


def need_models(tensor: BlockedTensor, kind: str, count: int) -> None:
    """Refuse another number of models than a method takes.

    Raises:
        MergeError: There are more or fewer.
    """
    if tensor.n_models != count:
        raise MergeError(
            f"{kind}: tensor {tensor.name} comes from {tensor.n_models} models (a base counted); the method takes "
            f"exactly {count}. Give so many, or choose another method."
        )


def gather(merged: MergedTensor, shape: tuple[int, ...]) -> np.ndarray:
    """Put the blocks of a result together, for tensors that fit in memory."""
    parts = [np.zeros(0, dtype=np.float32), *(block.ravel() for block in merged.blocks)]
    return np.concatenate(parts).reshape(shape)
