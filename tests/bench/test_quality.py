"""The quality benchmark's arms are valid recipes that differ, and effects are what they should be."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run
import testbeds
from arms import MAIN, TABLES, Arm
from effects import compare
from figures import draw_curve, draw_effects
from trials import Outcome, arm_recipe, changed, on_gpus, write_recipe

from fusion_ray.corpus.split import split_of
from fusion_ray.demo.plans import DOMAINS
from fusion_ray.recipe import load_recipe, parse_recipe
from fusion_ray.report.statistics.rates import Scores

ARMS = [(table, label) for table, arms in TABLES.items() for label in arms]
every_arm = pytest.mark.parametrize(("table", "label"), ARMS, ids=[" / ".join(arm) for arm in ARMS])


@every_arm
def test_an_arm_is_a_valid_recipe_that_differs_from_the_first(table: str, label: str) -> None:
    arm = TABLES[table][label]
    first = next(iter(TABLES[table].values()))
    recipe, other = (
        arm_recipe(Path("quality"), changed(testbeds.Testbed(), a), a, controls=False) for a in (arm, first)
    )
    assert (recipe == other) == (arm == first)


@every_arm
def test_the_file_that_is_run_is_the_arm(table: str, label: str, tmp_path: Path) -> None:
    arm = TABLES[table][label]
    recipe = arm_recipe(tmp_path, changed(testbeds.Testbed(), arm), arm, controls=False)
    Path(recipe.runs).mkdir(parents=True)
    assert load_recipe(write_recipe(recipe)) == recipe


def test_a_trial_on_a_gpu_is_the_same_trial() -> None:
    recipe = arm_recipe(Path("quality"), testbeds.Testbed(), MAIN, controls=False)
    moved = on_gpus(recipe, 0.25)
    assert moved.distributions.gpus_per_actor == moved.targets.gpus_per_worker == 0.25
    assert on_gpus(moved, 0) == recipe


def outcome(nll_by_model: dict[str, list[float]], **changes: Any) -> Outcome:
    n = len(next(iter(nll_by_model.values())))
    scores = Scores(tuple(nll_by_model), np.array(list(nll_by_model.values())), np.full(n, 8), np.array(["a"] * n))
    return replace(Outcome(tuple(map(str, range(n))), scores, {}), **changes)


def test_an_effect_is_the_mean_over_seeds_and_its_interval_holds_the_spread_between_them() -> None:
    rng = np.random.default_rng(0)
    base_N = rng.uniform(8, 16, 200)
    shift_S = [
        0.10,
        0.30,
        0.20,
        0.25,
        0.15,
    ]  # Bits per byte by which `b` is worse, by seed; no noise between documents.
    seeds = [outcome({"a": list(base_N), "b": list(base_N + shift * 8 * np.log(2))}) for shift in shift_S]
    effect = compare([(seed, "a", seed, "b") for seed in seeds])
    assert effect.value == pytest.approx(-0.2)
    assert effect.better == effect.seeds == 5
    assert effect.in_sd == pytest.approx(-0.2 / np.std(shift_S, ddof=1))
    assert -0.30 < effect.low < -0.2 < effect.high < -0.10
    assert effect.p_value < 0.001


def test_arms_are_paired_by_document_whatever_the_order() -> None:
    one = outcome({"a": [8.0, 16.0, 24.0]})
    other = outcome({"b": [24.0, 16.0, 8.0]}, ids=("2", "1", "0"))
    effect = compare([(one, "a", other, "b")])
    assert effect.value == effect.low == effect.high == 0
    assert effect.p_value == 1
    assert effect.in_sd is None


def measured(rates: dict[str, float]) -> Outcome:
    """Every document with these bits per byte, and a report that says so."""
    made = outcome({model: [rate * 8 * np.log(2)] * 4 for model, rate in rates.items()})
    report = {
        "bits_per_byte": {model: {"a": rate, "overall": rate} for model, rate in rates.items()},
        "oracle": {
            "bits_per_byte": {"a": 1.0, "overall": 1.0},
            "recovered_share": {model: {"overall": (3.0 - rate) / 2} for model, rate in rates.items()},
        },
        "calibration": {model: {"error": rate / 100, "accuracy": 0.5} for model, rate in rates.items()},
    }
    return replace(made, report=report)


def test_what_is_printed_compares_with_the_arm_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules[run.report.__module__], "RESULTS", tmp_path)
    rates = {"pivot": 3.0, "sft": 2.5, "longer": 2.75, "target:x": 2.0}
    found = {0: [measured(rates | {"merged": 2.25})] * 2, 1: [measured(rates | {"merged": 2.125})] * 2}
    arms: dict[str, Arm] = {"one": {"n": 0}, "other": {"n": 1}}
    rows = run.print_table("toys", arms, lambda arm: found[arm["n"]], "other")
    assert [(label, round(effect.value, 9)) for label, effect in rows] == [("one", 0.125)]
    printed = capsys.readouterr().out
    assert "| one | 2.2500 | +0.1250 | [+0.1250, +0.1250] | < 0.001 | 0 of 2 | -0.2500 |" in printed
    assert (
        "| other | 2.1250 | | | | | -0.3750 | [-0.3750, -0.3750] | +0.1250 [+0.1250, +0.1250] (a) | 44% | 25% |"
        in printed
    )
    run.print_main(found[1], "toys: other, ")
    printed = capsys.readouterr().out
    assert "| (longer less sft) | +0.2500 | [+0.2500, +0.2500] | 0.0002 | 0 of 2 |" in printed
    cases = [json.loads(line)["case"] for line in (tmp_path / "quality.jsonl").read_text().splitlines()]
    assert [case.split(", ")[0] for case in cases] == ["toys: one less other", *["toys: other"] * 3]


def test_a_picture_has_every_row_and_is_the_same_each_time(tmp_path: Path) -> None:
    seeds = [outcome({"a": [8.0, 16.0], "b": [9.0 + shift, 18.0]}) for shift in (0.0, 0.5)]
    rows = [(label, compare([(seed, "a", seed, "b") for seed in seeds])) for label in ("TIES", "SCE, tau 0.1")]
    for name in ("one.svg", "two.svg"):
        draw_effects(tmp_path / name, "merged less VaRM", rows)
    drawn = (tmp_path / "one.svg").read_text()
    assert all(text in drawn for text in ("TIES", "SCE, tau 0.1", "merged less VaRM, bits per byte"))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_curve_has_both_models_and_every_point_and_is_the_same_each_time(tmp_path: Path) -> None:
    shares = {"sft": {0.5: [0.3, 0.4], 2.0: [0.5, 0.5]}, "merged": {0.5: [0.4, 0.6], 2.0: [0.7, 0.9]}}
    for name in ("one.svg", "two.svg"):
        draw_curve(tmp_path / name, "strength of the sources", shares)
    drawn = (tmp_path / "one.svg").read_text()
    assert all(text in drawn for text in ("sft", "merged", "0.5", "2", "60%", "strength of the sources"))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_what_is_added_to_a_testbed_leaves_its_other_models_as_they_are() -> None:
    usual = testbeds.Testbed().plan().models
    for more in ({"sources": 4}, {"random_source": True}, {"sources": 1}):
        other = replace(testbeds.Testbed(), **more)
        assert other.plan().models[: len(usual)] == usual
        names = [model.name for model in other.plan().models]
        assert set(other.source_names()) <= set(names) - {"pivot"}


def test_a_testbed_that_learns_from_fewer_chats_keeps_all_that_are_held_out(tmp_path: Path) -> None:
    chats = [{"id": f"{domain}{n}", "domain": domain, "text": "a\u2028b"} for domain in DOMAINS for n in range(60)]
    lines = "".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats)
    (tmp_path / "chats.jsonl").write_text(lines, encoding="utf-8")
    testbed = replace(testbeds.Testbed(seed=3), rows=60, learn_from=10)
    corpus = parse_recipe(testbeds.recipe_of(testbed, tmp_path)).corpus
    testbeds.thin_chats(testbed, tmp_path, corpus)
    kept = [json.loads(line)["id"] for line in Path(corpus.path).read_text(encoding="utf-8").split("\n")[:-1]]
    heldout = {chat["id"] for chat in chats if split_of(chat["id"], corpus, 3) == "heldout"}
    assert 0 < len(heldout) < len(chats) - 30
    assert heldout <= set(kept)
    assert [sum(name.startswith(domain) for name in set(kept) - heldout) for domain in DOMAINS] == [10, 10, 10]
