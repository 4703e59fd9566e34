"""`method: learned` on a local Ray: from fused sets to a folder, stopped and gone on with, pairwise and multi."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from toy_targets import toy_artifacts, toy_recipe

from fusion_ray.errors import RecipeError
from fusion_ray.merge_methods import Learned
from fusion_ray.merging.add import add_target
from fusion_ray.progress import Progress, silent
from fusion_ray.recipe import Recipe
from fusion_ray.stages import cluster, learned_weights
from fusion_ray.stages.learned_weights import _sample
from fusion_ray.stages.merged import build_merged
from fusion_ray.storage.artifacts import Artifact, read_manifest, write_manifest
from fusion_ray.storage.models import find_model
from fusion_ray.storage.shards import read_shard

# Ray sets its own deprecated options while it makes its defaults.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    cluster.connect("local", num_cpus=2)
    yield


def make_merged(folder: Path, names: tuple[str, ...]) -> tuple[Recipe, Artifact]:
    """Targets that lie about as far from the pivot as fine-tuning goes; their last norm is the pivot's."""
    recipe = toy_recipe(folder)
    method = {"kind": "learned", "rows": 9, "steps": 3, "granularity": "module"}
    recipe = Recipe.model_validate(recipe.model_dump() | {"merged": {"method": method}})
    targets = toy_artifacts(recipe, names)
    for seed, target in enumerate(targets):
        tensors = load_file(Path(recipe.pivot.model) / "model.safetensors")
        random = np.random.default_rng(seed)
        for name in tensors:
            if name != "model.norm.weight":
                tensors[name] += random.normal(0, 0.02, tensors[name].shape).astype(np.float32)
        Path(target.folder).mkdir(parents=True, exist_ok=True)
        save_file(tensors, Path(target.folder) / "model.safetensors")
        for other in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (Path(target.folder) / other).write_bytes((Path(recipe.pivot.model) / other).read_bytes())
        write_manifest(target, seconds=0)
    inputs = {target.name: target for target in targets}
    pivot = {"pivot": find_model(recipe.pivot.model)}
    return recipe, Artifact("merged", "", f"{recipe.folder}/5_merged", {"learned": 1}, inputs, pivot)


def test_learned_weights_make_a_model_and_a_stopped_merge_does_not_learn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, artifact = make_merged(tmp_path, ("math", "code"))
    seen: list[Progress] = []
    build_merged(recipe, [artifact], seen.append)
    folder = Path(artifact.folder)
    assert {"learned.json", "weights.json", "model.safetensors"} <= set(read_manifest(artifact.folder).files)
    assert any("bits per byte on validation" in progress.detail for progress in seen)

    learned = json.loads((folder / "learned.json").read_text())
    assert learned["points"][0]["step"] == 0
    values = {point["step"]: point["bits_per_byte"] for point in learned["points"]}
    assert learned["chosen_step"] == min(values, key=lambda step: (values[step], step))
    weights = json.loads((folder / "weights.json").read_text())["tensors"]
    assert weights["model.norm.weight"] is None
    first = weights["model.layers.0.mlp.up_proj.weight"]
    assert first.keys() == {"pivot", "math", "code"}
    assert sum(first.values()) == pytest.approx(1.0)
    assert first == weights["model.layers.0.mlp.down_proj.weight"]

    merged, pivot = load_file(folder / "model.safetensors"), load_file(Path(recipe.pivot.model) / "model.safetensors")
    assert merged["model.norm.weight"].equal(pivot["model.norm.weight"])
    name = "model.layers.1.mlp.up_proj.weight"
    parts = [pivot[name], *(load_file(Path(t.folder) / "model.safetensors")[name] for t in artifact.inputs.values())]
    expected = sum(w * p.double() for w, p in zip(weights[name].values(), parts, strict=True))
    np.testing.assert_allclose(merged[name].numpy(), expected.numpy(), rtol=1e-6, atol=1e-7)

    (folder / "MANIFEST.json").unlink()
    (folder / "model.safetensors").rename(folder / "before")
    monkeypatch.setattr(learned_weights, "_learn", None)
    build_merged(recipe, [artifact], silent)
    assert (folder / "model.safetensors").read_bytes() == (folder / "before").read_bytes()
    with pytest.raises(RecipeError, match="merged by 'learned'; only VaRM merges can be added to"):
        add_target(artifact.folder, "third", artifact.inputs["math"].folder, str(tmp_path / "added"))


def test_one_target_of_all_sources_learns_how_far_to_go_from_the_pivot(tmp_path: Path) -> None:
    recipe, artifact = make_merged(tmp_path, ("math",))
    multi = replace(artifact.inputs["math"], name="multi")
    artifact = replace(artifact, inputs={"multi": multi})
    build_merged(recipe, [artifact], silent)
    learned = json.loads((Path(artifact.folder) / "learned.json").read_text())
    assert {tuple(weights) for weights in learned["points"][0]["weights"].values()} == {(0.0,), (1.0,)}
    last = [weights[0] for part, weights in learned["points"][-1]["weights"].items() if part != "model.norm"]
    assert all(0 <= weight <= 1 for weight in last)
    assert any(weight < 1 for weight in last), "the pivot takes part"


def test_no_chat_is_both_descended_on_and_chosen_by_and_none_was_trained_on(tmp_path: Path) -> None:
    _, artifact = make_merged(tmp_path, ("math", "code"))
    method = Learned(rows=1000)
    sets = [target.inputs["fused"] for target in artifact.inputs.values()]
    ids = {
        judged: [chat for table in _sample(sets, method, judged=judged) for chat in table["id"].to_pylist()]
        for judged in (False, True)
    }
    assert ids[True] and ids[False]
    assert not set(ids[True]) & set(ids[False])
    assert sorted(ids[False]) == sorted([*set(ids[False])] * 2), "each set has its say on the same chats"
    fused = sets[0]
    (record,) = read_manifest(fused.folder).shards_of("validation")
    usable = [row["id"] for row in read_shard(fused.folder, record, ["id", "reason"]).to_pylist() if not row["reason"]]
    assert sorted([*set(ids[False]), *ids[True]]) == sorted(usable)
    few = [len(table) for table in _sample(sets, Learned(rows=5), judged=False)]
    assert few == [3, 2]
