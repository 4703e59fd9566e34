"""The recipe's section `targets`: how the pivot is fine-tuned. Imports neither torch nor ray."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from fusion_ray.recipe.deepspeed import join, our_config, read_options
from fusion_ray.recipe.section import PLACEMENT, TEACHING, Label, Section, Share, choice_of


class Adapter(Section):
    """Train small matrices beside frozen weights instead of all weights; merged into them at the end."""

    kind: Literal["lora", "dora"] = "lora"
    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: Share = 0.0
    modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class Offload(Section):
    """What DeepSpeed keeps in host memory instead of the GPU's."""

    optimizer: bool = False
    parameters: bool = False


class EarlyStop(Section):
    """End training once the validation rows' bits per byte have not fallen for `patience` measurements."""

    patience: int = Field(2, ge=1)
    min_gain: float = Field(0.0, ge=0)


ControlArm = Literal["sft", "longer", "self", "shuffled"]
CONTROL_ARMS: tuple[ControlArm, ...] = get_args(ControlArm)
UNTAUGHT_ARMS: tuple[ControlArm, ...] = ("sft", "longer")  # They learn gold alone.

# Chosen by measurement (docs/quality.md). The SFT control has learned gold before.
_LAMBDA_FROM_PIVOT, _LAMBDA_FROM_SFT = 0.5, 0.2


class Targets(Section):
    """How the pivot is fine-tuned into one target per source; the paper's defaults, but for `start` and `lambda_`.

    Attributes:
        start: What a target starts as a copy of: the SFT control where there is one, else the pivot, as in the papers.
            A target that starts from the control is anchored to it: where no source teaches, it learns the control's
            own distribution. So what it learns beyond the control comes from its source alone (ours).
        rounds: Parts that training is cut into; after each the targets are merged, and all go on from there (ours).
        lambda_: 0.5 from the pivot, 0.2 from the SFT control, which has learned gold before (both by measurement); the
            paper's is 0.9.
        controls: `longer` goes on from the SFT control with gold alone, for as many updates as a target that starts
            from it.
    """

    removed: ClassVar[Mapping[str, str]] = {
        "gate": "silencing teachers that the target had overtaken gave worse targets (docs/quality.md); leave it out"
    }

    start: Literal["pivot", "sft"] | None = None
    rounds: int = Field(1, ge=1)
    lambda_: Annotated[float | None, TEACHING] = Field(None, ge=0, le=1)
    lambda_end: Annotated[float | None, TEACHING] = Field(None, ge=0, le=1)
    divergence: Annotated[Literal["ce", "kl", "rkl", "jsd"], TEACHING] = "ce"
    tail: Annotated[Literal["bucket", "renormalise", "sampled"], TEACHING] = "bucket"
    temperature: Annotated[float, TEACHING] = Field(1.0, gt=0)
    epochs: float = Field(3, gt=0)
    measure_every_steps: int | None = Field(None, ge=1)
    keep: Literal["last", "best"] = "last"
    early_stop: EarlyStop | None = None
    learning_rate: float = Field(5e-6, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.03
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(1.0, gt=0)
    tokens_per_step: int = Field(262144, ge=16)
    tokens_per_batch: int = Field(8192, ge=16)
    max_length: int = Field(2048, ge=8)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Offload = Offload()
    deepspeed: Annotated[dict[str, Any] | None, BeforeValidator(read_options)] = None
    gradient_checkpointing: bool = False
    adapter: Annotated[Adapter | None, choice_of("lora")] = None
    workers: int = Field(1, ge=1)
    cpus_per_worker: Annotated[float, PLACEMENT] = Field(1, gt=0)
    gpus_per_worker: Annotated[float, PLACEMENT] = Field(0, ge=0)
    nodes: Annotated[Label | None, PLACEMENT] = None
    controls: Annotated[tuple[ControlArm, ...], PLACEMENT] = ("sft",)
    side_by_side: Annotated[int | None, PLACEMENT] = Field(None, ge=1)
    checkpoint_every_steps: Annotated[int, PLACEMENT] = Field(200, ge=1)
    trackers: Annotated[tuple[Literal["wandb", "mlflow"], ...], PLACEMENT] = ()
    retries: Annotated[int, PLACEMENT] = Field(3, ge=0)
    wait_s: Annotated[float, PLACEMENT] = Field(600, gt=0)

    @property
    def resolved_start(self) -> Literal["pivot", "sft"]:
        """What targets start as a copy of: as given, else the SFT control where there is one."""
        return self.start or ("sft" if "sft" in self.controls else "pivot")

    @property
    def resolved_lambda(self) -> float:
        """Weight of gold in a target's first update: as given, else as what it starts from wants it."""
        if self.lambda_ is not None:
            return self.lambda_
        return _LAMBDA_FROM_SFT if self.resolved_start == "sft" else _LAMBDA_FROM_PIVOT

    @property
    def goes_by_validation(self) -> list[str]:
        """The settings that judge on validation rows, in words."""
        wishes = {
            "targets.keep: best": self.keep == "best",
            "targets.early_stop": self.early_stop is not None,
        }
        return [wish for wish, is_set in wishes.items() if is_set]

    @model_validator(mode="after")
    def _draws_are_used_as_they_are(self) -> "Targets":
        if self.tail == "sampled" and (self.divergence not in ("ce", "kl") or self.temperature != 1.0):
            raise ValueError(
                "targets.tail: sampled is without bias only under divergence ce or kl and temperature 1 (here "
                f"{self.divergence} and {self.temperature:g})"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_can_do_it(self) -> "Targets":
        self.deepspeed_config()
        return self

    def deepspeed_config(self, *, pin_memory: bool = False) -> dict[str, Any]:
        """DeepSpeed's own configuration for these settings, the recipe's `deepspeed` joined in."""
        # DeepSpeed keeps float32 master weights of a bfloat16 model from stage 1 on.
        stage = max(self.zero_stage, 1) if self.dtype == "bfloat16" else self.zero_stage
        ours = our_config(
            stage=stage,
            bfloat16=self.dtype == "bfloat16",
            clip=self.clip,
            offload_optimizer=self.offload.optimizer,
            offload_parameters=self.offload.parameters,
            pin_memory=pin_memory,
        )
        return join(self.deepspeed, ours)
