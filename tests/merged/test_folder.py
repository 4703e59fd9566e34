"""A whole merge in one process: files, equal bytes however it is cut, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from toys.checkpoints import moved, save_toy, toy_tensors

from fusion_ray.errors import CorruptArtifactError, MergeError, MissingArtifactError, NonFiniteError, RecipeError
from fusion_ray.merged.add import add_target
from fusion_ray.merged.execute import merge_to_folder, write_file
from fusion_ray.merged.folder import Card, config_dtype, copy_tokenizer, finish_folder
from fusion_ray.merged.plan import MergePlan, plan_merge
from fusion_ray.merged.variation import load_squares, plan_measuring
from fusion_ray.progress import Progress
from fusion_ray.recipe.merge_methods import METHODS
from fusion_ray.storage.checkpoints import open_checkpoint

PIVOT = toy_tensors()


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    made = {"pivot": save_toy(tmp_path / "pivot", PIVOT)}
    return made | {name: save_toy(tmp_path / name, moved(PIVOT, seed)) for seed, name in enumerate(("math", "code"), 1)}


def plan_of(
    folders: dict[str, str], method: str = "varm", settings: dict[str, Any] | None = None, **options: Any
) -> MergePlan:
    targets = {name: open_checkpoint(folder) for name, folder in folders.items() if name != "pivot"}
    parameters = METHODS[method](**(settings or {})).parameters(list(targets))
    return plan_merge(open_checkpoint(folders["pivot"]), targets, method=method, parameters=parameters, **options)


def load(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("granularity", ["model", "layer", "module", "matrix", "element"])
def test_shards_of_any_size_and_blocks_of_any_size_hold_equal_tensors(
    folders: dict[str, str], tmp_path: Path, granularity: str
) -> None:
    merged = {}
    for file_bytes, block_bytes in ((1 << 30, 1 << 30), (20_000, 1 << 12), (7_000, 1)):
        plan = plan_of(folders, "varm", {"granularity": granularity}, file_bytes=file_bytes, block_bytes=block_bytes)
        out = tmp_path / f"out{file_bytes}"
        merge_to_folder(plan, str(out))
        merged[file_bytes] = load(out)
        assert len(list(out.glob("*.safetensors"))) == len(plan.files)
    first, *others = merged.values()
    assert set(first) == set(PIVOT)
    for other in others:
        assert all(torch.equal(other[name], tensor) for name, tensor in first.items())


def test_files_are_balanced_by_bytes_and_hold_the_bound(folders: dict[str, str]) -> None:
    plan = plan_of(folders, file_bytes=10_000)
    sizes = [file.nbytes for file in plan.files]
    assert max(sizes) <= 10_000
    assert min(sizes) >= 0.7 * max(sizes)
    assert plan.files[0].name == f"model-00001-of-{len(sizes):05d}.safetensors"


def test_a_file_written_twice_has_the_same_bytes(folders: dict[str, str], tmp_path: Path) -> None:
    plan = plan_of(folders, file_bytes=20_000)
    for out in ("a", "b"):
        for file in reversed(plan.files) if out == "b" else plan.files:
            write_file(plan, file, str(tmp_path / out))
    for file in plan.files:
        assert (tmp_path / "a" / file.name).read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_merge_goes_on_where_it_was_and_does_not_write_whole_files_again(
    folders: dict[str, str], tmp_path: Path
) -> None:
    plan = plan_of(folders, file_bytes=20_000)
    out = tmp_path / "out"
    record = write_file(plan, plan.files[0], str(out))
    before = (out / record.file).stat().st_mtime_ns
    records = merge_to_folder(plan, str(out))
    assert (out / record.file).stat().st_mtime_ns == before
    assert len(records) == len(plan.files)
    assert not (out / "_merge").exists()


def test_a_file_of_another_plan_is_written_again(folders: dict[str, str], tmp_path: Path) -> None:
    other = plan_of(folders, "linear", file_bytes=20_000)
    plan = plan_of(folders, "varm", file_bytes=20_000)
    write_file(other, other.files[0], str(tmp_path / "out"))
    before = (tmp_path / "out" / plan.files[0].name).read_bytes()
    write_file(plan, plan.files[0], str(tmp_path / "out"))
    assert (tmp_path / "out" / plan.files[0].name).read_bytes() != before


def test_a_target_that_changed_on_disk_makes_another_plan(folders: dict[str, str], tmp_path: Path) -> None:
    before = plan_of(folders).fingerprint
    assert plan_of(folders).fingerprint == before
    save_toy(tmp_path / "math", moved(PIVOT, 9))
    assert plan_of(folders).fingerprint != before


def test_the_output_keeps_the_pivots_types_or_takes_the_one_asked_for(folders: dict[str, str], tmp_path: Path) -> None:
    for dtype, expected in (("pivot", torch.bfloat16), ("float32", torch.float32)):
        merge_to_folder(plan_of(folders, dtype=dtype), str(tmp_path / dtype))
        assert {tensor.dtype for tensor in load(tmp_path / dtype).values()} == {expected}


def test_a_finished_folder_has_what_users_of_the_hub_expect(folders: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    records = merge_to_folder(plan_of(folders), str(out))
    card = Card("toy", "varm", ["org/pivot", "org/math"], {"kind": "varm"}, {"merged": "1.23"})
    copy_tokenizer(folders["pivot"], str(out))
    finish_folder(str(out), folders["pivot"], card, records, config_dtype("BF16"))
    assert {file.name for file in out.iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors",
        "README.md", "weights.json", "merge_config.yaml", "statistics.json",
    }  # fmt: skip
    metadata = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert metadata["base_model"] == ["org/pivot", "org/math"]
    assert "merge" in metadata["tags"]
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    weights = json.loads((out / "weights.json").read_text())["tensors"]
    assert set(weights) == set(PIVOT)
    assert all(sum(found.values()) == pytest.approx(1) and set(found) == {"math", "code"} for found in weights.values())


@pytest.mark.parametrize("granularity", ["model", "layer", "matrix"])
def test_one_more_target_measures_only_itself_and_gives_the_bytes_of_a_whole_merge(
    folders: dict[str, str], tmp_path: Path, granularity: str
) -> None:
    plan = plan_of(folders, "varm", {"granularity": granularity})
    merge_to_folder(plan, str(tmp_path / "first"))
    more = folders | {"law": save_toy(tmp_path / "law", moved(PIVOT, 7))}
    whole = plan_of(more, "varm", {"granularity": granularity})
    known = load_squares(whole, str(tmp_path / "first"))
    assert {work.targets for work in plan_measuring(whole, known)} == {(3,)}
    add_target(str(tmp_path / "first"), "law", more["law"], str(tmp_path / "added"))
    merge_to_folder(whole, str(tmp_path / "whole"))
    for name in ("model.safetensors", "statistics.json"):
        assert (tmp_path / "added" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_target_that_changed_is_measured_again(folders: dict[str, str], tmp_path: Path) -> None:
    merge_to_folder(plan_of(folders), str(tmp_path / "out"))
    save_toy(tmp_path / "math", moved(PIVOT, 9))
    plan = plan_of(folders)
    known = load_squares(plan, str(tmp_path / "out"))
    assert {work.targets for work in plan_measuring(plan, known)} == {(1,)}


def test_a_target_cannot_be_added_to_another_method_or_twice(folders: dict[str, str], tmp_path: Path) -> None:
    merge_to_folder(plan_of(folders, "linear"), str(tmp_path / "linear"))
    with pytest.raises(MissingArtifactError, match="Only finished VaRM merges"):
        add_target(str(tmp_path / "linear"), "law", folders["math"], str(tmp_path / "added"))
    merge_to_folder(plan_of(folders), str(tmp_path / "varm"))
    with pytest.raises(RecipeError, match="named 'math' is in"):
        add_target(str(tmp_path / "varm"), "math", folders["math"], str(tmp_path / "added"))


def test_files_of_an_earlier_merge_do_not_stay(folders: dict[str, str], tmp_path: Path) -> None:
    merge_to_folder(plan_of(folders, file_bytes=20_000), str(tmp_path / "out"))
    merge_to_folder(plan_of(folders), str(tmp_path / "out"))
    assert [file.name for file in tmp_path.glob("out/*.safetensors*")] == ["model.safetensors"]


def test_zero_deltas_give_the_pivot_bit_for_bit(tmp_path: Path) -> None:
    folders = {name: save_toy(tmp_path / name, PIVOT) for name in ("pivot", "math", "code")}
    merge_to_folder(plan_of(folders), str(tmp_path / "out"))
    pivot = load(tmp_path / "pivot")
    assert all(torch.equal(tensor, pivot[name]) for name, tensor in load(tmp_path / "out").items())


def test_buffers_of_integers_are_kept_where_all_agree_and_refused_where_not(tmp_path: Path) -> None:
    ids = {"model.token_types": torch.arange(5)}
    folders = {name: save_toy(tmp_path / name, PIVOT | ids) for name in ("pivot", "math")}
    merge_to_folder(plan_of(folders), str(tmp_path / "out"))
    assert torch.equal(load(tmp_path / "out")["model.token_types"], torch.arange(5))
    save_toy(tmp_path / "math", PIVOT | {"model.token_types": torch.arange(5) + 1})
    with pytest.raises(MergeError, match=r"model\.token_types is of type I64 and differs"):
        merge_to_folder(plan_of(folders), str(tmp_path / "out2"))
    assert not list((tmp_path / "out2").glob("*"))


def test_a_tied_output_embedding_is_left_to_the_input_embedding(tmp_path: Path) -> None:
    tied = {"tie_word_embeddings": True}
    without = {name: tensor for name, tensor in PIVOT.items() if name != "lm_head.weight"}
    folders = {
        "pivot": save_toy(tmp_path / "pivot", without, config=tied),
        "math": save_toy(tmp_path / "math", moved(PIVOT, 1), config=tied),
    }
    merge_to_folder(plan_of(folders), str(tmp_path / "out"))
    assert set(load(tmp_path / "out")) == set(without)


def test_models_that_tie_and_models_that_do_not_are_refused_with_the_reason(tmp_path: Path) -> None:
    folders = {
        "pivot": save_toy(tmp_path / "pivot", PIVOT),
        "math": save_toy(tmp_path / "math", PIVOT, config={"tie_word_embeddings": True}),
    }
    with pytest.raises(MergeError, match=r"math lacks lm_head\.weight .*tie_word_embeddings is False in pivot"):
        plan_of(folders)


def test_old_rotary_buffers_of_one_model_do_not_stop_a_merge(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    folders = {"pivot": save_toy(tmp_path / "pivot", PIVOT), "math": save_toy(tmp_path / "math", PIVOT | extra)}
    assert len(plan_of(folders).files[0].jobs) == len(PIVOT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, r"math lacks model\.norm\.weight"),
        ({"model.extra.weight": torch.ones(2)}, r"math has model\.extra\.weight, which pivot lacks"),
        ({"model.norm.weight": torch.ones(7)}, r"model\.norm\.weight has different shapes: \[32\] in .*\[7\] in"),
        ({"lm_head.weight": torch.ones(48, 32)}, "vocabularies differ in size"),
        ({"model.norm.weight": torch.ones(32).long()}, r"model\.norm\.weight has types that do not mix"),
    ],
)
def test_a_target_of_another_shape_is_refused_by_tensor(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = {name: tensor for name, tensor in (PIVOT | change).items() if tensor is not None}
    folders = {"pivot": save_toy(tmp_path / "pivot", PIVOT), "math": save_toy(tmp_path / "math", tensors)}
    with pytest.raises(MergeError, match=message):
        plan_of(folders)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    folders = {
        "pivot": save_toy(tmp_path / "pivot", PIVOT),
        "math": save_toy(tmp_path / "math", PIVOT, config={"model_type": "qwen3"}),
    }
    with pytest.raises(MergeError, match=r"different architectures.*llama.*qwen3"):
        plan_of(folders)


def test_one_target_given_twice_is_refused(folders: dict[str, str]) -> None:
    Path(folders["math"]).with_name("link").symlink_to(folders["math"])
    for same in (folders["math"], folders["math"] + "/", str(Path(folders["math"]).with_name("link"))):
        with pytest.raises(MergeError, match="'math' and 'twin' are the same folder"):
            plan_of(folders | {"twin": same})


def test_a_target_with_nan_stops_the_merge_and_leaves_nothing(folders: dict[str, str], tmp_path: Path) -> None:
    broken = moved(PIVOT, 1)
    broken["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_toy(tmp_path / "math", broken)
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds nan at element 100"):
        merge_to_folder(plan_of(folders), str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*"))


def test_a_target_that_is_cut_short_after_planning_is_found_out(folders: dict[str, str], tmp_path: Path) -> None:
    plan = plan_of(folders)
    file = tmp_path / "math" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptArtifactError, match="cut short within tensor"):
        merge_to_folder(plan, str(tmp_path / "out"))


def test_targets_of_another_type_than_the_pivot_are_merged(tmp_path: Path) -> None:
    folders = {"pivot": save_toy(tmp_path / "pivot", PIVOT)}
    target = moved(PIVOT, 1)
    folders["math"] = save_toy(tmp_path / "math", target, torch.float32)
    merge_to_folder(plan_of(folders), str(tmp_path / "out"))
    assert torch.equal(load(tmp_path / "out")["lm_head.weight"], target["lm_head.weight"].bfloat16())


def test_a_merge_of_nothing_is_refused(folders: dict[str, str]) -> None:
    with pytest.raises(MergeError, match="no target"):
        plan_of({"pivot": folders["pivot"]})


def test_an_empty_tensor_is_merged_to_an_empty_tensor(tmp_path: Path) -> None:
    (tmp_path / "pivot").mkdir()
    folders = {name: save_toy(tmp_path / name, PIVOT | {"none": torch.ones(0, 3)}) for name in ("pivot", "math")}
    save_file({"x": torch.ones(1)}, tmp_path / "unrelated.safetensors")
    merge_to_folder(plan_of(folders), str(tmp_path / "out"))
    assert load(tmp_path / "out")["none"].shape == (0, 3)


@pytest.mark.parametrize(("method", "settings"), [("varm", {"granularity": "layer"}), ("dare_ties", {"density": 0.5})])
def test_any_number_of_threads_writes_the_same_bytes(
    folders: dict[str, str], tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    plan = plan_of(folders, method, settings, file_bytes=40_000, block_bytes=1 << 12)
    alone = merge_to_folder(plan, str(tmp_path / "alone"))
    assert merge_to_folder(plan, str(tmp_path / "together"), threads=8) == alone
    for file in plan.files:
        assert (tmp_path / "together" / file.name).read_bytes() == (tmp_path / "alone" / file.name).read_bytes()


def test_an_error_in_one_thread_leaves_no_file(folders: dict[str, str], tmp_path: Path) -> None:
    broken = moved(PIVOT, 1)
    broken["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("inf")
    save_toy(tmp_path / "math", broken)
    with pytest.raises(NonFiniteError, match=r"q_proj\.weight holds inf at element 0"):
        merge_to_folder(plan_of(folders), str(tmp_path / "out"), threads=4)
    assert not list((tmp_path / "out").glob("*"))


def test_targets_that_are_all_equal_to_the_pivot_give_the_pivot_by_every_method_of_a_recipe(tmp_path: Path) -> None:
    twins = ("pivot", "math", "code")
    folders = {name: save_toy(tmp_path / name, PIVOT, torch.float32) for name in twins}
    settings: dict[str, dict[str, Any]] = {"nearswap": {"t": 0.1}}
    for method in METHODS.keys() - {"nearswap", "arcee_fusion", "passthrough"}:
        merge_to_folder(plan_of(folders, method, settings.get(method)), str(tmp_path / method))
        merged = load(tmp_path / method)
        for name, tensor in PIVOT.items():
            torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-7, msg=f"{method}: {name}")


def test_progress_counts_the_files_that_are_written(folders: dict[str, str], tmp_path: Path) -> None:
    told: list[Progress] = []
    plan = plan_of(folders, file_bytes=20_000)
    merge_to_folder(plan, str(tmp_path / "out"), told.append)
    assert len(plan.files) > 1
    assert [progress.done for progress in told] == list(range(1, len(plan.files) + 1))
    assert {progress.total for progress in told} == {len(plan.files)}
    assert [progress.detail for progress in told] == [file.name for file in plan.files]
