"""How a merge is planned and laid out: parameters, layers, files, vocabularies and folders, every bound by hand."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from fusion_ray.errors import CorruptArtifactError, MergeError, MissingArtifactError, RecipeError
from fusion_ray.merged import add, joint_vocabulary, mergekit_plan, plan, variation
from fusion_ray.merged.chat_templates import CHATML, find_chat_template, read_chat_template, set_chat_template
from fusion_ray.merged.execute import FileRecord, _by_name, find_record, finish_weights
from fusion_ray.merged.folder import Card, copy_tokenizer, finish_folder, render_card, write_json
from fusion_ray.merged.from_yaml import _in_order, find_folder
from fusion_ray.merged.joint_vocabulary import Row, _configured, _fallbacks, _Layout, _own_rows, _read_rows
from fusion_ray.merged.mergekit_config import MergekitConfig, Tokenizer, one_model, parse_config, read_config
from fusion_ray.merged.mergekit_parameters import Scope, evaluate, resolve_parameters
from fusion_ray.merged.plan import MergePlan, OutputFile, TensorJob, divide
from fusion_ray.merged.reading import StoredModels
from fusion_ray.merged.threads import over_tensors
from fusion_ray.storage.checkpoints import Checkpoint, StoredTensor, TensorReader, open_checkpoint


@pytest.mark.parametrize(
    ("setting", "t", "expected"),
    [
        ([], 0.5, None),
        ([7], 0.5, 7),
        ([0, 1, 3], 0.0, 0),
        ([0, 1, 3], 0.5, 1),
        ([0, 1, 3], 1.0, 3),
        ([0, 1, 3], 0.25, 0.5),
        ([0, 1, 3], 0.75, 2.0),
        (["1e1", 20], 0.5, 15.0),
        (["a", "b", "c"], 0.5, "b"),
        (["a", "b", "c"], 0.99, "b"),
        (["a", "b", "c"], 1.0, "c"),
        ([1, "b", True], 1.0, True),
        ([True, True, False], 0.5, True),
        ("text", 0.5, "text"),
        (None, 0.5, None),
        ({"filter": "mlp", "value": 4}, 0.0, 4),
        ({"filter": "attn", "value": 4}, 0.0, None),
        ([{"filter": "attn", "value": 4}, {"filter": None, "value": 5}], 0.0, 5),
        ([{"filter": "mlp", "value": None}, {"value": 6}], 0.0, None),
    ],
)
def test_a_setting_at_a_place_between_layers(setting: Any, t: float, expected: Any) -> None:
    assert evaluate(setting, "layers.0.mlp.weight", t) == expected


@pytest.mark.parametrize("condition", ["mlp", {"filter": "mlp"}, {"value": 1, "filter": "mlp", "other": 2}, {}])
def test_what_is_no_condition_is_refused(condition: Any) -> None:
    with pytest.raises(MergeError, match="is no condition"):
        evaluate([{"filter": "attn", "value": 0}, condition], "mlp", 0.0)
    assert evaluate([{"filter": "*", "value": 3}, condition], "", 0.0) == 3
    assert evaluate([{"filter": "x", "value": 3}], "", 0.0) is None


def test_parameters_come_from_the_model_then_the_slice_then_the_document_then_their_defaults() -> None:
    own = ({"weight": [{"filter": "mine", "value": 1}]}, {"weight": [{"filter": "other", "value": 2}]})
    scope = Scope(method="linear", shared=({}, {"weight": 5, "normalize": False}), by_model=own, t=0)
    assert resolve_parameters(scope, "w", ["mine", "mine"]) == {"weight": (1.0, 5.0), "normalize": False}
    bare = Scope(method="linear", shared=({},), by_model=own, t=0)
    with pytest.raises(MergeError, match="tensor w: model 2 has no 'weight'"):
        resolve_parameters(bare, "w", ["mine", "mine"])
    ties = Scope(method="ties", shared=({"weight": [0, 1], "normalize": "x"},), by_model=({}, {}), t=0.5)
    with pytest.raises(MergeError, match="ties: tensor w: normalize: "):
        resolve_parameters(ties, "w", ["a", "b"])
    fine = resolve_parameters(ties.model_copy(update={"shared": ({"weight": [0, 1]},)}), "w", ["a", "b"])
    assert (fine["weight"], fine["density"]) == ((0.5, 0.5), (1.0, 1.0))
    scaled = Scope(method="passthrough", shared=({},), by_model=({},), t=0)
    assert resolve_parameters(scaled, "w", ["w"]) == {"scale": (1.0,)}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("a", "a"),
        ({"model": "a"}, "a"),
        ({"model": {"path": "a"}}, "a"),
        ({"path": "a", "revision": "r"}, "a@r"),
        ({"model": {"path": "a", "revision": "r"}}, "a@r"),
        ({"path": "a", "revision": ""}, "a"),
        (None, None),
    ],
)
def test_a_model_has_one_name_however_it_is_written(given: Any, name: str | None) -> None:
    assert one_model(given) == name


TIES = {"merge_method": "ties", "base_model": "p", "models": [{"model": "a", "parameters": {"weight": 1}}]}
SLICED = {
    "merge_method": "ties", "base_model": None, "models": None,
    "slices": [{"base_model": "q", "sources": [{"model": name, "layer_range": [0, 1]} for name in "qa"]}],
}  # fmt: skip


def test_documents_are_checked_as_a_whole() -> None:
    assert parse_config(TIES).model_names() == ["p", "a"]
    assert parse_config(SLICED).model_names() == ["q", "a"]
    assert parse_config(TIES | {"parameters": {"int8_mask": True, "lambda": 0.5}, "dtype": "torch.float16"}).dtype == (
        "float16"
    )
    two = [*SLICED["slices"], {"sources": [{"model": "a", "layer_range": [0, 1]}]}]  # type: ignore[misc]
    for wrong, said in (
        (TIES | {"models": None}, "give either 'models' or 'slices'"),
        (TIES | {"base_model": None}, "'ties' needs a base_model"),
        (SLICED | {"slices": two}, "'ties' needs a base_model"),
        (TIES | {"models": [{"model": "a", "parameters": {"int8_mask": 1}}]}, "'int8_mask' of ties belongs under"),
        ([1], "merge config: expected a mapping with merge_method, got list"),
        (TIES | {"tokenizer": {"pad_to_multiple_of": 0}}, "tokenizer.pad_to_multiple_of: "),
        (TIES | {"merge_method": "tise"}, "merge config: merge_method: unknown merge method"),
    ):
        with pytest.raises(RecipeError, match=said):
            parse_config(wrong)
    parse_config(TIES | {"parameters": {}, "tokenizer": {"tokens": {"lora": {"source": "a"}}}})
    for layers, said in (([0, 0], "holds no layer"), ([-1, 2], "holds no layer"), ([3, 2], "holds no layer")):
        part = {"sources": [{"model": "a", "layer_range": layers}]}
        with pytest.raises(RecipeError, match=said):
            parse_config({"merge_method": "passthrough", "slices": [part]})
    uneven = {"sources": [{"model": "a", "layer_range": [0, 1]}, {"model": "b", "layer_range": [0, 2]}]}
    with pytest.raises(RecipeError, match=r"different numbers of layers: \[1, 2\]"):
        parse_config({"merge_method": "linear", "slices": [uneven]})


def test_a_file_may_hold_several_documents_and_says_which_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump_all([TIES | {"name": "x"}, None, TIES]))
    assert [document.name for document in read_config(path)] == ["x", None]
    path.write_text(yaml.safe_dump_all([TIES, {"merge_method": "no"}]))
    with pytest.raises(RecipeError, match=r"m\.yaml document 2: merge_method: unknown"):
        read_config(path)
    path.write_text(yaml.safe_dump({"merge_method": "no"}))
    with pytest.raises(RecipeError, match=r"m\.yaml: merge_method: unknown"):
        read_config(path)
    for text, said in (("", "no document in it"), ("a: [", "cannot be read")):
        path.write_text(text)
        with pytest.raises(RecipeError, match=said):
            read_config(path)


def named(name: str | None, *models: str) -> MergekitConfig:
    return parse_config({"merge_method": "linear", "name": name, "models": [{"model": model} for model in models]})


def test_documents_come_after_those_they_name_and_the_one_without_a_name_last() -> None:
    x, y, last = named("x", "y", "a"), named("y", "b"), named(None, "c")
    assert _in_order([last, x, y]) == [y, x, last]
    assert _in_order([y, x]) == [y, x] and _in_order([last]) == [last]
    for wrong, said in (
        ([last, last], "only one document may go without a 'name'"),
        ([x, y, y], "two documents are named 'y'"),
        ([x, named("y", "x")], r"the documents \['x', 'y'\] need each other"),
        ([named("x", "x")], r"the documents \['x'\] need each other"),
    ):
        with pytest.raises(RecipeError, match=said):
            _in_order(wrong)


def test_a_model_is_found_by_folder_address_or_revision(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find_folder(str(tmp_path)) == str(tmp_path) and find_folder(f"file://{tmp_path}/") == f"file://{tmp_path}"
    with pytest.raises(RecipeError, match=r"no config\.json there"):
        find_folder(f"file://{tmp_path}/nowhere")
    with pytest.raises(RecipeError, match="adapters"):
        find_folder("org/a+lora")
    with pytest.raises(RecipeError, match="model 'a/b/c': no such folder"):
        find_folder("a/b/c")


def tensor(name: str, *shape: int, dtype: str = "F32", uri: str = "/m/model.safetensors") -> StoredTensor:
    return StoredTensor(name, dtype, shape, uri, 0)


def job(name: str, *shape: int, dtype: str = "F32", method: str = "linear", **rest: Any) -> TensorJob:
    return TensorJob(name, shape, dtype, (tensor(name, *shape),), (0,), method, **rest)


@pytest.mark.parametrize(
    ("sizes", "file_bytes", "files"),
    [
        ([2, 2, 2], 24, [[0, 1, 2]]),
        ([2, 2, 2], 23, [[0, 2], [1]]),
        ([2, 2, 2], 15, [[0], [1], [2]]),
        ([1, 5, 2, 3], 24, [[0, 1], [2, 3]]),
        ([9, 1, 1], 8, [[0], [1], [2]]),
        ([9, 2, 2], 36, [[0], [1, 2]]),
        ([9, 2, 2], 35, [[0], [1, 2]]),
        ([3, 3, 3, 2, 2, 2], 20, [[0, 3], [1, 4], [2, 5]]),
        ([0], 8, [[0]]),
    ],
)
def test_tensors_are_put_into_as_few_files_as_hold_them(
    sizes: list[int], file_bytes: int, files: list[list[int]]
) -> None:
    found = divide([job(str(number), size) for number, size in enumerate(sizes)], file_bytes)
    assert [[int(one.name) for one in file.jobs] for file in found] == files
    names = [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert [file.name for file in found] == (names if len(files) > 1 else ["model.safetensors"])
    assert [file.nbytes for file in found] == [4 * sum(sizes[number] for number in file) for file in files]


def checkpoint(names: list[str], folder: str = "/m", **config: Any) -> Checkpoint:
    return Checkpoint(folder, {name: tensor(name, 2) for name in names}, config)


def test_tensors_that_take_part_are_those_the_model_uses() -> None:
    names = ["a", "x.rotary_emb.inv_freq", "h.0.attn.bias", "h.0.attn.masked_bias", "position_ids", "lm_head.weight"]
    assert list(plan.merged_names(checkpoint(names))) == ["a", "lm_head.weight"]
    tied = checkpoint([*names, "embed_out.weight", "x.lm_head.weight"], tie_word_embeddings=True)
    assert list(plan.merged_names(tied)) == ["a", "x.lm_head.weight"]
    assert [plan._few(list("abcde")[:n]) for n in (1, 3, 4, 5)] == ["a", "a, b, c", "a, b, c and 1 more",
                                                                    "a, b, c and 2 more"]  # fmt: skip
    one, other = checkpoint(list("abcde")), checkpoint(list("aefgh"))
    assert plan.common_tensors({"p": one, "t": one}) == list("abcde")
    for models, said in (
        ({"p": one, "t": other}, r"t lacks b, c, d\. Every model"),
        ({"p": checkpoint(["a"]), "t": one}, r"t has b, c, d and 1 more, which p lacks\. Every"),
        ({"p": one, "t": checkpoint(["a"], tie_word_embeddings=True)},
         r"t lacks b, c, d and 1 more \(tie_word_embeddings is False in p, True in t\)\. Every"),
    ):  # fmt: skip
        with pytest.raises(MergeError, match=said):
            plan.common_tensors(models)


def test_tensors_of_one_name_have_one_shape_and_types_that_mix() -> None:
    plan.check_inputs("w", (tensor("w", 2), tensor("w", 2, dtype="BF16")))
    plan.check_inputs("w", (tensor("w", 2, dtype="I64"), tensor("w", 2, dtype="I64")))
    for others, said in (
        ((tensor("w", 3, 4), tensor("w", 2, 4)), r"\[3, 4\] in .*; \[2, 4\] in .*\. The vocabularies differ in size"),
        ((tensor("w", 3, 4), tensor("w", 3, 5)), r"Merge models of one shape\."),
        ((tensor("w", 2), tensor("w", 2, dtype="I64")), "types that do not mix: F32 in .*; I64 in "),
        ((tensor("w", 2, dtype="I32"), tensor("w", 2, dtype="I64")), "types that do not mix"),
    ):
        with pytest.raises(MergeError, match=said):
            plan.check_inputs("w", others)


def test_the_written_type_is_the_one_asked_for_or_wide_enough() -> None:
    def written(*types: str, **settings: Any) -> str:
        inputs = [tensor("w", 2, dtype=dtype) for dtype in types]
        return mergekit_plan._written_type(parse_config(TIES | settings), inputs)

    assert [written("BF16", "BF16"), written("BF16", "F16"), written("BF16", "F64"), written("I64", "I64")] == [
        "BF16", "F32", "F64", "I64"
    ]  # fmt: skip
    assert written("BF16", dtype="float32") == written("BF16", dtype="float16", out_dtype="float32") == "F32"
    assert written("I64", dtype="float32") == "I64"


def test_what_changes_in_the_config_of_a_stack_of_slices() -> None:
    kinds = ["full", "sliding", "full"]
    donor = checkpoint(["a"], num_hidden_layers=3, n_layer=3, layer_types=kinds)
    parts = [{"sources": [{"model": "a", "layer_range": span}]} for span in ([0, 2], [1, 3])]
    stacked = parse_config({"merge_method": "passthrough", "slices": parts, "dtype": "bfloat16"})
    assert mergekit_plan._config_changes(stacked, donor) == {
        "dtype": "bfloat16", "torch_dtype": "bfloat16", "num_hidden_layers": 4, "n_layer": 4,
        "layer_types": ["full", "sliding", "sliding", "full"],
    }  # fmt: skip
    assert mergekit_plan._config_changes(parse_config(TIES), donor) == {}
    both = parse_config(TIES | {"dtype": "float16", "out_dtype": "float32"})
    assert mergekit_plan._config_changes(both, donor) == {"dtype": "float32", "torch_dtype": "float32"}


def layered(folder: str, count: int, **config: Any) -> Checkpoint:
    names = ["model.embed_tokens.weight", *(f"model.layers.{n}.{part}.weight" for n in range(count) for part in "xy")]
    return checkpoint([*names, "model.norm.weight", "lm_head.weight"], folder, **config)


def draft(document: dict[str, Any], **counts: int) -> mergekit_plan.Draft:
    opened = {name: layered(f"/{name}", count, num_hidden_layers=count) for name, count in counts.items()}
    config = parse_config(document)
    return mergekit_plan.plan_config(config, {name: opened[name] for name in config.model_names()})


def described(found: mergekit_plan.Draft) -> dict[str, tuple[list[str], tuple[int, ...], Any]]:
    jobs = [job for file in found.plan.files for job in file.jobs]
    return {job.name: ([one.name for one in job.inputs], job.models, job.parameters.get("weight")) for job in jobs}


def test_layers_of_slices_are_numbered_through_and_parameters_run_along_each_slice() -> None:
    parts = [
        {"sources": [{"model": "a", "layer_range": [0, 3]}, {"model": "b", "layer_range": [1, 4]}]},
        {"sources": [{"model": "a", "layer_range": [2, 3]}, {"model": "b", "layer_range": [0, 1]}],
         "parameters": {"weight": 9}},
    ]  # fmt: skip
    found = draft({"merge_method": "linear", "slices": parts, "parameters": {"weight": [0, 4]}}, a=3, b=4)
    assert found.plan.models == ("a", "b") and not found.plan.has_base and found.donor.folder == "/a"
    assert found.changes == {"num_hidden_layers": 4}

    def layer(first: int, second: int, weight: float, number: int) -> dict[str, Any]:
        return {
            f"model.layers.{number}.{part}.weight":
            ([f"model.layers.{first}.{part}.weight", f"model.layers.{second}.{part}.weight"], (0, 1), (weight, weight))
            for part in "xy"
        }  # fmt: skip

    expected = {
        name: ([name] * 2, (0, 1), (weight, weight))
        for name, weight in (("model.embed_tokens.weight", 0.0), ("model.norm.weight", 9.0), ("lm_head.weight", 9.0))
    }
    expected |= layer(0, 1, 0, 0) | layer(1, 2, 2, 1) | layer(2, 3, 4, 2) | layer(2, 0, 9, 3)
    assert described(found) == expected


def test_the_base_comes_first_and_has_no_parameters() -> None:
    models = [{"model": "a", "parameters": {"weight": 2}}, {"model": "b", "parameters": {"weight": 3}}]
    found = draft({"merge_method": "task_arithmetic", "base_model": "p", "models": models}, p=1, a=1, b=1)
    assert found.plan.models == ("p", "a", "b") and found.plan.has_base and found.donor.folder == "/p"
    assert {(models, weight) for _, models, weight in described(found).values()} == {((0, 1, 2), (2.0, 3.0))}
    alone = draft({"merge_method": "linear", "base_model": "a", "models": models}, a=1, b=1)
    assert {(models, weight) for _, models, weight in described(alone).values()} == {((0, 1), (2.0, 3.0))}
    named = {"merge_method": "slerp", "base_model": "b", "models": models, "parameters": {"t": 0.5}}
    slerp = draft(named | {"models": [{"model": "a"}, {"model": "b"}]}, a=1, b=1)
    assert (slerp.plan.models, {models for _, models, _ in described(slerp).values()}) == (("b", "a"), {(0, 1)})


def test_models_that_do_not_fit_together_are_refused() -> None:
    linear = {"merge_method": "linear", "models": [{"model": name, "parameters": {"weight": 1}} for name in "ab"]}
    with pytest.raises(MergeError, match=r"different numbers of layers: \{'a': 1, 'b': 2\}"):
        draft(linear, a=1, b=2)
    opened = {"a": checkpoint(["x", "y"], "/a"), "b": checkpoint(["x", "z"], "/b")}
    with pytest.raises(MergeError, match=r"a and b do not have the same tensors; y is in one only \(2 such tensors\)"):
        mergekit_plan.plan_config(parse_config(linear), opened)
    part = {"sources": [{"model": name, "layer_range": [0, 1]} for name in "ab"]}
    ties = {"merge_method": "ties", "base_model": "p", "slices": [part], "parameters": {"weight": 1}}
    with pytest.raises(MergeError, match="ties needs the base model p among the sources of every slice"):
        draft(ties, a=1, b=1, p=1)
    sliced = {"merge_method": "linear", "slices": [part], "parameters": {"weight": 1}}
    other = {"a": layered("/a", 1), "b": checkpoint(["model.layers.0.x.weight"], "/b")}
    with pytest.raises(MergeError, match=r"b has no tensor model\.embed_tokens\.weight, which another model has"):
        mergekit_plan.plan_config(parse_config(sliced), other)
    same = ["model.embed_tokens.weight", "model.layers.0.x.weight", "model.norm.weight", "lm_head.weight"]
    with pytest.raises(MergeError, match=r"b has no tensor model\.layers\.0\.y\.weight, which another model has"):
        mergekit_plan.plan_config(parse_config(sliced), other | {"b": checkpoint(same, "/b")})


class ThreeRows:
    """Reads tensors whose element number i is i, and notes which stretches are asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def read_into(self, of: StoredTensor, start: int, values: np.ndarray) -> None:
        """Fill the array with the numbers of its elements."""
        assert start + values.size <= of.size
        self.asked.append((start, values.size))
        values[...] = np.arange(start, start + values.size)


