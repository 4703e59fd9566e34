"""What the functions behind the commands take and give."""

import json
from pathlib import Path
from typing import Any

import pytest
from toys.models import byte_level_tokenizer, save_toy, sentencepiece_tokenizer

import fusion_ray
from fusion_ray import RecipeError
from fusion_ray.distributions.inspect_chats import InspectedRow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_toy(folder / "pivot", "llama", byte_level_tokenizer())
    save_toy(folder / "math", "gpt_neox", sentencepiece_tokenizer())
    return folder


def chat(answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]}


def test_ten_rows_are_inspected_unless_others_are_asked_for(models: Path) -> None:
    rows = [chat("Hello.") | {"id": str(n)} for n in range(12)]

    def ids(**which: Any) -> list[str]:
        return [found.row.id for found in fusion_ray.inspect(models / "pivot", rows, **which)]

    assert ids() == [str(n) for n in range(10)]
    assert ids(count=2) == ["0", "1"]
    assert ids(row=11) == ["11"] and ids(id="7") == ["7"]
    for which in ({"row": 12}, {"id": "12"}, {"count": 0}):
        with pytest.raises(RecipeError):
            ids(**which)


def test_a_row_is_cut_at_the_shorter_of_what_is_asked_for_and_what_the_model_reads(
    models: Path, tmp_path: Path
) -> None:
    rows = [chat("word " * 200)]

    def length(model: Path, most: int) -> int:
        (found,) = fusion_ray.inspect(model, rows, max_length=most, template="chatml")
        assert bool(found.row.left_out) is (len(found.row.tokens) == most or most > 256)
        return len(found.row.tokens)

    config = json.loads((models / "pivot" / "config.json").read_text())
    assert length(models / "pivot", 20) == 20
    assert length(models / "pivot", 10_000) == config["max_position_embeddings"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((models / "pivot" / name).read_bytes())
    assert length(tmp_path, 300) == 300, "a tokenizer is enough"


def test_with_a_source_its_tokens_stand_beside_or_a_reason_why_not(models: Path) -> None:
    rows = [chat("Größe 🎉"), {"messages": []}, chat("word " * 20)]
    alone = fusion_ray.inspect(models / "pivot", rows, template="chatml")
    assert [(found.groups, found.problem) for found in alone] == [(None, None)] * 3
    assert "groups" not in alone[0].plain() and "source_reason" not in alone[0].plain()
    beside = fusion_ray.inspect(models / "pivot", rows, source=models / "math", template="chatml")
    assert [found.row.tokens for found in beside] == [found.row.tokens for found in alone]
    first, refused, last = beside
    assert first.groups and first.problem is None and last.groups
    assert "".join(t.token for group in first.groups for t in group.pivot).startswith("Gr")
    assert first.plain()["groups"][0].keys() == {"pivot", "source"} and "source_reason" not in first.plain()
    assert refused.groups is None and refused.problem == refused.row.reason
    assert refused.plain()["source_reason"] == refused.problem


def test_an_inspection_of_a_row_that_one_of_two_models_cannot_read_says_why(models: Path) -> None:
    from fusion_ray.api import _aligned
    from fusion_ray.models.folders import load_tokenizer

    tokenizer = load_tokenizer(str(models / "pivot"))
    (good,) = fusion_ray.inspect(models / "pivot", [chat("Hello.")], template="chatml")
    bad = InspectedRow("x", None, "too long", [], [], 0, [], None)
    assert _aligned(good.row, bad, tokenizer, tokenizer) == fusion_ray.Inspection(good.row, None, "too long")
    assert _aligned(bad, good.row, tokenizer, tokenizer) == fusion_ray.Inspection(bad, None, None)
    assert _aligned(good.row, good.row, tokenizer, tokenizer).groups


def test_nothing_is_scored_unless_it_is_asked_for(models: Path) -> None:
    groups = fusion_ray.align("The cat.", models / "pivot", models / "math")
    assert {token.real for group in groups for token in group.pivot} == {None}
    assert {token.top for group in groups for token in group.pivot} == {()}


@pytest.mark.parametrize("add", [{}, {"a": "x", "b": "y"}])
def test_one_target_is_added_to_a_merge_at_a_time(add: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"add names {len(add)} targets; expected one"):
        fusion_ray.merge(tmp_path, tmp_path / "out", add=add)


@pytest.mark.parametrize("sources", ["models/math", []])
def test_sources_are_a_list_with_something_in_it(sources: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected a list of sources"):
        fusion_ray.write_recipe("models/pivot", sources, "chats.jsonl", tmp_path / "recipe.yaml")


def test_a_recipe_is_given_as_itself_or_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    data = {
        "name": "x",
        "runs": str(tmp_path / "runs"),
        "pivot": {"model": "no/pivot"},
        "sources": [{"name": "math", "model": "no/math"}],
        "corpus": {"path": "nowhere.jsonl"},
    }
    path.write_text(json.dumps(data))
    recipe = fusion_ray.load_recipe(path)
    for given in (recipe, path, str(path)):
        assert fusion_ray.plan(given, cpus=1, gpus=0).recipe == recipe
    with pytest.raises(RecipeError, match="expected a Recipe or the path of one, got dict"):
        fusion_ray.plan(data)  # type: ignore[arg-type]


def test_a_dry_run_sends_nothing_and_a_real_one_needs_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("12345")
    parcel = fusion_ray.push(tmp_path, "me/it", dry_run=True)
    assert (parcel.files, parcel.url) == ({"config.json": 5, "model.safetensors": 5}, "")
    with pytest.raises(RecipeError, match="HF_TOKEN"):
        fusion_ray.push(tmp_path, "me/it")


def test_what_the_package_offers_is_there_and_nothing_else() -> None:
    assert fusion_ray.RunReport.__module__ == "fusion_ray.report.reading"
    assert "plan" in dir(fusion_ray) and dir(fusion_ray) == sorted(fusion_ray.__all__)
    for place in (fusion_ray, fusion_ray.api):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = place.nothing
