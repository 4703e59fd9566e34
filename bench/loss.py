"""The fusion loss: memory and time beside a dense implementation, and a whole training step beside plain fine-tuning.

    python bench/loss.py            # about ten minutes on two cores
    python bench/loss.py --quick    # the smallest case of each kind

Memory is what the process grows by at its worst, above the inputs and the gradients of the inputs, which every
implementation needs. Each memory case runs in a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measurement import Measurement, report
from real_models import real_model
from transformers import AutoModelForCausalLM

from fusion_ray.recipe import Targets
from fusion_ray.targets.loss import fusion_loss
from fusion_ray.targets.rows import TrainingBatch
from fusion_ray.targets.soft_target import SoftTarget, gold_target, soft_target
from fusion_ray.targets.student import Student

WIDTH, K = 576, 10
GOAL_MEMORY, GOAL_STEP = 0.05, 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure_one(arguments.case[0], int(arguments.case[1]), int(arguments.case[2]))))
        return
    shapes = [(4, 512, 32_000), (4, 1024, 32_000), (4, 2048, 32_000), (1, 512, 151_936), (2, 512, 151_936)]
    for batch, length, vocabulary in shapes[:1] if arguments.quick else shapes:
        compare_with_dense(batch, length, vocabulary)
    compare_steps(repeats=3 if arguments.quick else 7)


def compare_with_dense(batch: int, length: int, vocabulary: int) -> None:
    """Peak memory and seconds of loss and gradients, float32."""
    case = f"B={batch} T={length} V={vocabulary} K={K} D={WIDTH}"
    ours, dense = (_in_own_process(how, batch * length, vocabulary) for how in ("ours", "dense"))
    ratio = ours["peak_mib"] / dense["peak_mib"]
    goal = f"<= {GOAL_MEMORY:.0%}" if vocabulary == 32_000 else None
    holds = ratio <= GOAL_MEMORY if goal else None
    report(Measurement("loss", f"peak {case}", "MiB", ours["peak_mib"], dense["peak_mib"], "dense", ratio, goal, holds))
    seconds = ours["seconds"], dense["seconds"]
    report(Measurement("loss", f"time {case}", "s", *seconds, "dense", seconds[0] / seconds[1]))


def _in_own_process(how: str, n: int, vocabulary: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", how, str(n), str(vocabulary)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def measure_one(how: str, n: int, vocabulary: int) -> dict[str, float]:
    """Loss and gradients once over n positions."""
    hidden_ND = torch.randn(n, WIDTH).requires_grad_()
    head_VD = (torch.randn(vocabulary, WIDTH) / 10).requires_grad_()
    target = draw_target(n, vocabulary)
    loss_of = {"ours": lambda h, w, t: fusion_loss(h, w, t).loss, "dense": dense_loss}[how]
    loss_of(hidden_ND[:64], head_VD, target[:64]).backward()  # Gradients exist, threads run.
    before_kib = _resident_kib()
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts from here.
    started = time.perf_counter()
    loss_of(hidden_ND, head_VD, target).backward()
    seconds = time.perf_counter() - started
    gradients_kib = 4 * (hidden_ND.numel() + head_VD.numel()) / 1024
    return {"peak_mib": (_peak_kib() - before_kib - gradients_kib) / 1024, "seconds": seconds}


def dense_loss(hidden_ND: torch.Tensor, head_VD: torch.Tensor, target: SoftTarget) -> torch.Tensor:
    """What research code does: all logits, a target over the whole vocabulary, log-softmax, two losses."""
    logits_NV = hidden_ND @ head_VD.t()
    p_NV = torch.zeros_like(logits_NV).scatter_(1, target.ids_NK, target.probs_NK)
    gold = torch.nn.functional.cross_entropy(logits_NV, target.gold_N)
    soft = -(p_NV * torch.log_softmax(logits_NV, dim=1)).sum(dim=1).mean()
    return 0.9 * gold + 0.1 * soft


def draw_target(n: int, vocabulary: int) -> SoftTarget:
    """Top-k targets with a decreasing share for each of the kept tokens."""
    torch.manual_seed(0)
    ids_NK = torch.randint(0, vocabulary - K, (n, 1)) + torch.arange(K)
    logprobs_NK = torch.log_softmax(-torch.arange(K).float(), dim=0).expand(n, K) - 0.05
    return soft_target(ids_NK[:, 0], ids_NK, logprobs_NK, torch.ones(n), lambda_=0.9)


def compare_steps(repeats: int, length: int = 512) -> None:
    """A whole training step of a real model in which every token is an answer token, the worst case for us."""
    model = AutoModelForCausalLM.from_pretrained(real_model("smollm2"), dtype=torch.bfloat16).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6, fused=True)
    vocabulary = model.config.vocab_size
    torch.manual_seed(0)
    ids_BT = torch.randint(0, vocabulary, (1, length))
    target = draw_target(length - 1, vocabulary)
    before_N = torch.arange(length - 1)

    def full_logits() -> torch.Tensor:
        return model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss

    plain = _time_steps({"full logits": full_logits}, optimizer, 1)  # Warm-up, before the head becomes a loss.
    student = Student(model, Targets(dtype="bfloat16"))

    def ours(of: SoftTarget) -> Callable[[], torch.Tensor]:
        batch = TrainingBatch(ids_BT, torch.arange(length)[None], before_N, of, before_N.numpy())
        return lambda: student(batch, length - 1)[0]

    ways = {"ours": ours(target), "full logits": full_logits, "chunked": ours(gold_target(ids_BT[0, 1:]))}
    plain = _time_steps(ways, optimizer, repeats)
    for name, label in (("full logits", "plain SFT, full logits"), ("chunked", "plain SFT, chunked")):
        ratio = plain["ours"] / plain[name]
        case, goal = f"step SmolLM2-135M bfloat16 T={length} K={K}", f"<= {GOAL_STEP}"
        report(Measurement("loss", case, "s", plain["ours"], plain[name], label, ratio, goal, ratio <= GOAL_STEP))


def _time_steps(
    ways: dict[str, Callable[[], torch.Tensor]], optimizer: torch.optim.Optimizer, repeats: int
) -> dict[str, float]:
    """The median seconds of a step, the ways taking turns so that a busy machine slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, loss_of in ways.items():
            started = time.perf_counter()
            loss_of().backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _resident_kib() -> float:
    return _status("VmRSS")


def _peak_kib() -> float:
    return _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
