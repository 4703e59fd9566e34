"""The recipe: what it accepts, what it refuses, and how it says so."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusion_ray.errors import RecipeError
from fusion_ray.pipeline.run import run
from fusion_ray.recipe import TEACHING, Recipe, load_recipe, parse_recipe

SMALL = {
    "name": "small",
    "pivot": {"model": "models/pivot"},
    "sources": [{"name": "math", "model": "models/math"}, {"name": "code", "model": "models/code"}],
    "corpus": {"path": "chats.jsonl"},
}


def with_overrides(*overrides: str) -> Recipe:
    return parse_recipe(copy.deepcopy(SMALL), overrides=overrides)


def test_a_short_recipe_gets_the_defaults() -> None:
    recipe = parse_recipe(SMALL)
    assert (recipe.targets.resolved_start, recipe.targets.resolved_lambda) == ("sft", 0.2)
    assert (recipe.targets.learning_rate, recipe.targets.epochs) == (5e-6, 3)
    assert (recipe.merged.method.kind, recipe.merged.resolved_base) == ("rescaled_sum", "sft")
    assert list(recipe.models()) == ["pivot", "math", "code"]
    assert recipe.folder == "runs/small"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("targets.learning_rat=1", "did you mean 'learning_rate'"),
        ("distributions.engine.dtyp=float32", "did you mean 'dtype'"),
        ("sources.code.engine.kind=vlm", "'transformers', 'vllm', 'openai'"),
        ("merged.method={kind: varm, granularity: row}", "'model', 'layer', 'module', 'matrix' or 'element'"),
        ("merged={base: sft, method: linear}", "merged.base: sft changes nothing for linear"),
        ("merged=varm", "merged: Input should be a valid dictionary or instance of Merged"),
        ("targets.epochs=-1", "greater than 0"),
        ("corpus.heldout=1", "less than 1"),
        ("corpus={path: x, heldout: 0.6, validation: 0.4}", "leave nothing to train on"),
        ("merged.method=[", "--set merged.method=[: the value is not valid YAML"),
        ("distributions.actors.min=3", "max (1) is below min (3)"),
        ("sources.math.name=pivot", "'pivot' is reserved"),
        ("sources.math.name=code", "'code' is taken"),
        ("name=../x", "pattern"),
        ("sources.physics.model=x", "no source named 'physics'; there are: math, code"),
        ("targets", "expected section.key=value"),
        ("name.first=x", "valid string"),
    ],
)
def test_a_wrong_setting_names_itself_and_the_right_ones(override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        with_overrides(override)
    assert expected in str(caught.value)


def test_deltas_are_taken_from_the_control_by_the_method_that_adds_them() -> None:
    assert with_overrides("merged.method=varm").merged.resolved_base == "pivot"
    assert with_overrides("merged.method=rescaled_sum").merged.resolved_base == "sft"
    assert with_overrides("merged={method: {kind: rescaled_sum}, base: pivot}").merged.resolved_base == "pivot"
    assert with_overrides("merged={method: varm, base: sft}").merged.resolved_base == "sft"
    assert with_overrides("merged.dtype=float32").merged.resolved_base == "sft"


def test_deltas_from_the_control_need_the_control() -> None:
    with pytest.raises(RecipeError, match=r"needs the SFT control; add sft to targets\.controls"):
        with_overrides("merged.base=sft", "targets.controls=[self]")


def test_what_a_round_of_several_teaches_is_added_whole_unless_told_otherwise() -> None:
    def method(*overrides: str) -> object:
        return with_overrides("targets={start: sft, rounds: 2}", *overrides).resolved.merged.method.model_dump()

    whole = {"kind": "rescaled_sum", "reach": "each"}
    assert method() == method("merged.method=rescaled_sum") == method("merged.dtype=float32") == whole
    assert method("merged.method.reach=one") == {"kind": "rescaled_sum", "reach": "one"}
    assert method("merged={method: varm, base: sft}") == {"kind": "varm", "granularity": "matrix"}
    assert method("targets.rounds=1") == whole | {"reach": "one"}
    for wrong in ("merged=varm", "merged=rescaled_sum", "merged.method=3", "merged.method=[varm]"):
        with pytest.raises(RecipeError, match="merged"):
            method(wrong)


def test_targets_start_from_the_control_where_there_is_one() -> None:
    def start(*overrides: str) -> tuple[str, float]:
        targets = with_overrides(*overrides, "merged.method=varm").targets
        return targets.resolved_start, targets.resolved_lambda

    assert start() == start("targets.controls=[shuffled, sft]") == ("sft", 0.2)
    assert start("targets.controls=[]") == start("targets.controls=[self]") == ("pivot", 0.5)
    assert start("targets.controls=[]", "targets.lambda_=0.9") == ("pivot", 0.9)


def test_what_starts_from_the_control_has_learned_gold_before() -> None:
    assert with_overrides("targets.start=sft").targets.resolved_lambda == 0.2
    assert with_overrides("targets.start=sft", "targets.lambda_=0.5").targets.resolved_lambda == 0.5
    assert with_overrides("targets.start=pivot").targets.resolved_lambda == 0.5


def test_what_starts_from_the_control_needs_the_control() -> None:
    with pytest.raises(RecipeError, match=r"targets\.start: sft needs the SFT control"):
        with_overrides("targets.start=sft", "targets.controls=[]", "merged.base=pivot")
    with pytest.raises(RecipeError, match=r"longer goes on from the SFT control, as targets do under start: sft"):
        with_overrides("targets.start=pivot", "targets.controls=[sft, longer]")
    for half in (["targets.start=pivot"], ["targets.start=sft", "merged.base=pivot"]):
        with pytest.raises(RecipeError, match=r"rounds: 2 rounds add up .* set targets\.start and merged\.base to sft"):
            with_overrides("targets.rounds=2", *half)
    assert with_overrides("targets.rounds=2", "targets.start=sft", "targets.controls=[sft, longer]").targets.rounds == 2


@pytest.mark.parametrize(
    "setting",
    ["targets.keep=best", "targets.early_stop={patience: 3}"],
)
def test_what_goes_by_validation_chats_needs_some(setting: str) -> None:
    with pytest.raises(RecipeError, match=r"goes by validation chats, and corpus\.validation is 0"):
        with_overrides(setting, "corpus.validation=0")
    with_overrides(setting, "corpus.validation=0.1")


@pytest.mark.parametrize("setting", ["targets.gate=online", "targets.gate=none", "merged.method=learned"])
def test_what_was_removed_gets_a_sentence_that_says_what_to_do(setting: str) -> None:
    with pytest.raises(RecipeError, match=r"was removed: .*docs/quality\.md"):
        with_overrides(setting)


def test_a_report_on_no_held_out_chats_is_refused_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match=r"corpus\.heldout is 0, .* or stop before the report: --until merged"):
        run(with_overrides("corpus.heldout=0"))


@pytest.mark.parametrize("trust", ["fited", "0", "1.5", "true", "[1]", ".nan"])
def test_what_is_no_trust_is_refused_in_one_sentence(trust: str) -> None:
    with pytest.raises(
        RecipeError, match=r"choose\.mince\.trust: expected fitted, or a number above 0 and at most 1, got"
    ):
        with_overrides(f"fused.choose={{kind: mince, trust: {trust}}}")


def test_a_number_in_scientific_notation_is_a_number() -> None:
    assert with_overrides("targets.learning_rate=1e-5").targets.learning_rate == 1e-5


def test_a_bare_string_is_short_for_a_kind() -> None:
    recipe = with_overrides("fused.align=ms", "sources.code.engine=vllm", "sources.code.engine.tensor_parallel=2")
    assert recipe.fused.align.kind == "ms"
    assert recipe.sources[1].engine is not None
    assert recipe.sources[1].engine.model_dump()["tensor_parallel"] == 2


def test_a_missing_kind_is_the_default_one() -> None:
    assert with_overrides("fused.align.inner_tail=none").fused.align.model_dump() == {
        "kind": "bytes",
        "inner_tail": "none",
    }


@pytest.mark.parametrize("text", ["name: [", "- a", "", "!!python/object/apply:os.system ['true']"])
def test_a_file_that_is_no_recipe_is_refused_with_its_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.yaml"):
        load_recipe(path)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")


def test_a_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = with_overrides("targets.epochs=2.5", "merged.method={kind: varm, granularity: layer}")
    path = tmp_path / "recipe.json"
    path.write_text(recipe.model_dump_json())
    assert load_recipe(path) == recipe
    path.write_text(recipe.resolved.model_dump_json())
    assert load_recipe(path) == recipe.resolved == recipe.resolved.resolved
    path.write_text(yaml.safe_dump(SMALL))
    assert load_recipe(path) == parse_recipe(SMALL)


def test_every_section_has_a_hash_options_for_other_libraries_too() -> None:
    one, other = (
        parse_recipe(SMALL | {"distributions": {"engine": {"kind": "vllm", "options": options}}})
        for options in ({"seed": 1, "dtype": "auto"}, {"dtype": "auto", "seed": 1})
    )
    assert one == other and hash(one) == hash(other)
    assert hash(one.distributions.engine) != hash(parse_recipe(SMALL).distributions.engine)


def test_an_artifact_depends_on_every_setting_but_those_of_placement() -> None:
    section = parse_recipe(SMALL).distributions
    assert section.deciding().keys() == section.model_dump().keys() - {
        "actors", "cpus_per_actor", "gpus_per_actor", "nodes", "wait_s", "max_rejected"
    }  # fmt: skip
    assert "batch_size" not in section.deciding()["engine"], "marks count in sections within sections"
    taught, untaught = (parse_recipe(SMALL).targets.deciding(without=mark) for mark in (None, TEACHING))
    assert taught.keys() - untaught.keys() == {"lambda_", "lambda_end", "divergence", "tail", "temperature"}


@pytest.mark.parametrize(
    ("setting", "refused", "accepted"),
    [
        ("answers.per_chat", 0, 1),
        ("targets.checkpoint_every_steps", 0, 1),
        ("targets.workers", 0, 1),
        ("targets.rounds", 0, 1),
        ("targets.max_length", 7, 8),
        ("targets.retries", -1, 0),
        ("targets.early_stop.patience", 0, 1),
        ("report.samples", -1, 0),
        ("report.views", -1, 0),
        ("report.sample_tokens", 0, 1),
        ("report.bootstrap", 99, 100),
        ("corpus.heldout", 1.0, 0.9),
    ],
)
def test_the_least_that_a_setting_may_be_is_accepted_and_no_less(setting: str, refused: float, accepted: float) -> None:
    def with_value(value: float) -> Recipe:
        data: dict[str, Any] = {
            "name": "x", "pivot": {"model": "p"}, "sources": [{"name": "s", "model": "m"}],
            "corpus": {"path": "c", "heldout": 0.1, "validation": 0.01},
        }  # fmt: skip
        place = data
        *parents, last = setting.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
        return parse_recipe(data)

    with_value(accepted)
    with pytest.raises(RecipeError, match=setting.replace(".", r"\.")):
        with_value(refused)


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ({"columns": {"prompt": "ask"}}, "prompt is named and answer is not; name both"),
        ({"columns": {"answer": "reply"}}, "answer is named and prompt is not; name both"),
        ({"columns": {"prompt": "x", "answer": "x"}}, "the column 'x' is named twice"),
        ({"columns": {"id": "x", "domain": "x"}}, "the column 'x' is named twice"),
        ({"columns": {"domain": "a"}, "domain_column": "b"}, "domain_column is 'b' and corpus.columns.domain 'a'"),
        ({"columns": {"question": "x"}}, "question"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(corpus: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe(SMALL | {"corpus": {"path": "c", **corpus}})


def test_the_column_of_the_domain_has_two_names() -> None:
    for corpus in ({"domain_column": "topic"}, {"columns": {"domain": "topic"}}):
        assert parse_recipe(SMALL | {"corpus": {"path": "c", **corpus}}).corpus.row_columns.domain == "topic"
    assert parse_recipe(SMALL).corpus.row_columns.domain == "domain"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"kind": "ties", "density": 7}, "density: expected shares from 0 to 1, got 7"),
        ({"kind": "dare_linear", "density": [0.5, -1]}, "density: expected shares from 0 to 1, got -1"),
        ({"kind": "della", "epsilon": {"a": 2}}, "epsilon: expected shares from 0 to 1, got 2"),
        ({"kind": "breadcrumbs", "gamma": 1.5}, "gamma: expected shares from 0 to 1, got 1.5"),
        ({"kind": "linear", "weight": float("inf")}, "finite number"),
        ({"kind": "slerp", "t": float("nan")}, "finite number"),
    ],
)
def test_parameters_of_a_merge_that_are_no_shares_or_not_finite_are_refused(method: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe(SMALL | {"merged": {"method": method}})
    for share in (0, 1, [0.0, 1.0], {"a": 0.5}):
        parse_recipe(SMALL | {"merged": {"method": {"kind": "ties", "density": share}}})


def test_a_quoted_number_is_text() -> None:
    assert with_overrides("name='5'").name == "5" and with_overrides('name="1e5"').name == "1e5"
    assert with_overrides("targets.learning_rate=1e-5").targets.learning_rate == 1e-5
