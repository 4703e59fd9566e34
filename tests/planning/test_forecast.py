"""Forecasts: their arithmetic by hand, what they say will not fit, and that they need no model and nothing heavy."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from toys.models import byte_level_tokenizer, save_toy

from fusion_ray.pipeline.graph import build_graph
from fusion_ray.pipeline.status import list_statuses
from fusion_ray.planning.costs import (
    MERGED_BYTES_PER_S,
    SCORING_SHARE_OF_PEAK,
    START_S,
    TRAINING_SHARE_OF_PEAK,
    WRITING_SHARE_OF_PEAK,
    Cost,
)
from fusion_ray.planning.fit import find_problems, training_gib
from fusion_ray.planning.forecast import Forecast, forecast
from fusion_ray.planning.sizes import GPUS, Cluster, cluster_size
from fusion_ray.recipe import Recipe, load_recipe, parse_recipe
from fusion_ray.recipe.merge_methods import METHODS
from fusion_ray.storage.artifacts import write_manifest
from fusion_ray.storage.run_folder import STAGES

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
BIG = Cluster(cpus=96, gpus=8, gpu=GPUS["a100"], memory_gib=1000, object_store_gib=300, disk_gib=5000)


def foresee(recipe: Recipe, cluster: Cluster = BIG, **options: float) -> Forecast:
    return forecast(recipe, list_statuses(recipe), cluster, **options)  # type: ignore[arg-type]


def fusechat(*overrides: str) -> Recipe:
    return load_recipe(ROOT / "jobs/recipes/fusechat_7b.yaml", overrides)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_has_a_forecast_without_its_models(path: Path) -> None:
    recipe = load_recipe(path, ("runs=/nonexistent/runs",))
    found = foresee(recipe)
    wanted = [stage for stage in STAGES if stage != "answers" or recipe.answers]
    assert [stage.stage for stage in found.stages] == wanted
    assert found.wall_s is not None
    assert found.wall_s > 0
    assert not found.problems


def test_scoring_and_training_times_are_the_stated_arithmetic() -> None:
    found = foresee(fusechat(), rows=1000, tokens_per_row=500, price_per_gpu_hour=2.0)
    costs = {cost.artifact: cost for cost in found.costs}
    mixtral = costs["distributions/mixtral"]
    assert mixtral.tokens == 500_000
    work = 2 * 12.9e9 * 500_000
    assert mixtral.wall_s == pytest.approx(START_S + work / (8 * 312e12 * SCORING_SHARE_OF_PEAK))
    target = costs["targets/solar"]
    assert target.tokens == pytest.approx(0.98 * 500_000 * 3)
    work = 8 * 7.2e9 * target.tokens
    assert target.wall_s == pytest.approx(START_S + work / (8 * 312e12 * TRAINING_SHARE_OF_PEAK))
    assert found.money == pytest.approx(2.0 * found.gpu_hours)
    assert found.gpu_hours == pytest.approx(sum(cost.gpu_hours or 0 for cost in found.costs))


def test_a_merge_takes_as_many_passes_over_the_models_as_its_method() -> None:
    def wall(kind: str) -> float:
        found = foresee(fusechat(f"merged.method={kind}"), rows=1000)
        (merged,) = (cost for cost in found.costs if cost.artifact == "merged")
        assert merged.wall_s is not None
        return merged.wall_s

    one_pass = 7.2e9 * (2 + 4 + 4)  # The pivot in bfloat16 and two targets in float32.
    files = 7.2e9 * 2 / (5 * 2**30)
    for kind in ("linear", "varm", "ties"):
        assert wall(kind) == pytest.approx(METHODS[kind].passes * one_pass / (MERGED_BYTES_PER_S * files))


def test_rounds_share_the_training_and_each_scores_the_training_chats() -> None:
    def costs(*overrides: str) -> dict[str, Cost]:
        found = foresee(fusechat("targets.start=sft", "merged.method=rescaled_sum", *overrides), rows=1000)
        return {cost.artifact: cost for cost in found.costs}

    once, rounds = costs(), costs("targets.rounds=3")
    parts = ["targets/round-1/solar", "targets/round-2/solar", "targets/solar"]
    assert sum(rounds[part].tokens for part in parts) == pytest.approx(once["targets/solar"].tokens)
    assert once["distributions/sft"].tokens == pytest.approx(0.98 * once["distributions/pivot"].tokens)
    for name in ("distributions/round-1", "distributions/round-2"):
        assert rounds[name].tokens == once["distributions/sft"].tokens
    assert rounds["report"].tokens == once["report"].tokens
    assert {"merged/round-1", "merged/round-2", "merged"} <= rounds.keys()


def test_what_waits_for_others_of_its_stage_does_not_share_their_time() -> None:
    def wall(*overrides: str) -> tuple[float, dict[str, Cost]]:
        found = foresee(fusechat("targets.controls=[sft]", *overrides), rows=1000)
        (stage,) = (cost for cost in found.stages if cost.stage == "targets")
        assert stage.wall_s is not None
        return stage.wall_s, {cost.artifact: cost for cost in found.costs}

    room = ("targets.side_by_side=8", "merged.method=rescaled_sum")
    from_pivot, costs = wall(*room)
    (one,) = {cost.wall_s for name, cost in costs.items() if name.startswith("targets/")}
    assert one is not None and from_pivot == pytest.approx(one)
    from_sft, costs = wall(*room, "targets.start=sft")
    assert from_sft == pytest.approx(2 * one)
    assert {name: cost.wave for name, cost in costs.items() if cost.stage == "targets"} == {
        "targets/sft": 0,
        "targets/mixtral": 1,
        "targets/solar": 1,
    }
    in_rounds, costs = wall(*room, "targets.start=sft", "targets.rounds=3")
    parts = [costs[f"targets/{place}solar"].wall_s or 0.0 for place in ("round-1/", "round-2/", "")]
    assert in_rounds == pytest.approx(one + sum(parts))


def test_answers_take_writing_scoring_fusing_and_training_by_the_stated_arithmetic() -> None:
    def costs(*overrides: str) -> dict[str, Cost]:
        found = foresee(fusechat(*overrides), rows=1000, tokens_per_row=500)
        return {cost.artifact: cost for cost in found.costs}

    plain, asked = costs(), costs("answers.per_chat=4")
    for name in plain.keys() - {"targets/mixtral", "targets/solar", "merged", "report"}:
        assert asked[name] == plain[name]
    train = plain["targets/solar"].rows
    rows = asked["answers/solar"].rows
    assert rows == pytest.approx(train * 4 / 2, abs=1)
    assert asked["targets/solar"].rows == pytest.approx(train + rows, abs=1)
    assert asked["targets/sft"].rows == train
    written = 2 * 12.9e9 * asked["answers/mixtral"].tokens
    assert asked["answers/mixtral"].wall_s == pytest.approx(START_S + written / (8 * 312e12 * WRITING_SHARE_OF_PEAK))
    for by in ("pivot", "solar"):
        assert asked[f"distributions/answers/solar/{by}"].rows == rows
    assert asked["fused/answers/solar"].rows == rows
    multi = costs("answers.per_chat=4", "fused.mode=multi")
    assert multi["answers/solar"].rows == pytest.approx(train * 4 / 3, abs=1)
    assert multi["targets/multi"].rows == pytest.approx(train * (1 + 2 * 4 / 3), abs=1)


def test_a_model_too_large_for_its_gpus_is_named_with_a_parallelism_that_fits() -> None:
    small = replace(BIG, gpu=GPUS["l40s"])
    problems = foresee(fusechat(), small).problems
    (mixtral,) = [problem for problem in problems if "mixtral" in problem]
    assert "46.7 B weights over 2 GPU(s)" in mixtral
    assert "tensor_parallel: 4" in mixtral
    mended = fusechat("sources.mixtral.engine.tensor_parallel=4", "distributions.gpus_per_actor=4")
    assert not [problem for problem in foresee(mended, small).problems if "mixtral" in problem]


def test_more_parallelism_than_an_actor_has_gpus_is_named() -> None:
    (problem,) = foresee(fusechat("sources.mixtral.engine.tensor_parallel=4")).problems
    assert "tensor_parallel 4" in problem
    assert "gpus_per_actor is 2" in problem


@pytest.mark.parametrize(
    ("overrides", "change"),
    [
        (("targets.gradient_checkpointing=false", "targets.zero_stage=1"), "Set targets.gradient_checkpointing=True."),
        (("targets.workers=2", "pivot.parameters=12e9"), "targets.offload.optimizer=True"),
        (("targets.workers=1", "pivot.parameters=40e9"), "Use more workers or larger GPUs."),
    ],
)
def test_training_that_does_not_fit_is_named_with_the_cheapest_setting_that_makes_it_fit(
    overrides: tuple[str, ...], change: str
) -> None:
    (problem,) = [text for text in foresee(fusechat(*overrides)).problems if text.startswith("targets: ")]
    assert change in problem


def test_zero_divides_what_it_says_it_divides() -> None:
    def gib(stage: int, workers: int) -> float:
        return training_gib(fusechat(f"targets.zero_stage={stage}", f"targets.workers={workers}"), 7.2e9)

    weights, gradients, optimizer = (7.2e9 * size / 2**30 for size in (2, 4, 12))
    assert gib(1, 1) - gib(1, 4) == pytest.approx(optimizer * 3 / 4)
    assert gib(2, 1) - gib(2, 4) == pytest.approx((optimizer + gradients) * 3 / 4)
    assert gib(3, 1) - gib(3, 4) == pytest.approx((optimizer + gradients + weights) * 3 / 4)


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (replace(BIG, gpus=4), "targets: 8 workers"),
        (replace(BIG, gpus=1), "distributions: 1 actors of 2 GPUs"),
        (replace(BIG, disk_gib=50), "disk: the run writes about"),
        (replace(BIG, object_store_gib=0.001), "object store"),
        (replace(BIG, cpus=4), "targets: 8 workers of 1 CPUs"),
    ],
)
def test_what_the_cluster_lacks_is_named_before_anything_starts(cluster: Cluster, words: str) -> None:
    problems = foresee(fusechat(), cluster).problems
    assert any(words in problem for problem in problems), problems
    assert not foresee(fusechat(), BIG).problems


def test_a_report_without_heldout_chats_is_told_before_anything_is_made() -> None:
    (problem,) = foresee(fusechat("corpus.heldout=0"), BIG).problems
    assert "corpus.heldout is 0" in problem and "--until merged" in problem


def test_a_model_on_cpus_needs_memory() -> None:
    recipe = fusechat("distributions.gpus_per_actor=0", "distributions.engine.kind=transformers", "pivot.engine=null")
    problems = foresee(recipe, replace(BIG, memory_gib=8)).problems
    assert any("on CPUs" in problem for problem in problems)


def toy_recipe(folder: Path) -> Recipe:
    save_toy(folder / "pivot", "llama", byte_level_tokenizer())
    rows = [{"messages": [{"role": "user", "content": "x" * 100}, {"role": "assistant", "content": "y" * 300}]}] * 50
    (folder / "chats.jsonl").write_text("".join(json.dumps(row | {"id": str(n)}) + "\n" for n, row in enumerate(rows)))
    model = str(folder / "pivot")
    return parse_recipe(
        {
            "name": "toy",
            "runs": str(folder / "runs"),
            "pivot": {"model": model},
            "sources": [{"name": "math", "model": model}],
            "corpus": {"path": str(folder / "chats.jsonl")},
        }
    )


def test_a_model_and_a_corpus_that_are_here_are_counted(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    recipe = toy_recipe(tmp_path)
    found = foresee(recipe)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pivot")
    size = found.models["pivot"]
    assert size is not None
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    tied = model.lm_head.weight.numel() if model.config.tie_word_embeddings else 0
    assert size.parameters in (stored, stored - tied)
    assert size.active == size.parameters
    assert (found.corpus.rows, found.corpus.tokens_per_row) == (50, 100)


def test_an_earlier_manifest_gives_the_time_for_as_many_rows(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    artifact = next(a for a in build_graph(recipe) if a.name == "math" and a.stage == "distributions")
    earlier = replace(artifact, settings={**artifact.settings, "top_k": 5})
    from fusion_ray.storage.shards import ShardRecord

    write_manifest(earlier, seconds=40.0, shards=[ShardRecord("train/00000.parquet", 20, 1, "", {})])
    cost = {c.artifact: c for c in foresee(recipe).costs}["distributions/math"]
    assert (cost.wall_s, cost.rate) == (100.0, "measured")


def test_what_is_done_costs_nothing(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    for artifact in build_graph(recipe):
        write_manifest(artifact, seconds=1.0)
    found = foresee(recipe)
    assert not found.stages
    assert found.wall_s == 0
    assert not find_problems(recipe, found.corpus, found.models, found.costs, replace(BIG, gpus=0, cpus=1))


def test_the_command_prints_tables_or_json() -> None:
    command = [sys.executable, "-m", "fusion_ray", "plan", "jobs/recipes/fusechat_7b.yaml", "--gpus", "2"]
    command += ["--cpus", "16", "--price-per-gpu-hour", "3", "--disk", "1000"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "Will not fit: targets: 8 workers" in " ".join(text.split())
    data = json.loads(subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, check=True).stdout)
    assert data["money"] == pytest.approx(3 * data["gpu_hours"])
    assert {artifact["state"] for artifact in data["artifacts"]} == {"blocked"}
    assert data["problems"]


def test_an_unknown_kind_of_gpu_is_refused() -> None:
    with pytest.raises(Exception, match="--gpu v100: expected one of"):
        cluster_size(fusechat(), gpu="v100")
