"""DeepSpeed with its sharp edges covered: start it, step it, and read and write its state as plain tensors.

One process, or one of several of a torch.distributed group that the caller has set up; no Ray here.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from fusion_ray.errors import RecipeError
from fusion_ray.models.folders import load_model, read_config
from fusion_ray.recipe import Adapter, Targets
from fusion_ray.targets.adapter import add_adapter, magnitudes, merged_weights, read_elsewhere
from fusion_ray.targets.student import Student


def start_process_group() -> None:
    """Make this process a group of one, unless the caller has set up a group."""
    if torch.distributed.is_initialized():
        return
    meeting = Path(tempfile.mkdtemp(prefix="fusion_ray_group_")) / "store"
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, init_method=meeting.as_uri(), rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with _without_mlflow():
        import deepspeed
        import deepspeed.ops

    # Else the first start compiles a shared-memory collective for a minute, which gloo replaces.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """Keep DeepSpeed's autotuner from importing mlflow, which takes seconds in every worker and is not used."""
    loaded = "mlflow" in sys.modules
    sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if not loaded:
            del sys.modules["mlflow"]


class Engine:
    """A student under DeepSpeed.

    Attributes:
        stage: The ZeRO stage that is run.
        adam: The optimizer that holds learning rates and moments.
    """

    def __init__(self, model_folder: str, settings: Targets, *, seed: int = 0, trust_remote_code: bool = False) -> None:
        start_process_group()
        deepspeed = _import_deepspeed()
        config = settings.deepspeed_config(pin_memory=torch.cuda.is_available())
        self.stage: int = config["zero_optimization"]["stage"]
        self.clip = settings.clip
        model, self._originals, parted = _load(model_folder, settings, config, trust_remote_code)
        if settings.adapter is not None:
            self._adapt(model, settings.adapter, seed)
        del parted  # Only until here does peft have to know that weights lie in parts.
        self.student = Student(model, settings)
        optimizer = torch.optim.AdamW(
            self._trained(), settings.learning_rate, settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        self.core, *_ = deepspeed.initialize(model=self.student, optimizer=optimizer, config=config)
        for name, weight in model.named_parameters():
            if weight.requires_grad and name in self._originals:
                deepspeed.utils.safe_set_full_fp32_param(weight, self._originals.pop(name))
        if torch.distributed.get_rank():
            self._originals.clear()  # What is left are frozen weights, which only the exporting worker needs.
        self.student.check()
        self.adam: torch.optim.Optimizer = optimizer if self.stage == 0 else self.core.optimizer.optimizer

    @property
    def device(self) -> torch.device:
        """Where batches belong."""
        return torch.device(self.core.device)

    @property
    def vocabulary(self) -> int:
        """Rows of the output head: every token id must be below this."""
        return int(self.student.model.config.get_text_config().vocab_size)

    def accumulate(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add a batch's gradients; with the last batch of a step they are summed over the workers."""
        self.core.backward(loss, scale_wrt_gas=False)
        if not last:
            self.core.step()

    def before_batch(self, *, last: bool) -> None:
        """Announce a batch; must precede its forward pass."""
        self.core.set_gradient_accumulation_boundary(last)

    def update(self, learning_rate: float) -> float:
        """Change the weights by the gradients accumulated; returns the gradient norm before clipping."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        norm = 0.0
        if self.stage == 0:
            norm = float(torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.clip))
            if norm != norm or norm == float("inf"):
                return norm  # The caller stops; the weights are still good.
        self.core.step()
        return norm if self.stage == 0 else float(self.core.get_global_grad_norm() or 0.0)

    # --- state ------------------------------------------------------------------------------------------------

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight whole and in float32, by the pivot's own names, an adapter merged into what it adapts.

        All workers must walk through it together. Of frozen weights the first worker knows what is on disk, the
        others only what their dtype keeps of it.
        """
        return merged_weights(self.student.model, self._whole)

    def _whole(self, name: str, weight: torch.nn.Parameter) -> torch.Tensor:
        deepspeed = _import_deepspeed()
        if weight.requires_grad:
            master = deepspeed.utils.safe_get_full_fp32_param(weight)
            return (weight.detach() if master is None else master.detach()).float()
        with deepspeed.zero.GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
            return self._originals.get(name, weight.detach()).to(weight.device, torch.float32, copy=True)

    def _adapt(self, model: Any, adapter: Adapter, seed: int) -> None:
        add_adapter(model, adapter, seed)
        frozen = {name.replace(".base_layer.", "."): name for name, _ in model.named_parameters()}
        self._originals = {frozen[name]: value for name, value in self._originals.items()}
        # Else a weight would be scaled by how its dtype rounds the magnitude, before any training.
        self._originals |= magnitudes(model, self._whole)
        if self.stage == 3:
            for reader, weight in read_elsewhere(model):
                _import_deepspeed().zero.register_external_parameter(reader, weight)

    def _trained(self) -> list[torch.Tensor]:
        return [weight for weight in self.student.model.parameters() if weight.requires_grad]

    def state(self, *, moments: bool = True) -> dict[str, torch.Tensor]:
        """This worker's part of the training state, by name, in the live tensors themselves.

        Weights as the model computes with them, float32 masters, and Adam's moments: saving them and copying them
        back continues training bit for bit. Without the moments it is the model alone.
        """
        state = {f"weight.{name}": tensor for name, tensor in self._held_weights()}
        for number, master in enumerate(self._masters()):
            if self.stage:
                state[f"master.{number}"] = master.data
            if moments:
                state |= {f"adam.{number}.{key}": tensor for key, tensor in self._moments(master).items()}
        return state

    def load_state(self, saved: dict[str, torch.Tensor], *, moments: bool = True) -> None:
        """Copy a saved state into the live tensors.

        Raises:
            RecipeError: It was saved by another number of workers, ZeRO stage or model.
        """
        live = self.state(moments=moments)
        if live.keys() != saved.keys() or any(live[name].shape != saved[name].shape for name in live):
            raise RecipeError(
                "the checkpoint does not fit: it was saved with another number of workers, zero_stage, dtype or model. "
                "Use the former settings, or delete the artifact's hidden working folder to start anew."
            )
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(saved[name])
        persistent = getattr(self.core.optimizer, "persistent_parameters", None)
        if self.stage == 3 and persistent:
            persistent[0].all_gather(persistent)

    def _held_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in self.student.model.named_parameters():
            if weight.requires_grad:
                yield name, weight.ds_tensor.data if self.stage == 3 else weight.data

    def _masters(self) -> list[torch.Tensor]:
        if self.stage == 0:
            return self._trained()
        names = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups")
        return next(list(getattr(self.core.optimizer, name)) for name in names if hasattr(self.core.optimizer, name))

    def _moments(self, master: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adam's state of one master weight; made here if no update has been yet."""
        moments: dict[str, torch.Tensor] = self.adam.state[master]
        if not moments:
            device = master.device if self.adam.defaults.get("fused") else "cpu"
            moments["step"] = torch.zeros((), dtype=torch.float32, device=device)
            moments["exp_avg"], moments["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        return {key: moments[key] for key in ("step", "exp_avg", "exp_avg_sq")}


def _load(
    folder: str, settings: Targets, config: dict[str, Any], trust_remote_code: bool
) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """The model in its training dtype, float32 originals of weights that this dtype rounds, and a mark.

    While the mark of a model that was loaded in parts is alive, Transformers and peft gather weights before they read
    them.

    Masters must start from what is on disk: a target that starts from a rounded pivot would differ from the pivot by
    the rounding, which is larger than what fine-tuning changes.
    """
    config_on_disk = read_config(folder)
    stored = config_on_disk.get("dtype") or config_on_disk.get("torch_dtype")
    alive = None
    if settings.zero_stage == 3 and stored == settings.dtype and torch.distributed.get_world_size() > 1:
        from transformers.integrations import HfDeepSpeedConfig

        alive = HfDeepSpeedConfig(config)  # While this object lives, from_pretrained gives each worker only its part.
    model = load_model(folder, trust_remote_code=trust_remote_code, device="cpu").requires_grad_(True).train()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if alive is not None:
        return model, {}, alive
    originals: dict[str, torch.Tensor] = {}
    if settings.dtype == "bfloat16" and any(weight.dtype != torch.bfloat16 for weight in model.parameters()):
        originals = {name: weight.detach().float() for name, weight in model.named_parameters()}
    return model.to(getattr(torch, settings.dtype)), originals, None
