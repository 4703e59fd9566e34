"""Which artifacts a recipe asks for, and which of them a changed setting makes stale."""

import json
from pathlib import Path
from typing import Any

import pytest
from toys.models import byte_level_tokenizer, save_toy

from fusion_ray.errors import RecipeError
from fusion_ray.pipeline.graph import build_graph
from fusion_ray.pipeline.status import list_statuses
from fusion_ray.recipe import Recipe, parse_recipe
from fusion_ray.storage.artifacts import Artifact, write_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pivot and two sources of one tokenizer, and twenty chats."""
    folder = tmp_path_factory.mktemp("models")
    for name, architecture in (("pivot", "llama"), ("math", "qwen2"), ("code", "gpt_neox")):
        save_toy(folder / name, architecture, byte_level_tokenizer())
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat | {"id": n}) + "\n" for n in range(20)))
    return folder


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    plain = {
        "name": "x",
        "runs": str(folder / "runs"),
        "pivot": {"model": str(folder / "pivot")},
        "sources": [{"name": name, "model": str(folder / name)} for name in ("math", "code")],
        "corpus": {"path": str(folder / "chats.jsonl")},
    }
    return parse_recipe(plain | sections)


def graph(folder: Path, **sections: Any) -> dict[str, Artifact]:
    return {str(artifact): artifact for artifact in build_graph(recipe_of(folder, **sections))}


def changed(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The artifacts of one recipe that another recipe would make anew."""
    old, new = graph(folder, **before), graph(folder, **after)
    return {name for name in old if name in new and old[name].fingerprint != new[name].fingerprint}


def test_artifacts_come_in_the_order_in_which_they_are_made(folder: Path) -> None:
    found = list(graph(folder))
    assert found == [
        "corpus", "distributions/pivot", "distributions/math", "distributions/code", "fused/math", "fused/code",
        "targets/sft", "distributions/sft", "targets/math", "targets/code", "merged", "report",
    ]  # fmt: skip
    for sections in ({}, {"answers": {}}, {"targets": {"rounds": 3}}, {"fused": {"mode": "multi"}, "answers": {}}):
        made = build_graph(recipe_of(folder, **sections))
        for place, artifact in enumerate(made):
            assert all(any(given is earlier for earlier in made[:place]) for given in artifact.inputs), artifact


def test_answers_are_scored_by_their_author_and_the_pivot_and_teach_beside_the_corpus(folder: Path) -> None:
    found = graph(folder, answers={})
    assert {"answers/math", "distributions/answers/math/pivot", "distributions/answers/math/math"} <= set(found)
    assert "distributions/answers/math/code" not in found
    assert {str(made) for made in found["targets/math"].inputs} >= {"fused/math", "fused/answers/math"}
    assert "fused/answers/code" not in {str(made) for made in found["targets/math"].inputs}


def test_rounds_start_from_what_the_round_before_was_merged_into(folder: Path) -> None:
    found = graph(folder, targets={"rounds": 2})
    assert {str(made) for made in found["targets/round-1/math"].inputs} == {
        "fused/math", "targets/sft", "distributions/sft",
    }  # fmt: skip
    assert {str(made) for made in found["targets/math"].inputs} == {
        "fused/math", "merged/round-1", "distributions/round-1",
    }  # fmt: skip
    assert found["merged/round-1"].settings["dtype"] == "float32"
    assert found["merged/round-1"].folder.endswith("4_targets/round-1/merged")
    assert (found["targets/math"].settings["round"], found["targets/math"].settings["rounds"]) == (2, 2)
    assert "round" not in graph(folder)["targets/math"].settings


def test_targets_start_from_the_pivot_where_the_recipe_or_a_missing_control_says_so(folder: Path) -> None:
    for targets in ({"start": "pivot"}, {"controls": [], "start": "pivot"}):
        found = graph(folder, targets=targets, merged={"method": "varm"})
        assert {str(made) for made in found["targets/math"].inputs} == {"fused/math"}
        assert "distributions/sft" not in found
    assert "targets/sft" not in graph(folder, targets={"controls": [], "start": "pivot"}, merged={"method": "varm"})


def test_deltas_are_taken_from_the_sft_control_or_from_the_pivot(folder: Path) -> None:
    deltas = {base: graph(folder, merged={"base": base})["merged"].inputs for base in ("sft", "pivot")}
    assert [str(made) for made in deltas["sft"]] == ["targets/math", "targets/code", "targets/sft"]
    assert [str(made) for made in deltas["pivot"]] == ["targets/math", "targets/code"]


