"""What each artifact of a plan takes, every number calculated by hand from the stated rates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys.models import byte_level_tokenizer, save_toy

from fusion_ray.pipeline.graph import build_graph
from fusion_ray.pipeline.status import list_statuses
from fusion_ray.planning.costs import Cost, by_stage
from fusion_ray.planning.forecast import Forecast, forecast
from fusion_ray.planning.sizes import GPUS, Cluster, CorpusSize, ModelSize
from fusion_ray.recipe import load_recipe, parse_recipe
from fusion_ray.storage.artifacts import write_manifest
from fusion_ray.storage.shards import ShardRecord

RECIPE = Path(__file__).resolve().parents[2] / "jobs/recipes/fusechat_7b.yaml"
BIG = Cluster(cpus=96, gpus=8, gpu=GPUS["a100"], memory_gib=1000, object_store_gib=300, disk_gib=5000)


def foresee(*overrides: str, cluster: Cluster = BIG, **options: Any) -> Forecast:
    """Of 10,000 chats of 500 tokens, 1 % of them held out and 1 % for validation."""
    recipe = load_recipe(RECIPE, ("runs=/nonexistent/runs", *overrides))
    return forecast(recipe, list_statuses(recipe), cluster, rows=10_000, tokens_per_row=500, **options)


def cost_of(artifact: str, *overrides: str, **cluster: Any) -> Cost:
    (found,) = (c for c in foresee(*overrides, cluster=replace(BIG, **cluster)).costs if c.artifact == artifact)
    return found


def test_what_every_artifact_takes_is_the_stated_arithmetic() -> None:
    # An A100 does 312e12 a second: 78e12 of them in scoring, 9.36e12 in writing, 109.2e12 in training. The pivot and
    # SOLAR are scored on 4 GPUs at a time, Mixtral, cut in two, on 8. Two sources win half the chats each, and write
    # 4 answers to each, so 1.96 answers for each chat of the corpus. Stored: 25.8 bytes an answer token, 4 a token.
    scored, answers, fused = 5e6 * (4 + 0.7 * 25.8), 9.8e6 * (4 + 0.7 * 25.8), 8 + 3.5 * 10
    expected = {
        "corpus": (10_000, 0, 5e6 * 2, 10_000 / 2_000, 0, 0),
        "distributions/pivot": (10_000, 5e6, scored, 60 + 2 * 7.2e9 * 5e6 / (4 * 78e12), 8, 0),
        "distributions/mixtral": (10_000, 5e6, scored, 60 + 2 * 12.9e9 * 5e6 / (8 * 78e12), 8, 0),
        "distributions/solar": (10_000, 5e6, scored, 60 + 2 * 10.7e9 * 5e6 / (4 * 78e12), 8, 0),
        "answers/mixtral": (19_600, 6.86e6, 9.8e6 * 2, 60 + 2 * 12.9e9 * 6.86e6 / (8 * 9.36e12), 8, 0),
        "answers/solar": (19_600, 6.86e6, 9.8e6 * 2, 60 + 2 * 10.7e9 * 6.86e6 / (4 * 9.36e12), 8, 0),
        **{
            f"distributions/answers/{place}": (19_600, 9.8e6, answers, 60 + 2 * size * 9.8e6 / (gpus * 78e12), 8, 1)
            for place, size, gpus in (
                *[("mixtral/pivot", 7.2e9, 4), ("mixtral/mixtral", 12.9e9, 8)],
                *[("solar/pivot", 7.2e9, 4), ("solar/solar", 10.7e9, 4)],
            )
        },
        "fused/mixtral": (9_900, 3.465e6, 4.95e6 * 4 + 3.465e6 * fused, 3.465e6 / (100_000 * 96), 0, 0),
        "fused/solar": (9_900, 3.465e6, 4.95e6 * 4 + 3.465e6 * fused, 3.465e6 / (100_000 * 96), 0, 0),
        "fused/answers/mixtral": (19_600, 6.86e6, 9.8e6 * 4 + 6.86e6 * fused, 6.86e6 / (100_000 * 96), 0, 0),
        "fused/answers/solar": (19_600, 6.86e6, 9.8e6 * 4 + 6.86e6 * fused, 6.86e6 / (100_000 * 96), 0, 0),
        # 2.94 rows for each chat, three times; 18 bytes a weight: 4 of the model, 14 of a checkpoint.
        "targets/mixtral": (29_400, 44.1e6, 7.2e9 * 18, 60 + 8 * 7.2e9 * 44.1e6 / (8 * 109.2e12), 8, 0),
        "targets/solar": (29_400, 44.1e6, 7.2e9 * 18, 60 + 8 * 7.2e9 * 44.1e6 / (8 * 109.2e12), 8, 0),
        "targets/sft": (9_800, 14.7e6, 7.2e9 * 18, 60 + 8 * 7.2e9 * 14.7e6 / (8 * 109.2e12), 8, 0),
        # Two passes over the pivot (2 bytes a weight) and two targets (4 each), a thread for each 5 GiB written.
        "merged": (0, 0, 7.2e9 * 2, 2 * 7.2e9 * 10 / (500e6 * 7.2e9 * 2 / (5 * 2**30)), 0, 0),
        # The pivot's time, four times: three targets and the merged model.
        "report": (100, 200_000, 200_000 * 12, 4 * (60 + 2 * 7.2e9 * 50_000 / (4 * 78e12)), 8, 0),
    }
    found = foresee("answers.per_chat=4")
    assert [cost.artifact for cost in found.costs] == list(expected)
    for cost in found.costs:
        numbers = (cost.rows, cost.tokens, cost.bytes_written, cost.wall_s, cost.gpus, cost.wave)
        assert numbers == pytest.approx(expected[cost.artifact]), cost.artifact
        assert (cost.stage, cost.rate) == (cost.artifact.split("/")[0], "stated")
    models = {c.artifact: c.model for c in found.costs if c.model}
    assert {name: models[name] for name in ("distributions/pivot", "answers/solar")} == {
        "distributions/pivot": "pivot",
        "answers/solar": "solar",
    }
    assert models["distributions/answers/solar/pivot"] == "pivot" and len(models) == 9


_TRAINING_TOKENS = 0.98 * 5e6 * 3


@pytest.mark.parametrize(
    ("artifact", "overrides", "cluster", "field", "expected"),
    [
        # Scoring without GPUs: an actor has at least one core, and there are no more than the cluster's.
        ("distributions/pivot", ["distributions.gpus_per_actor=0"], {}, "wall_s", 10 + 7.2e16 / (4 * 90e9)),
        ("distributions/pivot", ["distributions.gpus_per_actor=0"], {}, "gpus", 0),
        (
            "distributions/pivot",
            ["distributions.gpus_per_actor=0", "distributions.cpus_per_actor=0"],
            {},
            "wall_s",
            10 + 7.2e16 / (4 * 90e9),
        ),
        (
            "distributions/pivot",
            ["distributions.gpus_per_actor=0", "distributions.cpus_per_actor=2"],
            {},
            "wall_s",
            10 + 7.2e16 / (8 * 90e9),
        ),
        ("distributions/pivot", ["distributions.gpus_per_actor=0"], {"cpus": 3}, "wall_s", 10 + 7.2e16 / (3 * 90e9)),
        # As many actors as there are GPUs for, at least one and at most four.
        ("distributions/pivot", [], {"gpus": 1}, "gpus", 2),
        ("distributions/pivot", [], {"gpus": 1}, "wall_s", 60 + 7.2e16 / 78e12),
        ("distributions/pivot", [], {"gpus": 4}, "wall_s", 60 + 7.2e16 / (2 * 78e12)),
        ("distributions/pivot", [], {"gpus": 64}, "gpus", 8),
        ("distributions/pivot", ["distributions.gpus_per_actor=0.5"], {}, "gpus", 2),
        ("distributions/pivot", ["distributions.gpus_per_actor=0.5"], {}, "wall_s", 60 + 7.2e16 / (2 * 78e12)),
        ("distributions/pivot", ["distributions.gpus_per_actor=0.5"], {"gpus": 1}, "gpus", 1),
        (
            "distributions/mixtral",
            ["sources.mixtral.engine={kind: transformers}"],
            {},
            "wall_s",
            60 + 2 * 12.9e9 * 5e6 / (4 * 78e12),
        ),
        ("distributions/pivot", ["distributions.store=plain"], {}, "bytes_written", 5e6 * (4 + 0.7 * 88)),
        ("distributions/pivot", ["distributions.top_k=20"], {}, "bytes_written", 5e6 * (4 + 0.7 * 45.5)),
        (
            "distributions/pivot",
            ["distributions.store={kind: sampled, draws: 20}", "targets.tail=sampled"],
            {},
            "bytes_written",
            5e6 * (4 + 0.7 * 45.5),
        ),
        ("fused/solar", ["fused.top_k=4"], {}, "bytes_written", 4.95e6 * 4 + 3.465e6 * (8 + 14)),
        ("fused/solar", ["fused.cpus_per_task=0.5"], {}, "wall_s", 3.465e6 / (100_000 * 96)),
        ("fused/solar", ["fused.cpus_per_task=48"], {}, "wall_s", 3.465e6 / (100_000 * 2)),
        ("fused/solar", ["fused.cpus_per_task=100"], {}, "wall_s", 3.465e6 / 100_000),
        ("fused/multi", ["fused.mode=multi"], {}, "wall_s", 2 * 3.465e6 / (100_000 * 96)),
        (
            "targets/solar",
            ["targets.gradient_checkpointing=false"],
            {},
            "wall_s",
            60 + 6 * 7.2e9 * _TRAINING_TOKENS / (8 * 109.2e12),
        ),
        (
            "targets/solar",
            ["targets.gpus_per_worker=0", "targets.cpus_per_worker=4"],
            {},
            "wall_s",
            10 + 8 * 7.2e9 * _TRAINING_TOKENS / (32 * 90e9),
        ),
        (
            "targets/solar",
            ["targets.gpus_per_worker=0", "targets.cpus_per_worker=4"],
            {"cpus": 31},
            "wall_s",
            10 + 8 * 7.2e9 * _TRAINING_TOKENS / (31 * 90e9),
        ),
        ("targets/solar", ["targets.gpus_per_worker=0.5"], {}, "gpus", 4),
        ("targets/solar", ["targets.save_dtype=bfloat16"], {}, "bytes_written", 7.2e9 * (2 + 14)),
        ("targets/solar", ["targets.dtype=float32"], {}, "bytes_written", 7.2e9 * (4 + 16)),
        ("targets/solar", ["targets.keep=best"], {}, "bytes_written", 7.2e9 * (4 + 20)),
        ("merged", ["targets.save_dtype=bfloat16"], {}, "wall_s", 2 * 7.2e9 * 6 / (500e6 * 14.4e9 / (5 * 2**30))),
        ("merged", ["merged.dtype=pivot"], {}, "bytes_written", 14.4e9),
        ("merged", ["merged.dtype=float32"], {}, "wall_s", 2 * 7.2e9 * 10 / (500e6 * 28.8e9 / (5 * 2**30))),
        ("merged", ["merged.shard_gib=100"], {}, "wall_s", 2 * 7.2e9 * 10 / 500e6),
        ("merged", [], {"cpus": 2}, "wall_s", 2 * 7.2e9 * 10 / (500e6 * 2)),
        ("report", ["corpus.heldout=0.5"], {}, "rows", 5_000),
        ("report", ["targets.controls=[]"], {}, "tokens", 150_000),
        ("report", ["distributions.gpus_per_actor=0"], {}, "gpus", 0),
    ],
)
def test_a_setting_changes_what_it_says(
    artifact: str, overrides: list[str], cluster: dict[str, Any], field: str, expected: float
) -> None:
    assert getattr(cost_of(artifact, *overrides, **cluster), field) == pytest.approx(expected)


def test_only_what_is_scored_once_more_in_a_round_is_left_out_of_the_report() -> None:
    rounds = ("targets.rounds=3", "targets.start=sft", "merged.method=rescaled_sum")
    assert cost_of("report", *rounds).tokens == pytest.approx(5e4 * 4)
    assert cost_of("targets/solar", *rounds).tokens == pytest.approx(_TRAINING_TOKENS / 3)
    assert cost_of("distributions/sft", *rounds).rows == 9_800


def test_without_the_size_of_a_model_its_time_is_not_known() -> None:
    found = foresee("pivot.parameters=null", "sources.solar.parameters=null", "answers.per_chat=4")
    unknown = {cost.artifact: cost for cost in found.costs if cost.wall_s is None}
    assert set(unknown) == {
        *("distributions/pivot", "distributions/solar", "answers/solar", "distributions/answers/mixtral/pivot"),
        *("distributions/answers/solar/pivot", "distributions/answers/solar/solar"),
        *("targets/mixtral", "targets/solar", "targets/sft", "merged", "report"),
    }
    assert {cost.rate for cost in found.costs if cost.wall_s is not None} == {"stated"}
    assert {cost.rate for cost in unknown.values()} == {"size unknown"}
    assert {cost.gpu_hours for cost in unknown.values()} == {None}
    for name, rows, tokens, gpus in (("targets/sft", 9_800, _TRAINING_TOKENS, 8), ("merged", 0, 0, 0)):
        cost = unknown[name]
        assert (cost.rows, cost.tokens, cost.bytes_written, cost.gpus) == pytest.approx((rows, tokens, 0, gpus))
    assert found.wall_s is None


def made(wall_s: float | None, wave: int = 0, gpus: float = 2.0, rate: str = "stated", stage: str = "targets") -> Cost:
    return Cost(stage, "x", 10, 100.0, 1e3, wall_s, gpus, rate, wave=wave)


@pytest.mark.parametrize(
    ("walls", "side_by_side", "expected"),
    [
        ([(30.0, 0)] * 3, 1, 90.0),
        ([(30.0, 0)] * 3, 2, 45.0),
        ([(30.0, 0)] * 3, 8, 30.0),
        ([(10.0, 0), (20.0, 0), (60.0, 0)], 2, 60.0),
        ([(10.0, 0), (20.0, 0), (60.0, 1)], 8, 80.0),
        ([(10.0, 0), (20.0, 2), (30.0, 1)], 2, 60.0),
        ([(7.0, 0)], 0, 7.0),
        ([(10.0, 0), (None, 0)], 1, None),
        ([(10.0, 0), (None, 1)], 1, None),
    ],
)
def test_a_stage_takes_the_sum_of_its_waves(
    walls: list[tuple[float | None, int]], side_by_side: int, expected: float | None
) -> None:
    (found,) = by_stage([made(wall, wave) for wall, wave in walls], {"targets": side_by_side})
    assert found.wall_s == pytest.approx(expected)
    if expected:
        assert found.gpus == pytest.approx(2.0 * sum(wall or 0 for wall, _ in walls) / expected)


def test_a_stage_is_summed_over_what_is_not_done_and_alone_where_nothing_is_said() -> None:
    costs = [
        *[made(40.0), made(50.0, rate="measured"), made(0.0, rate="done"), made(5.0, stage="fused", gpus=0.0)],
        *[made(6.0, stage="fused", gpus=0.0), made(0.0, rate="done", stage="merged"), made(0.0, stage="corpus")],
    ]
    corpus, fused, targets = by_stage(costs, {"targets": 1})
    assert targets == Cost("targets", "2 of targets", 20, 200.0, 2e3, 90.0, 2.0, "measured, stated")
    assert fused == Cost("fused", "2 of fused", 20, 200.0, 2e3, 11.0, 0.0, "stated")
    assert corpus == Cost("corpus", "1 of corpus", 10, 100.0, 1e3, 0.0, 0.0, "stated")
    assert made(7200.0).gpu_hours == 4.0 and made(None).gpu_hours is None


def test_a_forecast_sums_its_stages_and_has_no_price_unless_one_is_given() -> None:
    stages = [made(3600.0), made(1800.0, gpus=0.0)]
    found = Forecast(BIG, CorpusSize(2, 3.0, "x"), {"pivot": ModelSize(1.0, 1.0)}, [], stages, [], None)
    assert (found.wall_s, found.gpu_hours, found.money) == (5400.0, 2.0, None)
    priced = replace(found, price_per_gpu_hour=0.0)
    assert priced.money == 0.0 and replace(found, price_per_gpu_hour=2.5).money == 5.0
    assert replace(found, stages=[made(None), made(3600.0)]).wall_s is None
    assert replace(found, stages=[made(None), made(3600.0)]).gpu_hours == 2.0
    plain = replace(found, price_per_gpu_hour=2.5, cluster=replace(BIG, disk_gib=float("inf"))).plain()
    assert (plain["wall_s"], plain["gpu_hours"], plain["money"]) == (5400.0, 2.0, 5.0)
    assert [stage["gpu_hours"] for stage in plain["stages"]] == [2.0, 0.0]
    assert plain["cluster"]["disk_gib"] is None and found.plain()["cluster"]["disk_gib"] == 5000
    assert found.corpus.tokens == 6.0


def test_a_time_is_measured_only_where_rows_were_made_and_are_to_be_made(tmp_path: Path) -> None:
    model = save_toy(tmp_path / "m", "llama", byte_level_tokenizer())
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    recipe = parse_recipe(
        {
            "name": "toy",
            "runs": str(tmp_path / "runs"),
            "pivot": {"model": model},
            "sources": [{"name": "math", "model": model}],
            "corpus": {"path": str(tmp_path / "chats.jsonl")},
        }
    )
    graph = {str(artifact): artifact for artifact in build_graph(recipe)}
    shard = ShardRecord("train/00000.parquet", 20, 1, "", {})
    for name, shards in (("fused/math", []), ("merged", [shard]), ("distributions/math", [shard, shard])):
        stale = replace(graph[name], settings={**graph[name].settings, "other": 1})
        write_manifest(stale, seconds=40.0, shards=shards)
    costs = {c.artifact: c for c in forecast(recipe, list_statuses(recipe), BIG, rows=100, tokens_per_row=10).costs}
    assert (costs["distributions/math"].wall_s, costs["distributions/math"].rate) == (100.0, "measured")
    assert (costs["fused/math"].rate, costs["merged"].rate, costs["corpus"].rate) == ("stated",) * 3
    write_manifest(graph["corpus"], seconds=1.0)
    (corpus,) = [c for c in forecast(recipe, list_statuses(recipe), BIG).costs if c.stage == "corpus"]
    assert corpus == Cost("corpus", "corpus", 0, 0.0, 0.0, 0.0, 0.0, "done")
