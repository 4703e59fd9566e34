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


WHOLE = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 0.5,
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "steps_per_print": 10**9,
    "wall_clock_breakdown": False,
}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({}, {}),
        ({"zero_stage": 0}, {"zero_optimization": {"stage": 1}}),
        ({"zero_stage": 1}, {"zero_optimization": {"stage": 1}}),
        ({"zero_stage": 3}, {"zero_optimization": {"stage": 3}}),
        ({"dtype": "float32"}, {"bf16": {"enabled": False}}),
        (
            {"dtype": "float32", "zero_stage": 0},
            {"bf16": {"enabled": False}, "zero_optimization": {"stage": 0}, "gradient_clipping": 0.0},
        ),
        (
            {"offload": {"optimizer": True}},
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": False}}},
        ),
        (
            {"offload": {"parameters": True}, "zero_stage": 3},
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "pin_memory": False}}},
        ),
    ],
)
def test_deepspeed_gets_what_the_recipe_says(targets: dict[str, Any], expected: dict[str, Any]) -> None:
    assert recipe_with(clip=0.5, **targets).targets.deepspeed_config() == WHOLE | expected


def test_memory_is_pinned_where_it_is_asked_for() -> None:
    both = recipe_with(offload={"optimizer": True, "parameters": True}, zero_stage=3).targets
    zero = both.deepspeed_config(pin_memory=True)["zero_optimization"]
    assert zero["offload_optimizer"] == zero["offload_param"] == {"device": "cpu", "pin_memory": True}


@pytest.mark.parametrize(
    "targets",
    [
        {"dtype": "float32", "zero_stage": 0, "offload": {"optimizer": True}},
        *[{"zero_stage": stage, "offload": {"parameters": True}} for stage in (0, 1, 2)],
    ],
)
def test_what_no_stage_offloads_is_refused(targets: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"targets\.offload\.(optimizer|parameters) needs targets\.zero_stage"):
        recipe_with(**targets)


@pytest.mark.parametrize(
    "options",
    [
        *[{"fp16": {"enabled": value}} for value in (False, "auto", None)],
        *[{"fp16": {}}, {"train_batch_size": "auto"}, {"zero_optimization": {"offload_param": None}}, {}],
        *[{"bf16": {"enabled": True}}, {"gradient_accumulation_steps": 1}, {"zero_optimization": {"stage": 2}}],
    ],
)
def test_what_a_file_leaves_to_the_recipe_or_repeats_changes_nothing(options: dict[str, Any]) -> None:
    plain = recipe_with(clip=0.5).targets.deepspeed_config()
    joined = recipe_with(clip=0.5, deepspeed=options).targets.deepspeed_config()
    joined["zero_optimization"].pop("offload_param", None)
    assert joined == plain == WHOLE


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({"fp16": {"enabled": True}}, "targets.dtype; take"),
        ({"bf16": {"enabled": False}}, "targets.dtype and is True here; take"),
        ({"optimizer": {"type": "Adam"}}, "targets.learning_rate, betas and weight_decay; take"),
        ({"zero_optimization": {"stage": 3}}, "targets.zero_stage and is 2 here; take"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "targets.offload.optimizer; take"),
        ({"zero_allow_untested_optimizer": False}, "the trainer and is True here; take"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "the trainer and is 'fp32' here; take"),
    ],
)
def test_what_contradicts_the_recipe_names_who_says_it(options: dict[str, Any], by: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe_with(deepspeed=options)
    assert f"but it is set by {by}" in str(error.value)


@pytest.mark.parametrize(
    "options", [[], 5, {"zero_optimization": []}, {"zero_optimization": 3}, "no/such/file.json"]
)  # fmt: skip
def test_what_is_no_object_is_refused(options: Any) -> None:
    with pytest.raises(RecipeError, match=r"targets\.deepspeed: expected"):
        recipe_with(deepspeed=options)
