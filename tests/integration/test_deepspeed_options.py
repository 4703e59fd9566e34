"""A DeepSpeed file of one's own joins with the recipe, and what contradicts it is refused when the recipe is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.models import byte_level_tokenizer, save_toy
from toys.training import Shelf, rows, same, settings, weights

from fusion_ray.errors import RecipeError
from fusion_ray.recipe import Recipe, parse_recipe
from fusion_ray.recipe.deepspeed import OFFLOAD_KEYS, ZERO_KEYS, our_config
from fusion_ray.targets.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def recipe_with(**targets: Any) -> Recipe:
    plain = {"name": "x", "pivot": {"model": "p"}, "sources": [{"name": "math", "model": "m"}], "corpus": {"path": "c"}}
    return parse_recipe({**plain, "targets": targets})


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float(torch.sum((one[name] - other[name]) ** 2)) for name in one) ** 0.5


@pytest.fixture(scope="module")
def pivot(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("pivot"), "qwen2", byte_level_tokenizer(300), extra_rows=0)


def test_a_file_adds_to_what_the_recipe_says_and_auto_leaves_it_alone(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    theirs = {
        "train_batch_size": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False, "loss_scale": 0},
        "steps_per_print": 10,
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 1000, "stage3_prefetch_bucket_size": "auto"},
    }
    file.write_text(json.dumps(theirs))
    recipe = recipe_with(deepspeed=str(file), zero_stage=3)
    joined = recipe.targets.deepspeed_config()
    assert joined == our_config(stage=3, bfloat16=True, clip=1.0) | {
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 1000},
        "steps_per_print": 10,
    }
    again = parse_recipe(json.loads(recipe.model_dump_json()))
    assert again == recipe, "the resolved recipe holds the file's content, and needs the file no more"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"zero_optimization": {"stage": 2, "reduce_bucket": 1}}, r"unknown ZeRO key 'reduce_bucket' \(did you mean"),
        ({"zero_optimization": {"offload_param": {"devise": "cpu"}}}, r"ZeRO key offload_param\. 'devise'"),
        ({"zero_optimisation": {}}, r"unknown key 'zero_optimisation' \(did you mean 'zero_optimization'\?\)"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage is 3, but it is set by targets\.zero_stage"),
        ({"gradient_clipping": 0.5}, r"gradient_clipping is 0\.5, but it is set by targets\.clip and is 1\.0 here"),
        ({"optimizer": {"type": "Lamb"}}, r"optimizer\.type is 'Lamb', but it is set by targets\.learning_rate"),
        ({"fp16": {"enabled": True}}, r"fp16\.enabled is True, but it is set by targets\.dtype"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, r"it is set by targets\.offload\.optimizer"),
        ({"zero_force_ds_cpu_optimizer": True}, r"it is set by the trainer and is False here"),
        ({"zero_optimization": 2}, "expected an object"),
        ("nowhere.json", "expected a JSON file"),
    ],
)
def test_a_wrong_or_contradicting_key_is_named(options: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_with(deepspeed=options)


def test_offloading_needs_the_stage_that_can() -> None:
    with pytest.raises(RecipeError, match=r"offload\.optimizer needs targets\.zero_stage"):
        recipe_with(offload={"optimizer": True}, zero_stage=0, dtype="float32")
    with pytest.raises(RecipeError, match=r"offload\.parameters needs targets\.zero_stage: 3"):
        recipe_with(offload={"parameters": True}, zero_stage=2)


def test_every_key_that_passes_is_one_that_the_installed_deepspeed_knows() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert known >= ZERO_KEYS
    offload = {*DeepSpeedZeroOffloadParamConfig.model_fields, *DeepSpeedZeroOffloadOptimizerConfig.model_fields}
    assert offload >= OFFLOAD_KEYS


@pytest.mark.parametrize("stage, parameters", [(1, False), (2, False), (3, False), (3, True)])
def test_offloading_changes_where_state_lies_and_not_the_weights(
    pivot: str, tmp_path: Path, stage: int, parameters: bool
) -> None:
    plain = Trainer(pivot, settings(epochs=1, zero_stage=stage), seed=0)
    before = weights(plain)
    plain.fit(rows())
    how = settings(epochs=1, zero_stage=stage, offload={"optimizer": True, "parameters": parameters})
    offloaded = Trainer(pivot, how, seed=0)
    offloaded.fit(rows(), save=Shelf(tmp_path))
    # Over all weights: a key's bias moves by rounding alone, as attention does not depend on it.
    assert distance(weights(offloaded), weights(plain)) < 1e-5 * distance(before, weights(plain))
    resumed = Trainer(pivot, how, seed=0)
    resumed.fit(rows(), resume_from=tmp_path / "2")
    assert same(weights(offloaded), weights(resumed))


def test_a_file_s_keys_reach_deepspeed(pivot: str) -> None:
    options = {"zero_optimization": {"sub_group_size": 5000, "stage3_param_persistence_threshold": 0}}
    trainer = Trainer(pivot, settings(epochs=1, zero_stage=3, deepspeed=options), seed=0)
    plain = Trainer(pivot, settings(epochs=1, zero_stage=3), seed=0)
    assert trainer.engine.core.zero_sub_group_size() == 5000
    assert trainer.fit(rows())[-1].loss == pytest.approx(plain.fit(rows())[-1].loss, rel=1e-5)