@pytest.mark.parametrize(
    ("rows", "asked"),
    [
        ([0, 1, 2], [(0, 6)]),
        ([2, 0, 1], [(4, 2), (0, 4)]),
        ([-1, -1, 1], [(2, 2)]),
        ([-1, 0, 1], [(0, 4)]),
        ([1, -1, 2, 3], [(2, 2), (4, 4)]),
        ([5], [(10, 2)]),
        ([-1], []),
    ],
)
def test_neighbouring_rows_are_read_at_once_and_missing_ones_are_zero(
    rows: list[int], asked: list[tuple[int, int]]
) -> None:
    reader: Any = ThreeRows()
    found_RC = _read_rows(reader, tensor("w", 9, 2), np.array(rows))
    assert found_RC.tolist() == [[2 * row, 2 * row + 1] if row >= 0 else [0, 0] for row in rows]
    assert reader.asked == asked


def test_where_a_token_has_no_embedding_it_gets_one_from_those_that_have_it() -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    own = {"x": {0: 0, 1: 1, 3: 2}, "y": {0: 5, 2: 6, 3: 7}, "z": {0: 0, 3: 3, 1: 9}}
    tokenizers = {name: SimpleNamespace(get_vocab=lambda: {"t": 8}) for name in own}
    none = Tokenizer()
    found, forced = _fallbacks(none, vocabulary, own, tokenizers, "x")
    assert (found, forced) == ({1: [Row("x", 1)], 2: [Row("y", 6)], 4: []}, set())
    found, _ = _fallbacks(none, vocabulary, own, tokenizers, "y")
    assert found == {1: [Row("x", 1), Row("z", 9)], 2: [Row("y", 6)], 4: []}
    tokens = {"a": {"force": True}, "b": {"source": "z", "force": False}, "e": {"source": {"kind": "zero"}}}
    found, forced = _fallbacks(Tokenizer(tokens=tokens), vocabulary, own, tokenizers, None)
    assert found == {0: [Row("x", 0), Row("y", 5), Row("z", 0)], 1: [Row("z", 9)], 2: [Row("y", 6)], 4: []}
    assert forced == {0}
    holders = [Row("x", 0), Row("y", 5)]
    for setting, expected in (
        ({}, holders), ({"source": "y"}, [Row("y", 5)]), ({"source": {"kind": "zero"}}, []),
        ({"source": {"kind": "model_token", "model": "y", "token": "t"}}, [Row("y", 8)]),
        ({"source": {"kind": "model_token", "model": "y", "token_id": 3}}, [Row("y", 3)]),
        ({"source": {"model": {"path": "x"}}, "force": True}, [Row("x", 0)]),
        ("x", "expected {source: ..., force: ...}, got 'x'"),
        ({"sauce": "x"}, "expected {source: "),
        ({"source": "q"}, "the model 'q' does not have this token"),
        ({"source": {"kind": "model_token", "model": "q", "token": "t"}}, "names no token of a model of this merge"),
        ({"source": {"kind": "model_token", "model": "y", "token": "u"}}, "names no token of a model of this merge"),
    ):  # fmt: skip
        if isinstance(expected, list):
            assert _configured("t", setting, holders, tokenizers) == expected
            continue
        with pytest.raises(RecipeError, match=r"tokenizer\.tokens\.t: ") as error:
            _configured("t", setting, holders, tokenizers)
        assert expected in str(error.value)
    lm = Checkpoint("/m", {"lm_head.weight": tensor("lm_head.weight", 3, 2)})
    assert _own_rows(vocabulary, SimpleNamespace(get_vocab=lambda: {"a": 2, "b": 3, "e": 0}), lm) == {0: 2, 4: 0}
    assert joint_vocabulary._rows(Checkpoint("/m", {})) == 0


