"""The stage `merged` on a local Ray: the same bytes as without Ray, and a folder that is whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys.checkpoints import moved, save_toy, toy_tensors

from fusion_ray.merged.execute import merge_to_folder
from fusion_ray.merged.plan import plan_merge
from fusion_ray.merged.stage import build_merged
from fusion_ray.on_ray import cluster
from fusion_ray.progress import silent
from fusion_ray.recipe import parse_recipe
from fusion_ray.storage.artifacts import Artifact, Role, read_manifest
from fusion_ray.storage.checkpoints import open_checkpoint
from fusion_ray.storage.model_files import find_model

# Ray sets its own deprecated options while it makes its defaults.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SOURCES = ("math", "code")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    cluster.connect("local", num_cpus=2)
    yield


def merge_of(run: Path, pivot: str, trained: dict[str, Role]) -> Artifact:
    """The merged model of targets and controls that lie in a run's folder."""
    inputs = tuple(Artifact(run=str(run), stage="targets", role=role, model=name) for name, role in trained.items())
    return Artifact(run=str(run), stage="merged", inputs=inputs, models={"pivot": find_model(pivot)})


@pytest.mark.parametrize("granularity", ["layer", "matrix"])
def test_the_stage_writes_the_bytes_that_one_process_writes(tmp_path: Path, granularity: str) -> None:
    pivot = save_toy(tmp_path / "pivot", toy_tensors())
    targets = {
        name: save_toy(tmp_path / "4_targets" / name, moved(toy_tensors(), seed)) for seed, name in enumerate(SOURCES)
    }
    shard_bytes = 30_000
    recipe = parse_recipe(
        {
            "name": "toy",
            "pivot": {"model": pivot},
            "sources": [{"name": name, "model": pivot} for name in SOURCES],
            "corpus": {"path": "unused"},
            "merged": {"method": {"kind": "varm", "granularity": granularity}, "shard_gib": shard_bytes / 2**30},
        }
    )
    artifact = merge_of(tmp_path, pivot, dict.fromkeys(SOURCES, "main"))
    build_merged(recipe, [artifact], silent)

    plan = plan_merge(
        open_checkpoint(pivot),
        {name: open_checkpoint(folder) for name, folder in targets.items()},
        method="varm",
        parameters={"granularity": granularity},
        file_bytes=shard_bytes,
    )
    merge_to_folder(plan, str(tmp_path / "alone"))
    assert len(plan.files) > 1
    for file in plan.files:
        assert (tmp_path / "5_merged" / file.name).read_bytes() == (tmp_path / "alone" / file.name).read_bytes()
    manifest = read_manifest(artifact.folder)
    assert manifest.fingerprint == artifact.fingerprint
    assert {"config.json", "README.md", "weights.json", "tokenizer.json", plan.files[0].name} <= set(manifest.files)
    assert not (tmp_path / "5_merged" / "_merge").exists()


def test_deltas_from_the_sft_control_are_what_the_sources_taught_beyond_gold(tmp_path: Path) -> None:
    tensors = toy_tensors()
    pivot = save_toy(tmp_path / "pivot", tensors)
    trained = {name: moved(tensors, seed) for seed, name in enumerate(("sft", *SOURCES))}
    for name, tensors_of in trained.items():
        save_toy(tmp_path / "4_targets" / name, tensors_of, torch.float32)
    recipe = parse_recipe(
        {
            "name": "toy",
            "pivot": {"model": pivot},
            "sources": [{"name": name, "model": pivot} for name in SOURCES],
            "corpus": {"path": "unused"},
            "merged": {"base": "sft", "method": {"kind": "task_arithmetic", "weight": 0.5}},
        }
    )
    artifact = merge_of(tmp_path, pivot, {"sft": "control"} | dict.fromkeys(SOURCES, "main"))
    build_merged(recipe, [artifact], silent)
    assert read_manifest(artifact.folder).facts["targets"] == list(SOURCES)
    for name, found in load_file(tmp_path / "5_merged" / "model.safetensors").items():
        sft, math, code = (trained[model][name].double() for model in ("sft", *SOURCES))
        assert found.dtype == torch.bfloat16  # as the pivot is stored, whatever the control is stored in
        torch.testing.assert_close(found.double(), sft + 0.5 * (math - sft) + 0.5 * (code - sft), rtol=2**-8, atol=0)
