"""mergekit's YAML: precedence of parameters, gradients, slices, several documents, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toys.checkpoints import moved, save_toy, toy_tensors

from fusion_ray.errors import MergeError, RecipeError
from fusion_ray.merged.from_yaml import find_folder, merge_from_yaml
from fusion_ray.merged.mergekit_config import parse_config
from fusion_ray.merged.mergekit_parameters import Scope, evaluate, resolve_parameters

PIVOT = toy_tensors(hidden=8, vocab=10)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    tensors = {"pivot": PIVOT, "a": moved(PIVOT, 1), "b": moved(PIVOT, 2)}
    return {name: save_toy(tmp_path / "models" / name, content) for name, content in tensors.items()}


def run(tmp_path: Path, *documents: dict[str, Any]) -> Path:
    config = tmp_path / "merge.yaml"
    config.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    merge_from_yaml(config, str(tmp_path / "out"))
    return tmp_path / "out"


def linear(*models: str, **rest: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": m, "parameters": {"weight": 1.0}} for m in models]} | rest


@pytest.mark.parametrize(
    ("setting", "name", "t", "expected"),
    [
        (0.5, "any", 0.3, 0.5),
        ("1e-5", "any", 0.3, 1e-5),
        ([0, 1], "any", 0.25, 0.25),
        ([0, 1, 0], "any", 0.75, 0.5),
        (["0", "1e1"], "any", 0.5, 5.0),
        ([True, False], "any", 0.9, True),
        ({"value": 3}, "any", 0, 3),
        ([{"filter": "mlp", "value": 1}, {"filter": "*", "value": 2}], "x.mlp.w", 0, 1),
        ([{"filter": "mlp", "value": 1}, {"filter": "*", "value": 2}], "x.attn.w", 0, 2),
        ([{"filter": "mlp", "value": 1}], "x.attn.w", 0, None),
        ([{"filter": "mlp", "value": [0, 4]}, {"value": 9}], "x.mlp.w", 0.5, 2.0),
    ],
)
def test_a_setting_has_the_value_mergekit_gives_it(setting: Any, name: str, t: float, expected: Any) -> None:
    assert evaluate(setting, name, t) == expected


def test_a_models_own_parameter_comes_before_the_slices_and_the_documents() -> None:
    scope = Scope(
        method="ties",
        shared=({"density": 0.5}, {"weight": 2.0, "density": 0.1, "normalize": False, "lambda": 0.7}),
        by_model=({"weight": 3.0}, {}),
        t=0,
    )
    found = resolve_parameters(scope, "model.norm.weight", ["model.norm.weight"] * 2)
    assert found["weight"] == (3.0, 2.0)
    assert found["density"] == (0.5, 0.5)
    assert (found["normalize"], found["lambda_"]) == (False, 0.7)


@pytest.mark.parametrize(
    ("method", "missing"), [("ties", "weight"), ("slerp", "t"), ("linear", "weight"), ("nearswap", "t")]
)
def test_a_parameter_without_a_default_is_asked_for(method: str, missing: str) -> None:
    with pytest.raises(MergeError, match=f"'{missing}'"):
        resolve_parameters(Scope(method=method, shared=({},), by_model=({}, {}), t=0), "w", ["w", "w"])


BASE = {"merge_method": "ties", "base_model": "p", "models": [{"model": "a", "parameters": {"weight": 1}}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "tise"}, "unknown merge method; known: .*ties"),
        ({"modules": {}}, "'modules' is not supported: merges of several modules"),
        ({"colour": "red"}, "unknown key .colour."),
        ({"parameters": {"densty": 0.1}}, "parameter 'densty' of ties is unknown; known here: .*density"),
        ({"models": [{"model": "a", "parameters": {"normalize": True}}]}, "'normalize' of ties belongs under the doc"),
        ({"base_model": None}, "'ties' needs a base_model"),
        ({"dtype": "int4"}, "dtype: expected one of float32"),
        ({"slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}]}]}, "either 'models' or 'slices'"),
        ({"models": [{"model": {"model": {"path": "a"}, "lora": "x"}}]}, "'lora' is not supported"),
        ({"tokenizer_source": "base", "tokenizer": {"source": "base"}}, "either 'tokenizer' or 'tokenizer_source'"),
        ({"models": None, "slices": [{"sources": [{"model": "a", "layer_range": [2, 2]}]}]}, "holds no layer"),
        (
            {"models": None, "slices": [{"residual_weight": 1, "sources": [{"model": "a", "layer_range": [0, 2]}]}]},
            "'residual_weight' is not supported",
        ),
    ],
)
def test_what_is_wrong_or_not_supported_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_config(BASE | change)


def test_layers_stack_and_the_config_counts_them(tmp_path: Path, models: dict[str, str]) -> None:
    parts = [
        {"sources": [{"model": models["a"], "layer_range": [0, 2]}]},
        {"sources": [{"model": models["b"], "layer_range": [1, 2]}]},
    ]
    out = run(tmp_path, {"merge_method": "passthrough", "slices": parts})
    merged, a, b = (load_file(Path(folder) / "model.safetensors") for folder in (out, models["a"], models["b"]))
    assert torch.equal(merged["model.layers.1.mlp.up_proj.weight"], a["model.layers.1.mlp.up_proj.weight"])
    assert torch.equal(merged["model.layers.2.mlp.up_proj.weight"], b["model.layers.1.mlp.up_proj.weight"])
    assert torch.equal(merged["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(merged["lm_head.weight"], b["lm_head.weight"])
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 3


def test_a_layer_that_a_model_does_not_have_is_refused(tmp_path: Path, models: dict[str, str]) -> None:
    with pytest.raises(MergeError, match="has 2 layers; layer 2 is asked for"):
        run(
            tmp_path,
            {"merge_method": "passthrough", "slices": [{"sources": [{"model": models["a"], "layer_range": [0, 3]}]}]},
        )


def test_a_later_document_merges_the_result_of_an_earlier_one(tmp_path: Path, models: dict[str, str]) -> None:
    final = linear("both", models["pivot"])
    out = run(tmp_path, final, linear(models["a"], models["b"], name="both"))
    both = load_file(out / "intermediate" / "both" / "model.safetensors")["lm_head.weight"].float()
    pivot = load_file(Path(models["pivot"]) / "model.safetensors")["lm_head.weight"].float()
    merged = load_file(out / "model.safetensors")["lm_head.weight"]
    assert torch.equal(merged, ((both + pivot) / 2).bfloat16())


def test_documents_that_need_each_other_are_refused(tmp_path: Path, models: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="need each other in a circle"):
        run(tmp_path, linear("y", models["a"], name="x"), linear("x", models["a"], name="y"))


def test_varm_runs_from_yaml_too(tmp_path: Path, models: dict[str, str]) -> None:
    entries = [{"model": models["a"]}, {"model": models["b"]}]
    settings = {"granularity": "layer"}
    out = run(
        tmp_path, {"merge_method": "varm", "base_model": models["pivot"], "models": entries, "parameters": settings}
    )
    weights = json.loads((out / "weights.json").read_text())["tensors"]
    assert weights["model.layers.0.mlp.up_proj.weight"] == weights["model.layers.0.self_attn.q_proj.weight"]
    assert weights["model.layers.0.mlp.up_proj.weight"] != weights["model.layers.1.mlp.up_proj.weight"]


def test_slerp_begins_at_the_model_that_the_config_names_as_base(tmp_path: Path, models: dict[str, str]) -> None:
    entries = [{"model": models[name]} for name in ("a", "b")]
    document = {"merge_method": "slerp", "base_model": models["b"], "models": entries, "parameters": {"t": 0.0}}
    merged, b = (load_file(Path(place) / "model.safetensors") for place in (run(tmp_path, document), models["b"]))
    assert all(torch.equal(tensor, b[name]) for name, tensor in merged.items())


def test_a_scale_may_stand_beside_the_model_that_passes_through(tmp_path: Path, models: dict[str, str]) -> None:
    scaled = {"model": models["a"], "parameters": {"scale": [{"filter": "mlp", "value": 0.5}]}}
    out = run(tmp_path, {"merge_method": "passthrough", "models": [scaled]})
    merged, a = (load_file(Path(place) / "model.safetensors") for place in (out, models["a"]))
    for name, tensor in merged.items():
        assert torch.equal(tensor, a[name] * (0.5 if "mlp" in name else 1.0)), name


def test_one_model_twice_is_refused_by_one_name_or_two(tmp_path: Path, models: dict[str, str]) -> None:
    with pytest.raises(MergeError, match=r"names the model .*/a twice"):
        run(tmp_path, linear(models["a"], models["a"]))
    with pytest.raises(MergeError, match=r"'.*/a' and '.*/a/' are the same folder"):
        run(tmp_path, linear(models["a"], models["a"] + "/"))


def test_a_folder_that_holds_a_model_is_not_written_over(tmp_path: Path, models: dict[str, str]) -> None:
    out = run(tmp_path, linear(models["a"], models["b"]))
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(RecipeError, match="there is a model already"):
        run(tmp_path, linear(models["a"], models["pivot"]))
    assert (out / "model.safetensors").read_bytes() == before


def test_a_chat_template_can_be_chosen(tmp_path: Path, models: dict[str, str]) -> None:
    out = run(tmp_path, linear(models["a"], models["b"], chat_template="chatml"))
    assert "<|im_start|>" in (out / "chat_template.jinja").read_text()
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
    with pytest.raises(RecipeError, match="chat_template 'alpaca': expected auto, chatml"):
        merge_from_yaml(_config(tmp_path, linear(models["a"], chat_template="alpaca")), str(tmp_path / "out2"))


def _config(tmp_path: Path, document: dict[str, Any]) -> Path:
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_revision_is_found_in_a_hub_cache_folder_and_refused_in_a_plain_one(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("abc123\n")
    for revision in ("abc123", "main"):
        assert find_folder(f"{tmp_path}/models--org--name@{revision}") == str(snapshot)
    with pytest.raises(RecipeError, match="plain folder and has no revision 'v1'"):
        find_folder(f"{snapshot}@v1")
