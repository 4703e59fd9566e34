"""A model whose weights are a weighted sum of the pivot's and the targets', and the slope of its loss by those weights.

The checkpoints stay on disk and are read in stretches; in memory are one model in float32 and its gradients.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from fusion_ray.algorithms.merge.sums import mix
from fusion_ray.engines.models import load_model
from fusion_ray.engines.student import Student
from fusion_ray.errors import EngineError
from fusion_ray.storage.checkpoints import StoredTensor, TensorReader
from fusion_ray.training import Targets

_STRETCH = 1 << 20  # Elements of each model that are read at once.


class _Stretch(NamedTuple):
    """Elements start.. of a parameter, and of the same tensor in every model: float32 [M, n]."""

    start: int
    values_MN: np.ndarray


class Mixture:
    """Pivot and targets as one model.

    Args:
        folder: The pivot's model folder.
        tensors: For each tensor that is mixed, where it lies in the pivot (first) and in every target.
        settings: Of the stage targets; its loss is this model's.
        device: Where the model computes.
        trust_remote_code: Run model code that lies in the folder.

    Raises:
        EngineError: The pivot cannot be loaded, or Transformers makes other parameters of it than the checkpoint has.
    """

    def __init__(
        self,
        folder: str,
        tensors: Mapping[str, Sequence[StoredTensor]],
        settings: Targets,
        *,
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> None:
        model = load_model(folder, "float32", trust_remote_code=trust_remote_code, device=device)
        self.student = Student(model.requires_grad_(True), settings)
        self.student.check()
        self.tensors = tensors
        self._parameters = dict(model.named_parameters())
        for name, (pivot, *_) in tensors.items():
            if name not in self._parameters or tuple(self._parameters[name].shape) != pivot.shape:
                raise EngineError(
                    f"{folder}: tensor {name} is no parameter of {type(model).__name__} as Transformers builds it, so "
                    "its weights cannot be learned. Use merged.method varm for this architecture."
                )

    @property
    def device(self) -> torch.device:
        """Where batches belong."""
        return next(iter(self._parameters.values())).device

    @property
    def vocabulary(self) -> int:
        """Rows of the output head: every token id must be below this."""
        return int(self.student.model.config.get_text_config().vocab_size)

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Make every tensor the sum of the models, each times its weight (float64 [M], the pivot's first)."""
        with TensorReader() as reader:
            for name, stored in self.tensors.items():
                flat = self._parameters[name].data.view(-1)
                for start, values_MN in _read(stored, reader):
                    mixed_N = mix(values_MN[:, None], weights[name])[0]
                    flat[start : start + len(mixed_N)].copy_(torch.from_numpy(mixed_N))

    @torch.no_grad()
    def take_slopes(self) -> dict[str, np.ndarray]:
        """<gradient, target - pivot> of every tensor and target, float64 [J]; the gradients are gone afterwards."""
        slopes = {}
        with TensorReader() as reader:
            for name, stored in self.tensors.items():
                slopes[name] = np.zeros(len(stored) - 1)
                gradient = self._parameters[name].grad
                if gradient is None:
                    continue
                flat = gradient.reshape(-1)
                for start, values_MN in _read(stored, reader):
                    here_N = flat[start : start + values_MN.shape[1]].float().cpu().numpy()
                    slopes[name] += (values_MN[1:] - values_MN[0]) @ here_N
        self.student.zero_grad(set_to_none=True)
        return slopes


def _read(stored: Sequence[StoredTensor], reader: TensorReader) -> Iterator[_Stretch]:
    for start in range(0, stored[0].size, _STRETCH):
        stop = min(start + _STRETCH, stored[0].size)
        yield _Stretch(start, np.stack([reader.read(tensor, start, stop) for tensor in stored]))
