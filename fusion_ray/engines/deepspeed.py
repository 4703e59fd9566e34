"""DeepSpeed with its sharp edges covered: start it, step it, and read and write its state as plain tensors.

One process, or one of several of a torch.distributed group that the caller has set up; no Ray here.
"""

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from fusion_ray.engines.models import load_model, read_config
from fusion_ray.engines.student import Student
from fusion_ray.errors import RecipeError
from fusion_ray.recipe import Targets

_NEVER = 10**9


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
    import deepspeed
    import deepspeed.ops

    # Else the first start compiles a shared-memory collective for a minute; gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def zero_stage(settings: Targets) -> int:
    """The stage that is run: DeepSpeed keeps float32 master weights of a bfloat16 model from stage 1 on."""
    return max(settings.zero_stage, 1) if settings.dtype == "bfloat16" else settings.zero_stage


def deepspeed_config(settings: Targets) -> dict[str, Any]:
    """DeepSpeed's own configuration for a recipe's settings.

    Raises:
        RecipeError: A dtype or combination that DeepSpeed cannot train.
    """
    stage = zero_stage(settings)
    if settings.offload and stage == 0:
        raise RecipeError("targets.offload needs targets.zero_stage 1, 2 or 3; stage 0 keeps its state in place.")
    zero: dict[str, Any] = {"stage": stage}
    if settings.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Stage 0 hides its gradient norm, so there the trainer clips by itself.
        "gradient_clipping": settings.clip if stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
    }


class Engine:
    """A student under DeepSpeed."""

    def __init__(self, model_folder: str, settings: Targets, *, trust_remote_code: bool = False) -> None:
        start_process_group()
        deepspeed = _import_deepspeed()
        self.stage = zero_stage(settings)
        self.clip = settings.clip
        config = deepspeed_config(settings)
        model, originals = _load(model_folder, settings, config, trust_remote_code)
        self.student = Student(model, settings)
        optimizer = torch.optim.AdamW(
            model.parameters(), settings.learning_rate, settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        self.core, *_ = deepspeed.initialize(model=self.student, optimizer=optimizer, config=config)
        for name, value in originals.items():
            deepspeed.utils.safe_set_full_fp32_param(self.student.get_parameter(f"model.{name}"), value)
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
        """Every weight whole and in float32, by the model's own names; all workers must walk through it together."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, weight in self.student.model.named_parameters():
            master = safe_get_full_fp32_param(weight)
            yield name, (weight.detach() if master is None else master.detach()).float()

    def state(self) -> dict[str, torch.Tensor]:
        """This worker's part of the training state, by name, in the live tensors themselves.

        Weights as the model computes with them, float32 masters, and Adam's moments: saving them and copying them
        back continues training bit for bit.
        """
        state = {f"weight.{name}": tensor for name, tensor in self._held_weights()}
        for number, master in enumerate(self._masters()):
            if self.stage:
                state[f"master.{number}"] = master.data
            state |= {f"adam.{number}.{key}": tensor for key, tensor in self._moments(master).items()}
        return state

    def load_state(self, saved: dict[str, torch.Tensor]) -> None:
        """Copy a saved state into the live tensors.

        Raises:
            RecipeError: It was saved by another number of workers, ZeRO stage or model.
        """
        live = self.state()
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
            yield name, weight.ds_tensor.data if self.stage == 3 else weight.data

    def _masters(self) -> list[torch.Tensor]:
        if self.stage == 0:
            return list(self.student.model.parameters())
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
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model in its training dtype, and float32 originals of weights that this dtype rounds.

    Masters must start from what is on disk: a target that starts from a rounded pivot would differ from the pivot by
    the rounding, which is larger than what fine-tuning changes.
    """
    config_on_disk = read_config(folder)
    stored = config_on_disk.get("dtype") or config_on_disk.get("torch_dtype")
    alive = None
    if settings.zero_stage == 3 and stored == settings.dtype and torch.distributed.get_world_size() > 1:
        from transformers.integrations import HfDeepSpeedConfig

        alive = HfDeepSpeedConfig(config)  # While it lives, from_pretrained gives each worker its part only.
    model = load_model(folder, "auto", trust_remote_code=trust_remote_code, device="cpu").requires_grad_(True).train()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if alive is not None:
        return model, {}
    originals: dict[str, torch.Tensor] = {}
    if settings.dtype == "bfloat16" and any(weight.dtype != torch.bfloat16 for weight in model.parameters()):
        originals = {name: weight.detach().float() for name, weight in model.named_parameters()}
    return model.to(getattr(torch, settings.dtype)), originals
