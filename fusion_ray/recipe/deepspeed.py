"""DeepSpeed's configuration: what we must set, and how a file that the user brings joins with it. Imports no torch.

Checked when the recipe is read, so that a wrong key is found before hours of scoring and not after them.
"""

import copy
import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_NEVER = 10**9

# What a file may set: all that changes neither the method, nor the optimizer, nor what a checkpoint must hold.
PASSED_KEYS = frozenset(
    {
        "comms_logger", "communication_data_type", "dump_state", "flops_profiler", "gradient_predivide_factor",
        "memory_breakdown", "prescale_gradients", "seq_parallel_communication_data_type", "steps_per_print",
        "wall_clock_breakdown",
    }
)  # fmt: skip
ZERO_KEYS = frozenset(
    {
        "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "ignore_unused_parameters",
        "log_trace_cache_warnings", "offload_optimizer", "offload_param", "overlap_comm", "reduce_bucket_size",
        "reduce_scatter", "round_robin_gradients", "stage", "stage3_allgather_sequential",
        "stage3_gather_16bit_weights_on_model_save", "stage3_max_live_parameters", "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold", "stage3_module_granularity_threshold",
        "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size", "stage3_use_all_reduce_for_fetch_params",
        "sub_group_size", "use_multi_rank_bucket_allreduce",
    }
)  # fmt: skip
OFFLOAD_KEYS = frozenset({"device", "pin_memory", "buffer_count", "buffer_size", "max_in_cpu", "ratio", "fast_init"})

# What only the recipe sets, and by which key. A file may repeat the value, or say `auto`, but not contradict it.
_SAID_BY = {
    "train_batch_size": "targets.tokens_per_step",
    "train_micro_batch_size_per_gpu": "targets.tokens_per_batch",
    "gradient_accumulation_steps": "targets.tokens_per_step",
    "gradient_clipping": "targets.clip",
    "optimizer": "targets.learning_rate, betas and weight_decay",
    "scheduler": "targets.schedule and warmup",
    "bf16": "targets.dtype",
    "fp16": "targets.dtype",
    "zero_optimization.stage": "targets.zero_stage",
    "zero_optimization.offload_optimizer.device": "targets.offload.optimizer",
    "zero_optimization.offload_param.device": "targets.offload.parameters",
}


def read_options(value: Any) -> dict[str, Any] | None:
    """A mapping as it is, or the JSON object in the file that a path names.

    Raises:
        ValueError: No such file, not JSON, not an object, or a key that may not be set.
    """
    if value is None:
        return None
    if isinstance(value, str | Path):
        try:
            value = json.loads(Path(value).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"targets.deepspeed: expected a JSON file of DeepSpeed's, got {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("zero_optimization", {}), dict):
        raise ValueError("targets.deepspeed: expected an object, and an object under its key zero_optimization")
    zero = value.get("zero_optimization", {})
    _know(value, PASSED_KEYS | our_config().keys() | {name for name in _SAID_BY if "." not in name}, "key")
    _know(zero, ZERO_KEYS, "ZeRO key")
    for part in ("offload_optimizer", "offload_param"):
        _know(zero.get(part) or {}, OFFLOAD_KEYS, f"ZeRO key {part}.")
    return value


def our_config(
    *,
    stage: int = 0,
    bfloat16: bool = False,
    clip: float = 0.0,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
    pin_memory: bool = False,
) -> dict[str, Any]:
    """What we must set. Batches, optimizer and schedule are the trainer's own.

    Raises:
        ValueError: Offloading that DeepSpeed has no stage for.
    """
    if offload_optimizer and stage == 0:
        raise ValueError("targets.offload.optimizer needs targets.zero_stage 1, 2 or 3; stage 0 keeps its state")
    if offload_parameters and stage != 3:
        raise ValueError("targets.offload.parameters needs targets.zero_stage: 3; other stages keep their weights")
    zero: dict[str, Any] = {"stage": stage}
    if offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin_memory}
    if offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": pin_memory}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Stage 0 hides its gradient norm, so there the trainer clips by itself.
        "gradient_clipping": clip if stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
    }


def join(theirs: dict[str, Any] | None, ours: dict[str, Any]) -> dict[str, Any]:
    """Ours with what a file adds; `auto` in the file stands for ours, or for DeepSpeed's default.

    Raises:
        ValueError: The file says something else than the recipe, or than what must be.
    """
    joined = copy.deepcopy(ours)
    fixed = {name: value for name, value in _leaves(ours) if name not in PASSED_KEYS}
    theirs = dict(theirs or {})
    if theirs.get("fp16", {}).get("enabled") in (False, "auto", None):
        theirs.pop("fp16", None)
    for name, value in _leaves(theirs):
        if value == "auto" or (name in fixed and fixed[name] == value):
            continue
        said_by = next((place for key, place in _SAID_BY.items() if name == key or name.startswith(f"{key}.")), "")
        if name in fixed or said_by:
            here = f" and is {fixed[name]!r} here" if name in fixed else ""
            raise ValueError(
                f"targets.deepspeed: {name} is {value!r}, but it is set by {said_by or 'the trainer'}{here}; take it "
                "out of the file"
            )
        *parents, last = name.split(".")
        place = joined
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return joined


def _leaves(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _know(given: Iterable[str], known: Iterable[str], kind: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1)
            guess = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueError(f"targets.deepspeed: unknown {kind} '{key}'{guess}; known: {', '.join(sorted(known))}")
