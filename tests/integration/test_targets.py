"""The stage `targets` on a local Ray of two CPUs."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray.util.placement_group import placement_group, remove_placement_group
from safetensors.torch import load_file
from toys.targets import much_behind, toy_artifacts, toy_recipe

from fusion_ray.errors import ClusterError, CorruptArtifactError, StaleArtifactError
from fusion_ray.on_ray import cluster
from fusion_ray.progress import Progress
from fusion_ray.recipe import Recipe
from fusion_ray.storage.artifacts import Artifact, read_manifest
from fusion_ray.storage.model_files import ModelFiles
from fusion_ray.targets.stage import WORKING, build_targets

# Ray sets its own deprecated options while it makes its defaults.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    cluster.connect("local", num_cpus=2)
    yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return toy_recipe(tmp_path_factory.mktemp("targets"), zero_stage=2)


@pytest.fixture(scope="module")
def trained(recipe: Recipe) -> tuple[list[Artifact], list[Progress]]:
    """A source of a late round and three control arms, trained side by side, and what was told meanwhile."""
    source, *arms = toy_artifacts(recipe, ("math", "sft", "self", "shuffled"))
    artifacts, seen = [much_behind(source), *arms], []
    build_targets(recipe, artifacts, seen.append)
    return artifacts, seen


def test_a_source_and_three_control_arms_train_side_by_side_and_end(
    trained: tuple[list[Artifact], list[Progress]],
) -> None:
    artifacts, seen = trained
    curves = {}
    for artifact in artifacts:
        folder = Path(artifact.folder)
        manifest = read_manifest(artifact.folder)
        assert manifest.fingerprint == artifact.fingerprint
        assert {"config.json", "tokenizer.json", "model.safetensors", "metrics.jsonl"} <= set(manifest.files)
        assert not (folder / WORKING).exists()
        curves[artifact.name] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert manifest.facts["validation_bits_per_byte"][-1]["bits_per_byte"] > 0
    tokens = {name: [line["tokens"] for line in curve] for name, curve in curves.items()}
    assert all(tokens[name] == tokens["math"] for name in tokens), "same rows, tokens and steps"
    assert all(line["soft"] == 0 for line in curves["sft"])
    assert curves["self"][0]["gold"] == pytest.approx(curves["sft"][0]["gold"], rel=1e-5)
    assert curves["shuffled"][0]["soft"] != curves["math"][0]["soft"]
    assert {progress.what for progress in seen} == {f"targets/{name}" for name in tokens}


def test_one_failed_source_does_not_take_the_others_down(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    (good,) = toy_artifacts(recipe, ("math",))
    (bad,) = toy_artifacts(recipe, ("code",), vocabulary=9000)
    with pytest.raises(CorruptArtifactError, match=r"1 of 2 targets failed.*\[code\].*vocabulary.*Done: math"):
        build_targets(recipe, [bad, good], lambda _: None)
    assert read_manifest(good.folder).fingerprint == good.fingerprint
    assert not (Path(bad.folder) / "MANIFEST.json").exists()


def test_a_target_of_a_late_round_starts_as_any_other(trained: tuple[list[Artifact], list[Progress]]) -> None:
    late, sft, *_ = trained[0]
    assert len(late.inputs) > len(sft.inputs) - 1 and late.name == "math"
    assert read_manifest(late.folder).fingerprint == late.fingerprint


@pytest.mark.slow
def test_training_begins_anew_where_ray_s_list_of_checkpoints_was_cut_off(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    (artifact,) = toy_artifacts(recipe, ("math",))
    snapshot = Path(artifact.folder, WORKING, f"math-{artifact.fingerprint[:8]}", "checkpoint_manager_snapshot.json")
    snapshot.parent.mkdir(parents=True)
    snapshot.write_text("")
    build_targets(recipe, [artifact], lambda _: None)
    assert read_manifest(artifact.folder).facts["steps"] > 0


def test_two_workers_and_one_train_the_same_model(
    recipe: Recipe, trained: tuple[list[Artifact], list[Progress]], tmp_path: Path
) -> None:
    two = toy_recipe(tmp_path, workers=2, zero_stage=2)
    assert two.targets == recipe.targets.model_copy(update={"workers": 2})
    (artifact,) = toy_artifacts(two, ("math",))
    build_targets(two, [artifact], lambda _: None)
    losses, weights = [], []
    for folder in (Path(trained[0][0].folder), Path(artifact.folder)):
        losses.append([json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()])
        weights.append(load_file(folder / "model.safetensors"))
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(tensor.numpy(), weights[1][name].numpy(), atol=1e-4)


def test_more_workers_than_the_cluster_can_give_are_refused_at_once(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, workers=3)
    with pytest.raises(ClusterError, match="3 workers need 3 CPU, the whole cluster has 2"):
        build_targets(recipe, toy_artifacts(recipe, ("math",)), lambda _: None)


def test_no_room_in_time_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, wait_s=0.5)
    taken = placement_group([{"CPU": 2}])
    assert taken.wait(60)
    try:
        with pytest.raises(ClusterError, match=r"no room for its 1 workers within 0\.5 s"):
            build_targets(recipe, toy_artifacts(recipe, ("math",)), lambda _: None)
    finally:
        remove_placement_group(taken)


def test_a_fused_set_of_another_pivot_is_refused(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    (artifact,) = toy_artifacts(recipe, ("math",))
    other = ModelFiles("other", "", "", {"model.safetensors": "0"})
    stranger = replace(artifact, inputs=(replace(artifact.input_of("fused"), models={"pivot": other}),))
    with pytest.raises(StaleArtifactError, match="made for another pivot"):
        build_targets(recipe, [stranger], lambda _: None)