TRAINED = {"targets/sft", "distributions/sft", "targets/math", "targets/code", "merged", "report"}
FUSED = {"fused/math", "fused/code"}
SCORED = {"distributions/pivot", "distributions/math", "distributions/code"}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"report": {"bootstrap": 177}}, {"report"}),
        ({"merged": {"dtype": "float16"}}, {"merged", "report"}),
        ({"targets": {"learning_rate": 1e-4}}, TRAINED),
        ({"targets": {"epochs": 2}}, TRAINED),
        ({"targets": {"temperature": 2.0}}, TRAINED - {"targets/sft", "distributions/sft"}),
        ({"targets": {"lambda_": 0.123}}, TRAINED - {"targets/sft", "distributions/sft"}),
        ({"fused": {"top_k": 7}}, FUSED | TRAINED),
        ({"distributions": {"max_length": 99}}, SCORED | FUSED | TRAINED),
        ({"corpus": {"heldout": 0.33}}, {"corpus"} | SCORED | FUSED | TRAINED),
        ({"seed": 1}, {"corpus"} | SCORED | FUSED | TRAINED),
        ({"targets": {"cpus_per_worker": 3, "retries": 9, "checkpoint_every_steps": 7}}, set()),
        ({"distributions": {"actors": {"max": 9}, "cpus_per_actor": 2}, "fused": {"cpus_per_task": 2}}, set()),
        ({"runs": "elsewhere"}, set()),
    ],
)
def test_a_setting_makes_stale_what_depends_on_it_and_nothing_else(
    folder: Path, sections: dict[str, Any], expected: set[str]
) -> None:
    plain: dict[str, Any] = {"corpus": {"path": str(folder / "chats.jsonl")}}
    if "corpus" in sections:
        sections = {"corpus": plain["corpus"] | sections["corpus"]}
    assert changed(folder, {}, sections) == expected


def test_longer_is_no_arm_with_teachers_and_shuffled_is_one(folder: Path) -> None:
    arms = {"controls": ["sft", "longer", "shuffled", "self"]}
    assert changed(folder, {"targets": arms}, {"targets": arms | {"temperature": 2.0}}) == {
        "targets/shuffled", "targets/self", "targets/math", "targets/code", "merged", "report",
    }  # fmt: skip


def test_another_chat_or_another_model_makes_all_that_reads_it_stale(folder: Path, tmp_path: Path) -> None:
    more = tmp_path / "chats.jsonl"
    more.write_text((folder / "chats.jsonl").read_text() + '{"id": 99, "text": "More."}\n')
    everything = {"corpus"} | SCORED | FUSED | TRAINED
    assert changed(folder, {}, {"corpus": {"path": str(more)}}) == everything
    same = tmp_path / "same" / "chats.jsonl"
    same.parent.mkdir()
    same.write_text((folder / "chats.jsonl").read_text())
    assert changed(folder, {}, {"corpus": {"path": str(same)}}) == set()
    other = save_toy(tmp_path / "other", "llama", byte_level_tokenizer())
    sources = [{"name": "math", "model": str(folder / "math")}, {"name": "code", "model": other}]
    assert changed(folder, {}, {"sources": sources}) == {
        "distributions/code", "fused/code", "targets/code", "merged", "report",
    }  # fmt: skip


