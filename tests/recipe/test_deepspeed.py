"""A DeepSpeed file of one's own joins with the recipe, and what contradicts it is refused when the recipe is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from fusion_ray.errors import RecipeError
from fusion_ray.recipe import Recipe, parse_recipe
from fusion_ray.recipe.deepspeed import our_config


def recipe_with(**targets: Any) -> Recipe:
    plain = {"name": "x", "pivot": {"model": "p"}, "sources": [{"name": "math", "model": "m"}], "corpus": {"path": "c"}}
    return parse_recipe({**plain, "targets": targets})


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
