"""Merging against mergekit 0.1.5 and against `cp`: wall, CPU seconds and peak anonymous memory on the same checkpoints.

A base and four targets of about 470 M parameters in bfloat16 are made on the spot. Every merge is a process of its
own; seconds and memory count from the end of its imports. VaRM, which mergekit lacks, is set against its linear.

    python bench/merge.py [--layers 24] [--vocabulary 32768] [--folder DIR] [--cases linear varm ...]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from measurement import Measurement, report

from fusion_ray.storage.checkpoint_writer import CheckpointWriter, Slot

HERE = Path(__file__).parent
TARGETS = ("t1", "t2", "t3", "t4")
HIDDEN, INNER = 1024, 4096
MIB = 1 << 20


class Case(NamedTuple):
    """One method with its parameters, the method of mergekit it is set against, and the goal for the ratio of walls."""

    method: str
    parameters: dict[str, float]
    peer: str
    goal: float | None = None


CASES = {
    "linear": Case("linear", {"weight": 1.0}, "linear"),
    "varm": Case("varm", {}, "linear", 1.0),
    "sce 0.1": Case("sce", {"select_topk": 0.1}, "sce 0.1", 0.15),
    "sce 1": Case("sce", {"select_topk": 1.0}, "sce 1"),
    "ties": Case("ties", {"weight": 1.0, "density": 0.2}, "ties"),
    "dare": Case("dare_linear", {"weight": 1.0, "density": 0.5}, "dare"),
}


class Cost(NamedTuple):
    """What one merge took; memory is anonymous and above what the imports had taken."""

    wall_s: float
    cpu_s: float
    memory_mib: float


def shapes(layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama of this size."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        found |= {f"{prefix}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        found |= {f"{prefix}.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        found[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        found |= {f"{prefix}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocabulary, HIDDEN)}


def make_models(folder: Path, layers: int, vocabulary: int) -> None:
    """Write the base and the targets, unless they are there."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }  # fmt: skip
    tensors = shapes(layers, vocabulary)
    slots = [Slot(name, "BF16", shape) for name, shape in tensors.items()]
    for seed, model in enumerate(("base", *TARGETS)):
        path = folder / model / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (path.parent / name).write_text("{}")
        if path.exists():
            continue
        base, noise = np.random.default_rng(0), np.random.default_rng(seed)
        with CheckpointWriter(str(path), slots) as writer:
            for shape in tensors.values():
                for rows in np.array_split(np.arange(shape[0]), max(1, shape[0] // 1024)):
                    size = len(rows) * int(np.prod(shape[1:]))
                    values = base.standard_normal(size, dtype=np.float32) * np.float32(0.02)
                    if seed:
                        values += noise.standard_normal(size, dtype=np.float32) * np.float32(2e-3 * seed)
                    writer.write(values)


def write_config(folder: Path, case: Case) -> Path:
    """The mergekit config of a case."""
    document = {
        "merge_method": case.method,
        "models": [{"model": str(folder / target)} for target in TARGETS],
        "parameters": case.parameters,
        "dtype": "bfloat16",
    } | ({} if case.method == "linear" else {"base_model": str(folder / "base")})
    path = folder / f"{case.method}-{case.parameters.get('select_topk', '')}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run(command: list[str], folder: Path) -> Cost:
    """Run a merge that says when it is ready, and watch its memory."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        process = subprocess.Popen(
            [*command, f"{out}/merged"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        before_kib, before_s, started = anonymous_kib(process.pid), cpu_seconds(process.pid), time.perf_counter()
        peak_kib, spent_s = before_kib, before_s
        while process.poll() is None:
            peak_kib, spent_s = max(peak_kib, anonymous_kib(process.pid)), max(spent_s, cpu_seconds(process.pid))
            time.sleep(0.005)
        if process.returncode or '"error": null' not in process.stdout.read():
            raise RuntimeError(f"{command} failed")
        return Cost(time.perf_counter() - started, spent_s - before_s, (peak_kib - before_kib) / 1024)


def anonymous_kib(pid: int) -> int:
    """Anonymous memory of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100


def ours(folder: Path, case: Case) -> Cost:
    """Our merge of a case."""
    return run([sys.executable, str(HERE / "run_merge.py"), str(write_config(folder, case))], folder)


def theirs(folder: Path, case: Case, python: str) -> Cost:
    """mergekit's."""
    return run([python, str(HERE / "run_mergekit.py"), str(write_config(folder, case))], folder)


def copy_seconds(folder: Path) -> float:
    """What `cp` of the inputs takes."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        subprocess.run(["cp", "-r", *(str(folder / name) for name in ("base", *TARGETS)), out], check=True)
        return time.perf_counter() - started


def compare(name: str, mine: Cost, peer: Cost, case: Case) -> None:
    """Report wall, CPU and memory of one case."""
    for unit, a, b in zip(("s wall", "s CPU", "MiB anonymous"), mine, peer, strict=True):
        ratio = a / b if b else None
        goal = case.goal if unit == "s wall" else None
        holds = ratio <= goal if goal is not None and ratio is not None else None
        wanted = f"<= {goal} x {case.peer}" if goal is not None else None
        report(Measurement("merge", name, unit, a, b, f"mergekit 0.1.5 {case.peer}", ratio, wanted, holds))


def memory_of_a_large_tensor(folder: Path) -> None:
    """Peak memory when the largest tensor grows fourfold: it must stay flat, below 400 MiB."""
    peaks = []
    for vocabulary in (16384, 65536):
        inner = folder / f"large{vocabulary}"
        make_models(inner, 1, vocabulary)
        peaks.append(max(ours(inner, CASES[name]).memory_mib for name in ("varm", "sce 0.1", "ties")))
    small, large = peaks
    holds = large <= 1.2 * small and large <= 400
    goal, peer = "<= 1.2 x and <= 400 MiB", "largest tensor x 1"
    report(Measurement("merge", "largest tensor x 4", "MiB anonymous", large, small, peer, large / small, goal, holds))


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--folder", type=Path, help="where the models are made, and kept")
    parser.add_argument("--cases", nargs="*", default=[*CASES, "memory"])
    given = parser.parse_args()
    python = subprocess.run([str(HERE / "mergekit_env.sh")], check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        make_models(folder, given.layers, given.vocabulary)
        millions = sum(int(np.prod(shape)) for shape in shapes(given.layers, given.vocabulary).values()) / 1e6
        copied = copy_seconds(folder)
        peers: dict[str, Cost] = {}
        for name in (name for name in CASES if name in given.cases):
            case = CASES[name]
            mine = ours(folder, case)
            if case.peer not in peers:
                peers[case.peer] = theirs(folder, CASES[case.peer], python)
            compare(f"{name}, {millions:.0f} M x 5", mine, peers[case.peer], case)
            label, ratio = f"{name}, {millions:.0f} M x 5", mine.wall_s / copied
            report(Measurement("merge", label, "s wall", mine.wall_s, copied, "cp of the inputs", ratio))
        if "memory" in given.cases:
            memory_of_a_large_tensor(folder)


if __name__ == "__main__":
    main()