def test_files_of_benchmarks_count_by_content_and_caches_do_not(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks" / "__pycache__").mkdir(parents=True)
    (tmp_path / "tasks" / "own.yaml").write_text("a")
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    task = {"kind": "gold_answer", "name": "gold", "path": str(data), "few_shot_path": str(data)}
    evaluate = {"tasks": [task, "own"], "folder": str(tmp_path / "tasks")}
    first = graph(folder, evaluate=evaluate)["report"]
    assert set(first.contents) == {
        "evaluate.tasks.gold", "evaluate.tasks.gold.few_shot", "evaluate.folder/own.yaml",
    }  # fmt: skip
    (tmp_path / "tasks" / "__pycache__" / "own.pyc").write_text("b")
    assert graph(folder, evaluate=evaluate)["report"].fingerprint == first.fingerprint
    (tmp_path / "tasks" / "own.yaml").write_text("c")
    assert graph(folder, evaluate=evaluate)["report"].fingerprint != first.fingerprint


def test_what_is_missing_is_refused_or_blocks(folder: Path) -> None:
    gone = recipe_of(folder, corpus={"path": str(folder / "nowhere.jsonl")})
    with pytest.raises(RecipeError, match="nowhere"):
        build_graph(gone)
    states = {str(status.artifact): status for status in list_statuses(gone)}
    assert states["corpus"].state == "blocked" and "nowhere" in states["corpus"].why
    assert states["fused/math"].state == "to do"


def test_an_artifact_is_done_until_what_it_is_made_from_changes(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, runs=str(tmp_path))
    first, second = build_graph(recipe)[:2]
    write_manifest(first, seconds=1.0)
    states = {str(status.artifact): status.state for status in list_statuses(recipe)}
    assert (states["corpus"], states[str(second)]) == ("done", "to do")
    other = recipe_of(folder, runs=str(tmp_path), seed=5)
    (status, *_) = list_statuses(other)
    assert (status.state, status.why) == ("stale", "seed was 0, is 5")
    Path(first.folder, "MANIFEST.json").write_text("{")
    (status, *_) = list_statuses(recipe)
    assert status.state == "stale" and "not a manifest" in status.why


def test_a_model_s_own_engine_and_template_go_before_those_of_all(folder: Path) -> None:
    math = {"name": "math", "model": str(folder / "math")}
    code = {"name": "code", "model": str(folder / "code")}
    own = code | {"engine": {"kind": "openai", "base_url": "http://one/v1"}, "template": "chatml"}
    found = graph(folder, sources=[math, own])
    assert found["distributions/code"].settings["engine"]["kind"] == "openai"
    assert found["distributions/math"].settings["engine"]["kind"] != "openai"
    assert found["distributions/code"].settings["template"] == "chatml"
    assert found["distributions/math"].settings["template"] == "native"
    assert changed(folder, {"sources": [math, code]}, {"sources": [math, own]}) == {
        "distributions/code", "fused/code", "targets/code", "merged", "report",
    }  # fmt: skip


def test_who_reads_by_the_pivot_s_template_depends_on_the_pivot_s_files(folder: Path) -> None:
    found = graph(folder, distributions={"template": "pivot"})
    assert set(found["distributions/math"].models) == {"model", "pivot"}
    assert set(graph(folder)["distributions/math"].models) == {"model"}


def test_one_fused_set_of_all_sources_learns_from_the_answers_of_all(folder: Path) -> None:
    found = graph(folder, fused={"mode": "multi"}, answers={})
    assert {str(made) for made in found["targets/multi"].inputs} >= {
        "fused/multi", "fused/answers/math", "fused/answers/code",
    }  # fmt: skip
    assert list(found["fused/multi"].models) == ["pivot", "math", "code"]
    assert list(found["fused/answers/code"].models) == ["pivot", "math", "code"]


def test_control_arms_learn_from_the_rows_of_the_first_fused_set(folder: Path) -> None:
    found = graph(folder, targets={"controls": ["sft", "shuffled"]})
    assert [str(made) for made in found["targets/sft"].inputs] == ["fused/math", "distributions/pivot"]
    assert str(found["targets/shuffled"].inputs[0]) == "fused/math"


def test_the_anchor_of_a_later_round_is_what_the_merged_model_says(folder: Path) -> None:
    found = graph(folder, targets={"rounds": 2})
    assert (found["distributions/sft"].model, found["distributions/round-1"].model) == ("sft", "merged")


def test_files_of_a_corpus_are_named_within_its_folder_and_one_file_is_just_the_chats(
    folder: Path, tmp_path: Path
) -> None:
    assert set(graph(folder)["corpus"].contents) == {"chats"}
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text((folder / "chats.jsonl").read_text())
    assert set(graph(folder, corpus={"path": str(tmp_path)})["corpus"].contents) == {"a.jsonl", "b.jsonl"}


def test_of_several_missing_files_and_models_the_first_is_named_and_the_plan_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    judge = {"base_url": "http://one/v1", "model": "large", "questions": str(tmp_path / "first.jsonl")}
    task = {"kind": "gold_answer", "name": "gold", "path": str(tmp_path / "second.jsonl")}
    recipe = recipe_of(folder, judge=judge, evaluate={"tasks": [task]})
    with pytest.raises(RecipeError, match=r"judge\.questions: no file .*first\.jsonl"):
        build_graph(recipe)
    (*_, report) = list_statuses(recipe)
    assert report.state == "blocked" and report.why.startswith("judge.questions: no file")
    gone = recipe_of(folder, pivot={"model": "./no/pivot"}, sources=[{"name": "math", "model": "./no/math"}])
    why = {str(status.artifact): status.why for status in list_statuses(gone)}
    assert "./no/pivot" in why["report"] and "./no/math" in why["distributions/math"]


def test_files_in_folders_within_the_folder_of_tasks_count(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks" / "inner").mkdir(parents=True)
    (tmp_path / "tasks" / "inner" / "own.yaml").write_text("a")
    found = graph(folder, evaluate={"tasks": ["own"], "folder": str(tmp_path / "tasks")})["report"]
    assert set(found.contents) == {"evaluate.folder/inner/own.yaml"}