@pytest.mark.parametrize("block_rows", [1, 2, 3, 7, 100])
def test_embeddings_are_laid_out_in_any_blocks(block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_vocabulary, "_BLOCK_ROWS", block_rows)
    own = {"x": {0: 2, 1: 0, 3: 1}, "y": {0: 4, 2: 5}}
    fallbacks = {1: [Row("x", 0)], 2: [Row("y", 5)], 3: [Row("x", 1), Row("y", 3)], 4: []}
    layout = _Layout(7, 5, own, fallbacks, {3})
    tensors = {name: tensor("w", 9, 2) for name in "xy"}
    reader: Any = ThreeRows()
    rows_RC = np.concatenate(list(layout._blocks("x", tensors, reader)))
    used = [[4, 5], [0, 1], [10, 11], [4, 5], [0, 0]]
    np.testing.assert_allclose(rows_RC, [*used, *[np.mean(used, axis=0)] * 2], rtol=1e-6)
    full = _Layout(5, 5, own, fallbacks, set())
    rows_RC = np.concatenate(list(full._blocks("y", tensors, reader)))
    assert rows_RC.tolist() == [[8, 9], [0, 1], [10, 11], [4, 5], [0, 0]]
    with pytest.raises(RecipeError, match="x: lacks an embedding that another model has"):
        list(layout._blocks("x", tensors | {"x": None}, reader))


