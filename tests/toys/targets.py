"""Artifacts of the stage `targets` over fused sets made by hand, without the stages before it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from fusion_ray.recipe import CONTROL_ARMS, Recipe, parse_recipe
from fusion_ray.storage.artifacts import Artifact, write_manifest
from fusion_ray.storage.model_files import find_model
from fusion_ray.storage.shards import write_shard
from toys.fused import toy_fused
from toys.models import byte_level_tokenizer, save_toy

PLAIN: dict[str, Any] = {
    "dtype": "float32",
    "zero_stage": 0,
    "epochs": 1,
    "learning_rate": 3e-3,
    "lambda_": 0.5,
    "tokens_per_step": 256,
    "tokens_per_batch": 128,
    "max_length": 64,
    "checkpoint_every_steps": 2,
    "controls": [],
}


def toy_recipe(folder: Path, **targets: Any) -> Recipe:
    """A recipe with a random pivot; its sources are never opened."""
    pivot = folder / "pivot"
    if not pivot.exists():
        save_toy(pivot, "llama", byte_level_tokenizer(300), extra_rows=0)
    return parse_recipe(
        {
            "name": "toy",
            "runs": str(folder / "runs"),
            "pivot": {"model": str(pivot)},
            "sources": [{"name": "math", "model": "unused"}, {"name": "code", "model": "unused"}],
            "corpus": {"path": "unused"},
            "targets": {**PLAIN, **targets},
            "merged": {"method": "varm"},  # The default needs the SFT control.
        }
    )


def toy_artifacts(recipe: Recipe, names: tuple[str, ...], vocabulary: int = 280) -> list[Artifact]:
    """Targets whose fused sets lie on disk, two shards of train rows and one of validation rows each."""
    return [_artifact(recipe, name, vocabulary) for name in names]


def much_behind(artifact: Artifact) -> Artifact:
    """The artifact, made from one more that has 2 ** 40 others behind it, as a late round has the first ones."""
    behind = Artifact(run="nowhere", stage="targets", model="first")
    for number in range(1, 41):
        inputs = tuple(replace(behind, model=model) for model in ("one", "other"))
        behind = Artifact(run="nowhere", stage="targets", model="both", round=number, inputs=inputs)
    return replace(artifact, inputs=(*artifact.inputs, behind))


def _artifact(recipe: Recipe, name: str, vocabulary: int) -> Artifact:
    models = {"pivot": find_model(recipe.pivot.model)}
    is_control = name in CONTROL_ARMS
    pivot = Artifact(run=recipe.folder, stage="distributions", model="pivot")
    source = "math" if is_control else name
    fused = Artifact(run=recipe.folder, stage="fused", source=source, inputs=(pivot,), models=models)
    for artifact in (fused, pivot):
        records = []
        for number, split in enumerate(("train", "train", "validation")):
            # The pivot's distributions are of the same tokens: only the kept log-probabilities differ.
            table = toy_fused(16, vocabulary=vocabulary, seed=number)
            table = table.drop_columns(["chosen", "domain", "bits_per_byte"] if artifact is pivot else ["n_bytes"])
            records.append(write_shard(artifact.folder, f"{split}/{number:05d}.parquet", table, artifact.fingerprint))
        write_manifest(artifact, seconds=0, shards=records)
    settings = recipe.targets.model_dump(mode="json") | {"seed": recipe.seed}
    inputs, role = ((fused, pivot), "control") if is_control else ((fused,), "main")
    return Artifact(
        run=recipe.folder, stage="targets", role=role, model=name, settings=settings, inputs=inputs, models=models
    )  # fmt: skip
