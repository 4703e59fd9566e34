"""The same YAML through mergekit 0.1.5 and through ours: bfloat16 outputs equal, or within one unit in the last place.

mergekit runs in an environment of its own, made once by bench/mergekit_env.sh. Where a method selects by rank the
models are float32: between bfloat16 models many deltas are equal, and which of the equal ones mergekit keeps depends on
torch's unstable sort (ours keeps the first).
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from toys.checkpoints import moved, save_toy, toy_tensors

from fusion_ray.merged.from_yaml import merge_from_yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HALF = [{"filter": "mlp", "value": 0.5}, {"value": [0.2, 0.9]}]
WEIGHTS = {"a": {"weight": 0.5}, "b": {"weight": 1.0}, "c": {"weight": [0.1, 0.4]}}
SPARSE = {
    name: own | {"density": [{"filter": "self_attn", "value": 0.3}, {"value": 0.6}]} for name, own in WEIGHTS.items()
}


def document(
    method: str, models: dict[str, dict[str, Any]], base: str | None = "pivot", **parameters: Any
) -> dict[str, Any]:
    entries = [{"model": name, "parameters": own} for name, own in models.items()]
    made = {"merge_method": method, "models": entries, "parameters": parameters, "dtype": "float32"}
    return made | ({"base_model": base} if base else {}) | {"out_dtype": "bfloat16"}


def plain(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {} for name in names}


def sliced(method: str, *parts: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"merge_method": method, "slices": list(parts), "dtype": "float32", "out_dtype": "bfloat16"} | rest


def source(model: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "layer_range": [start, stop]} | ({"parameters": parameters} if parameters else {})


FULL = {name: own | {"density": 1.0} for name, own in WEIGHTS.items()}
CASES: dict[str, dict[str, Any]] = {
    "linear": document("linear", WEIGHTS, None),
    "linear not normalised": document("linear", WEIGHTS, None, normalize=False),
    "linear with base": document("linear", WEIGHTS, weight=0.3),
    "task_arithmetic": document("task_arithmetic", WEIGHTS, **{"lambda": 0.8}),
    "task_arithmetic normalised": document("task_arithmetic", WEIGHTS, normalize=True),
    "ties": document("ties", SPARSE),
    "ties rescaled": document("ties", SPARSE, rescale=True, normalize=False, int8_mask=True),
    "breadcrumbs": document("breadcrumbs", SPARSE, gamma=0.05),
    "breadcrumbs_ties": document("breadcrumbs_ties", SPARSE),
    "dare_ties that drops nothing": document("dare_ties", FULL),
    "dare_linear that drops nothing": document("dare_linear", FULL),
    "della that drops nothing": document("della", FULL),
    "della_linear that drops nothing": document("della_linear", FULL),
    "sce with selection": document("sce", plain("a", "b", "c"), select_topk=0.3),
    "arcee_fusion": document("arcee_fusion", plain("far")),
    "sce": document("sce", plain("a", "b", "c")),
    "slerp": document("slerp", plain("a", "b"), "a", t=HALF),
    "nuslerp": document("nuslerp", {"a": {"weight": 1}, "b": {"weight": 3}}, None),
    "nuslerp of deltas": document("nuslerp", {"a": {"weight": 1}, "b": {"weight": 3}}),
    "nuslerp by last dimension": document(
        "nuslerp", {"a": {"weight": 1}, "b": {"weight": 3}}, nuslerp_flatten=False, nuslerp_row_wise=False
    ),
    "nuslerp by first dimension": document(
        "nuslerp", {"a": {"weight": 1}, "b": {"weight": 3}}, nuslerp_flatten=False, nuslerp_row_wise=True
    ),
    "multislerp": document("multislerp", {"a": {"weight": 1}, "b": {"weight": 2}, "c": {"weight": 3}}, None),
    "multislerp of deltas": document("multislerp", {"a": {"weight": 1}, "b": {"weight": 2}, "c": {"weight": 3}}),
    "karcher": document("karcher", plain("a", "b", "c"), None),
    "model_stock": document("model_stock", plain("a", "b", "near")),
    "model_stock by filter": document("model_stock", plain("a", "b", "near"), filter_wise=True),
    "ram": document("ram", plain("a", "b", "c"), epsilon=2e-3),
    "ramplus_tl": document("ramplus_tl", plain("a", "b", "c"), epsilon=2e-3, r=0.3, alpha=0.5),
    "nearswap": document("nearswap", plain("a"), t=1e-3),
    "passthrough": sliced("passthrough", {"sources": [source("a", 0, 2)]}, {"sources": [source("b", 1, 2)]}),
    "passthrough scaled": sliced(
        "passthrough",
        {"sources": [source("a", 0, 2, scale=[{"filter": "o_proj", "value": 0.0}, {"value": 1.0}])]},
        {"sources": [source("a", 0, 2)]},
    ),
    "slerp of slices": sliced(
        "slerp", {"sources": [source("a", 0, 2), source("b", 0, 2)]}, base_model="a", parameters={"t": [0, "1e-1", 1]}
    ),
    "ties of slices": sliced(
        "ties",
        {"sources": [source("pivot", 0, 1), source("a", 1, 2, weight=0.5, density=0.5), source("b", 0, 1, weight=1)]},
        {"sources": [source("pivot", 1, 2), source("b", 1, 2, weight=0.5), source("c", 1, 2, weight=1)]},
        base_model="pivot",
    ),
}  # fmt: skip


BY_RANK = ("ties", "breadcrumbs", "sce", "arcee")


def merge_all(root: Path) -> None:
    pivot = toy_tensors(layers=2)
    models = {"pivot": pivot} | {name: moved(pivot, seed, 5e-3) for seed, name in enumerate("abc", start=1)}
    near = {name: tensor + (tensor - pivot[name]) * 0.3 for name, tensor in models["a"].items()}
    models["near"] = moved(near, 9, 1e-3)
    # Arcee fusion's divergences of rows that hardly moved are lost in mergekit's float32; these moved far.
    models["far"] = moved(pivot, 10, 0.5)
    for name, tensors in models.items():
        save_toy(root / "bfloat16" / name, tensors)
        save_toy(root / "float32" / name, tensors, torch.float32)
    arguments = []
    for case, content in CASES.items():
        text = yaml.safe_dump(content, sort_keys=False)
        folder = root / ("float32" if case.startswith(BY_RANK) else "bfloat16")
        for name in models:
            text = text.replace(f"model: {name}\n", f"model: {folder / name}\n")
        (root / f"{case}.yaml").write_text(text)
        arguments += [str(root / f"{case}.yaml"), str(root / "theirs" / case)]
    if shutil.which("uv") is None and not (Path.home() / ".cache/fusion_ray/mergekit-venv").exists():
        pytest.skip("uv is needed once, to make mergekit's environment")
    made = subprocess.run([str(ROOT / "bench/mergekit_env.sh")], check=True, capture_output=True, text=True)
    command = [made.stdout.strip(), str(ROOT / "bench/run_mergekit.py"), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (root / "reports.jsonl").write_text(done.stdout)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mergekit")
    merge_all(folder)
    return folder


def load(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def ulps(ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray:
    """Distance in steps of bfloat16; bits of negative numbers run the other way."""

    def steps(tensor: torch.Tensor) -> np.ndarray:
        bits = tensor.contiguous().view(torch.int16).numpy().astype(np.int32)
        return np.where(bits < 0, -32768 - bits, bits)

    return np.abs(steps(ours) - steps(theirs))


@pytest.mark.parametrize("case", CASES)
def test_ours_is_mergekits_within_one_unit_in_the_last_place(root: Path, tmp_path: Path, case: str) -> None:
    reports = [json.loads(line) for line in (root / "reports.jsonl").read_text().splitlines() if "config" in line]
    (report,) = [report for report in reports if Path(report["config"]).stem == case]
    assert report["error"] is None, report["error"]
    merge_from_yaml(root / f"{case}.yaml", str(tmp_path / "out"))
    ours, theirs = load(tmp_path / "out"), load(root / "theirs" / case)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype == torch.bfloat16
        np.testing.assert_array_less(ulps(ours[name], tensor), 2, err_msg=name)
    configs = [
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", root / "theirs" / case)
    ]
    assert configs[0]["num_hidden_layers"] == configs[1]["num_hidden_layers"]