@pytest.mark.parametrize(
    ("block_bytes", "starts"),
    [(1, [0, 1, 2, 3, 4]), (24, [0, 1, 2, 3, 4]), (48, [0, 2, 4]), (119, [0, 4]), (120, [0]), (1 << 20, [0])],
)
def test_a_tensor_is_read_in_as_many_whole_rows_as_the_bound_allows(block_bytes: int, starts: list[int]) -> None:
    reader: Any = ThreeRows()
    stored = StoredModels("w", (tensor("w", 5, 3), tensor("w", 5, 3)), reader, block_bytes)
    for _ in range(2):
        blocks = list(stored.blocks())
        assert [block.start for block in blocks] == starts
        joined_MRC = np.concatenate([block.values_MRC for block in blocks], axis=1)
        assert joined_MRC.tolist() == [np.arange(15.0).reshape(5, 3).tolist()] * 2
    assert len(reader.asked) == (2 if len(starts) == 1 else 4 * len(starts)), "one block is read once"
    empty = StoredModels("w", (tensor("w", 0, 3),), reader, 8)
    assert list(empty.blocks()) == [] and (empty.shape, empty.n_models) == ((0, 3), 1)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_work_on_tensors_comes_back_in_their_order(threads: int) -> None:
    jobs = [job(str(size), size) for size in (2, 9, 4)]
    found = over_tensors(jobs, lambda number, reader: (jobs[number].name, isinstance(reader, TensorReader)), threads)
    assert found == [("2", True), ("9", True), ("4", True)] and over_tensors([], lambda *_: 0, threads) == []


