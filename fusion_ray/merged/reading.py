"""A tensor of several checkpoints as the blocks that merge methods read."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fusion_ray.merged.methods.blocks import Block, as_rows
from fusion_ray.storage.checkpoints import StoredTensor, TensorReader


@dataclass(frozen=True)
class StoredModels:
    """A tensor of several checkpoints as a BlockedTensor; a tensor that fits in one block is read once."""

    name: str
    inputs: tuple[StoredTensor, ...]
    reader: TensorReader
    block_bytes: int
    _kept: list[Block] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in every model."""
        return self.inputs[0].shape

    @property
    def n_models(self) -> int:
        """Number of inputs."""
        return len(self.inputs)

    def blocks(self) -> Iterator[Block]:
        """Blocks of as many whole rows as the bound allows, at least one."""
        rows, columns = as_rows(self.shape)
        step = max(1, self.block_bytes // (4 * max(1, columns) * self.n_models))
        if self._kept:
            yield from self._kept
            return
        for start in range(0, rows, step):
            block = self._read_block(start, min(rows, start + step), columns)
            if step >= rows:
                self._kept.append(block)
            yield block

    def _read_block(self, start: int, stop: int, columns: int) -> Block:
        values_MRC = np.empty((self.n_models, stop - start, columns), dtype=np.float32)
        for model, tensor in enumerate(self.inputs):
            self.reader.read_into(tensor, start * columns, values_MRC[model].reshape(-1))
        return Block(start, values_MRC)