def varm(name: str, granularity: str = "layer", dtype: str = "F32") -> TensorJob:
    inputs = (tensor(name, 2, dtype=dtype), tensor(name, 2), tensor(name, 2))
    return TensorJob(name, (2,), dtype, inputs, (0, 1, 2), "varm", {"granularity": granularity})


def plan_of(*jobs: TensorJob) -> MergePlan:
    return MergePlan(("p", "a", "b"), True, tuple(OutputFile(f"{n}", (one,)) for n, one in enumerate(jobs)))


@pytest.mark.parametrize(
    ("jobs", "known", "targets"),
    [
        ([varm("x")], {}, (1, 2)),
        ([varm("x")], {"x": {"a": 1.0}}, (2,)),
        ([varm("x")], {"x": {"a": 1.0, "b": 2.0}}, None),
        ([varm("x"), varm("y")], {"x": {"a": 1.0, "b": 2.0}, "y": {"b": 1.0}}, (1,)),
        ([varm("x"), varm("i", dtype="I64")], {"x": {"a": 1.0, "b": 2.0}}, None),
        ([varm("x", "matrix")], {}, None),
        ([varm("x", "matrix")], {"x": {"b": 1.0}}, (1,)),
        ([varm("x", "element")], {"x": {"b": 1.0}}, None),
        ([job("x")], {"x": {"b": 1.0}}, None),
        ([varm("x", "matrix"), varm("y", "element")], {}, (1, 2)),
    ],
)
def test_a_first_pass_measures_what_is_not_known(
    jobs: list[TensorJob], known: dict[str, dict[str, float]], targets: tuple[int, ...] | None
) -> None:
    made = plan_of(*jobs)
    found = variation.plan_measuring(made, known)
    assert found == ([variation.Measuring(file, targets) for file in made.files] if targets else [])


def test_squares_are_joined_and_turned_into_weights() -> None:
    joined = variation.join_squares([{"x": {"a": 1.0}}, {"x": {"b": 3.0}, "y": {"a": 2.0}}, {"x": {"a": 9.0}}])
    assert joined == {"x": {"a": 9.0, "b": 3.0}, "y": {"a": 2.0}}
    made = plan_of(varm("x", "matrix"), varm("y", "matrix"))
    weighed = variation.resolve_weights(made, {"x": {"a": 1.0, "b": 3.0}})
    assert [one.jobs[0].weights for one in weighed.files] == [(0.25, 0.75), None]
    assert variation.resolve_weights(made, {}) is made
    with pytest.raises(MergeError, match=r"granularities \['element', 'layer'\] in one merge"):
        variation.resolve_weights(plan_of(varm("x"), varm("y", "element")), {"x": {"a": 1.0, "b": 1.0}, "y": {}})
    assert made.targets == ("a", "b") and MergePlan(("a",), False, ()).targets == ("a",)


def test_statistics_that_are_damaged_or_of_another_merge_are_not_taken(tmp_path: Path) -> None:
    assert variation.load_squares(plan_of(varm("x")), str(tmp_path)) == {}
    for text in ("{", "[]", "{}", '{"models": {}}'):
        (tmp_path / "statistics.json").write_text(text)
        assert variation.load_squares(plan_of(varm("x")), str(tmp_path)) == {}
        if text != "{":
            continue
        with pytest.raises(CorruptArtifactError, match="damaged"):
            add.add_target(str(tmp_path), "new", "x", str(tmp_path / "out"))
    kept = {"folders": {}, "dtype": "pivot", "granularity": "layer", "method": "m"}
    (tmp_path / "statistics.json").write_text(json.dumps(kept))
    with pytest.raises(RecipeError, match="was merged by 'm'; only VaRM merges"):
        add.add_target(str(tmp_path), "new", "x", str(tmp_path / "out"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match="there is a model already"):
        add.add_target(str(tmp_path), "new", "x", str(tmp_path))


def test_weights_go_by_the_names_of_all_models_or_of_the_last() -> None:
    assert _by_name(["p", "a", "b"], [1, 2, 3]) == {"p": 1, "a": 2, "b": 3}
    assert _by_name(["p", "a", "b"], [2, 3]) == {"a": 2, "b": 3} and _by_name(["p", "a"], [3]) == {"a": 3}


def test_a_folder_keeps_the_files_of_the_last_merge_and_an_index_where_there_are_several(tmp_path: Path) -> None:
    for name in ("one.safetensors", "two.safetensors", "old.safetensors", ".model.x.tmp", ".other.tmp", "model.tmp",
                 "model.safetensors.index.json", "notes.json"):  # fmt: skip
        (tmp_path / name).write_text("{}")
    (tmp_path / "_merge").mkdir()
    records = [FileRecord(f"{name}.safetensors", "p", 1, {name: 3, f"{name}2": 4}, {}) for name in ("one", "two")]
    finish_weights(records, str(tmp_path))
    kept = {".other.tmp", "model.tmp", "notes.json", "one.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == kept | {"two.safetensors", "model.safetensors.index.json"}
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text()) == {
        "metadata": {"total_size": 14},
        "weight_map": {"one": "one.safetensors", "one2": "one.safetensors", "two": "two.safetensors",
                       "two2": "two.safetensors"},
    }  # fmt: skip
    finish_weights(records[:1], str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_record_counts_only_for_its_own_plan_and_a_file_of_its_size(tmp_path: Path) -> None:
    made = plan_of()
    file = OutputFile("f.safetensors", ())
    record = {"file": "f.safetensors", "plan": made.fingerprint, "nbytes": 3, "tensors": {}, "weights": {}}
    note = tmp_path / "_merge" / "f.safetensors.json"
    assert find_record(made, file, str(tmp_path)) is None
    note.parent.mkdir()
    note.write_text(json.dumps(record))
    assert find_record(made, file, str(tmp_path)) is None, "its file is not there"
    (tmp_path / "f.safetensors").write_text("abc")
    assert find_record(made, file, str(tmp_path)) == FileRecord(**record)
    for text in (json.dumps(record | {"plan": "x"}), json.dumps(record | {"nbytes": 4}), "{", "{}"):
        note.write_text(text)
        assert find_record(made, file, str(tmp_path)) is None
    note.unlink()
    assert find_record(made, file, str(tmp_path)) is None


CARD = Card("toy", "varm", ["org/p", "org/a"], {"kind": "varm"})


def test_a_model_card_says_what_was_merged_and_how_well_it_does() -> None:
    text = (
        "---\nbase_model:\n- org/p\n- org/a\nbase_model_relation: merge\nlibrary_name: transformers\n"
        "pipeline_tag: text-generation\ntags:\n- merge\n- fusion_ray\n- knowledge-fusion\n- varm\n---\n\n# toy\n\n"
        "Merged with fusion_ray by the method `varm` from:\n\n- org/p\n- org/a\n\n"
        "`weights.json` holds the weight of every tensor and model.\n{}\n## Configuration\n\n```yaml\nkind: varm\n```\n"
    )
    assert render_card(CARD) == text.format("")
    scored = Card(*list(vars(CARD).values())[:4], {"merged": "1.23", "p": "1.5"})
    table = "\n## Held-out bits per byte\n\n| model | bits per byte |\n|---|---|\n| merged | 1.23 |\n| p | 1.5 |\n"
    assert render_card(scored) == text.format(table)


def test_a_merged_folder_has_the_donor_s_config_without_what_is_the_donor_s_own(tmp_path: Path) -> None:
    donor, out = tmp_path / "donor", tmp_path / "out"
    donor.mkdir()
    with pytest.raises(MissingArtifactError, match=r"no config\.json"):
        finish_folder(str(out), str(donor), CARD, [])
    (donor / "config.json").write_text('{"_name_or_path": "x", "quantization_config": {}, "a": 1, "b": 2}')
    (donor / "tokenizer.json").write_text("t")
    (donor / "other.bin").write_text("o")
    records = [FileRecord("f", "p", 1, {}, {"y": {"a": 1.0}}), FileRecord("g", "p", 1, {}, {"x": None})]
    finish_folder(str(out), str(donor), CARD, records, {"b": 3})
    copy_tokenizer(str(donor), str(out))
    assert {path.name for path in out.iterdir()} == {
        "config.json", "weights.json", "merge_config.yaml", "README.md", "tokenizer.json"
    }  # fmt: skip
    assert (out / "config.json").read_text() == '{\n  "a": 1,\n  "b": 3\n}\n'
    weights = {"method": "varm", "tensors": {"x": None, "y": {"a": 1.0}}}
    assert (out / "weights.json").read_text() == json.dumps(weights, indent=2) + "\n"
    assert (out / "merge_config.yaml").read_text() == "kind: varm\n"
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(str(out / "x.json"), {"a": float("nan")})


def test_a_chat_template_is_the_one_that_most_models_have(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file.replace("__", ".")).write_text(text)
        return str(tmp_path / name)

    several = [{"name": "tool", "template": "no"}, {"name": "default", "template": "{b}"}]
    own = folder("own", chat_template__jinja=" {a}\n", tokenizer_config__json='{"chat_template": "{c}"}')
    listed = folder("listed", tokenizer_config__json=json.dumps({"chat_template": several}))
    without = folder("without", tokenizer_config__json=json.dumps({"chat_template": several[:1]}))
    none, plain = folder("none"), folder("plain", tokenizer_config__json='{"chat_template": "{b}"}')
    assert [read_chat_template(each) for each in (own, listed, without, none, plain)] == [
        " {a}\n", "{b}", None, None, "{b}"
    ]  # fmt: skip
    assert find_chat_template("auto", [own, listed, none, plain]) == "{b}"
    assert find_chat_template("auto", [own, listed]) == "{a}", "of equals the first"
    assert (find_chat_template("chatml", []), find_chat_template("{x}", [])) == (CHATML, "{x}")
    for wanted, said in (("auto", "none of the models has a chat template"), ("x", "expected auto, chatml or")):
        with pytest.raises(RecipeError, match=said):
            find_chat_template(wanted, [none, without])
    settings = tmp_path / "plain" / "tokenizer_config.json"
    settings.write_text('{"chat_template": "{b}", "é": 1}')
    set_chat_template(plain, "{y}")
    set_chat_template(none, "{z}")
    assert (settings.read_text(), read_chat_template(plain)) == ('{\n  "é": 1\n}\n', "{y}")
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["chat_template.jinja"]


def test_embeddings_before_the_layers_follow_the_first_slice_whatever_they_are_called() -> None:
    names = ["transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.x.weight", "ln_f.weight"]
    member = mergekit_plan.Member("a", checkpoint(names))
    assert (member.count, member.others) == (1, ["transformer.wte.weight", "transformer.wpe.weight", "ln_f.weight"])
    assert member.layers == {0: {"transformer.h.{}.x.weight": "transformer.h.0.x.weight"}}
    assert mergekit_plan.Member("a", checkpoint(["x"])).count == 0
    twelve = mergekit_plan.Member("a", checkpoint(["layers.11.experts.2.w", "layers.3.w"]))
    assert (twelve.count, sorted(twelve.layers)) == (12, [3, 11])
    assert twelve.layers[11] == {"layers.{}.experts.2.w": "layers.11.experts.2.w"}


def test_one_folder_under_two_names_is_refused_and_two_folders_are_not(tmp_path: Path) -> None:
    plan.check_targets({"a": checkpoint(["x"], str(tmp_path)), "b": checkpoint(["x"], str(tmp_path / "b"))})
    with pytest.raises(MergeError, match="'a' and 'b' are the same folder"):
        plan.check_targets({"a": checkpoint(["x"], str(tmp_path)), "b": checkpoint(["x"], f"{tmp_path}/x/..")})
    with pytest.raises(MergeError, match="no target to merge"):
        plan.check_targets({})
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    opened = open_checkpoint(str(tmp_path))
    made = plan.plan_merge(opened, {"t": checkpoint(["w"], "/t")}, method="linear", parameters={"weight": (1.0,)})
    (only,) = made.files[0].jobs
    assert (made.models, only.models, only.has_base, only.dtype) == (("pivot", "t"), (1,), False, "F32")
    based = plan.plan_merge(
        opened, {"t": checkpoint(["w"], "/t")}, method="task_arithmetic", parameters={"weight": (1.0,)},
        dtype="bfloat16", base_name="base",
    )  # fmt: skip
    (only,) = based.files[0].jobs
    assert (based.models, only.models, only.has_base, only.dtype) == (("base", "t"), (0, 1), True, "BF16")
