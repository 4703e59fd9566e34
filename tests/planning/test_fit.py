"""What fits just so and what no longer does, each bound met exactly; and what is advised."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusion_ray.planning.costs import Cost
from fusion_ray.planning.fit import (
    distributions_side_by_side,
    find_problems,
    logits_gib,
    targets_side_by_side,
    training_gib,
)
from fusion_ray.planning.sizes import Cluster, CorpusSize, Gpu, ModelSize
from fusion_ray.recipe import Recipe, load_recipe

GIB = 2**30
RECIPE = Path(__file__).resolve().parents[2] / "jobs/recipes/fusechat_7b.yaml"
ROOMY = Cluster(cpus=96, gpus=8, gpu=Gpu(1e6, 1e12), memory_gib=1e6, object_store_gib=1e6, disk_gib=1e6)
CORPUS = CorpusSize(rows=10, tokens_per_row=512, source="x")
# 6 GiB of weights: 32 layers of 4,096 hidden units.
PARAMETERS = 12 * (128 * 32) ** 2 * 32


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe(RECIPE, ("runs=/r", *overrides))


def scored(name: str = "pivot", rate: str = "stated") -> Cost:
    return Cost("distributions", f"distributions/{name}", 1, 1.0, 0.0, 1.0, 1.0, rate, name)


def trained(rate: str = "stated") -> Cost:
    return Cost("targets", "targets/sft", 1, 1.0, 0.0, 1.0, 1.0, rate)


def problems(cost: Cost, *overrides: str, size: float | None = None, **cluster: Any) -> list[str]:
    """What is told of one artifact, with all models of one size."""
    sizes = dict.fromkeys(("pivot", "mixtral", "solar"), size and ModelSize(size, size))
    return find_problems(recipe_of(*overrides), CORPUS, sizes, [cost], replace(ROOMY, **cluster))


@pytest.mark.parametrize(
    ("gpus", "cpus", "told"),
    [
        (4, 6, []),
        (3, 6, ["2 actors of 2 GPUs need 4, the cluster has 3. Lower distributions.actors.min or gpus_per_actor."]),
        (4, 5, ["2 actors of 3 CPUs need 6, the cluster has 5. Lower distributions.actors.min or cpus_per_actor."]),
    ],
)
def test_the_smallest_pool_of_actors_needs_its_gpus_and_cpus(gpus: int, cpus: int, told: list[str]) -> None:
    pool = ("distributions.actors.min=2", "distributions.cpus_per_actor=3")
    assert problems(scored(), *pool, gpus=gpus, cpus=cpus) == [f"distributions: {text}" for text in told]


@pytest.mark.parametrize(
    ("gpus", "cpus", "told"),
    [
        (4, 6, []),
        (3, 6, ["2 workers of 2 GPUs need 4, the cluster has 3. Lower targets.workers, or add nodes."]),
        (4, 5, ["2 workers of 3 CPUs need 6, the cluster has 5. Lower targets.workers, or add nodes."]),
    ],
)
def test_the_workers_of_a_target_need_their_gpus_and_cpus(gpus: int, cpus: int, told: list[str]) -> None:
    group = ("targets.workers=2", "targets.gpus_per_worker=2", "targets.cpus_per_worker=3")
    assert problems(trained(), *group, gpus=gpus, cpus=cpus) == [f"targets: {text}" for text in told]


def test_what_is_done_or_not_in_the_plan_needs_no_room() -> None:
    none = {"gpus": 0, "cpus": 0, "gpu": Gpu(0, 1), "object_store_gib": 0.0, "disk_gib": 0.0}
    for cost in (scored(rate="done"), trained("done"), Cost("merged", "merged", 0, 0, 0, 1.0, 0, "stated")):
        assert problems(cost, "corpus.heldout=0", size=1e12, **none) == []
    report = Cost("report", "report", 0, 0, 0, 1.0, 0, "stated")
    assert problems(report) == []
    assert len(problems(report, "corpus.heldout=0")) == 1
    assert problems(replace(report, rate="done"), "corpus.heldout=0") == []


# A model of 10 GiB weights in 2 bytes each needs 20 GiB, 2 of logits and 1.5 of CUDA; here a GPU gives half of itself.
HALF = "distributions.engine={kind: vllm, gpu_memory_share: 0.5, tokens_per_batch: 4096}"


@pytest.mark.parametrize(
    ("memory", "tensor_parallel", "told"),
    [
        (47.0, 1, None),
        (46.9, 1, "10.7 B weights over 1 GPU(s) need 24 GiB on each, there are 23. Use tensor_parallel: 2 and "),
        (27.0, 1, "tensor_parallel: 2 and gpus_per_actor: 2."),
        (26.9, 1, "tensor_parallel: 4 and gpus_per_actor: 4."),
        (26.9, 2, "over 2 GPU(s) need 14 GiB on each, there are 13. Use tensor_parallel: 4 and gpus_per_actor: 4."),
        (27.0, 2, None),
        (16.9, 1, "tensor_parallel: 8 and gpus_per_actor: 8."),
        (9.5, 1, "tensor_parallel: 16 and gpus_per_actor: 16."),
        (9.4, 1, "Use larger GPUs."),
    ],
)
def test_the_weights_of_a_scorer_fit_or_the_parallelism_is_named_with_which_they_do(
    memory: float, tensor_parallel: int, told: str | None
) -> None:
    engine = f"{HALF[:-1]}, tensor_parallel: {tensor_parallel}}}"
    found = problems(scored(), engine, size=10 * GIB, gpu=Gpu(memory, 1e12))
    assert found == [] if told is None else (told in found[0] and found[0].startswith("distributions/pivot: "))


def test_a_model_s_own_engine_decides_whether_it_fits() -> None:
    tight = {"size": 10 * GIB, "gpu": Gpu(26.9, 1e12)}
    assert "Use tensor_parallel: 4" in problems(scored(), HALF, "pivot.engine={kind: vllm, tensor_parallel: 2, "
                                                "gpu_memory_share: 0.5}", **tight)[0]  # fmt: skip
    assert problems(scored(), HALF, "pivot.engine={kind: vllm, gpu_memory_share: 1.0}", **tight) == []
    assert problems(scored(), HALF, "pivot.engine={kind: openai, base_url: 'http://x/v1'}", **tight) == []
    server = ("pivot.engine={kind: openai, base_url: 'http://x/v1'}", "distributions.gpus_per_actor=0")
    assert problems(scored(), *server, size=10 * GIB, memory_gib=1) == []


@pytest.mark.parametrize(("memory", "fits"), [(23.5, True), (23.4, False)])
def test_transformers_takes_one_gpu_however_many_an_actor_has(memory: float, fits: bool) -> None:
    found = problems(scored(), "distributions.engine=transformers", size=10 * GIB, gpu=Gpu(memory, 1))
    assert (found == []) is fits


@pytest.mark.parametrize(("memory", "fits"), [(47.0, True), (46.6, False)])
def test_two_scorers_may_share_a_gpu_that_has_room_for_both(memory: float, fits: bool) -> None:
    half = ("distributions.engine=transformers", "distributions.gpus_per_actor=0.5")
    assert (problems(scored(), *half, size=10 * GIB, gpu=Gpu(memory, 1)) == []) is fits


def test_tensor_parallelism_may_be_all_of_an_actor_s_gpus_and_no_more() -> None:
    engine = "distributions.engine={{kind: vllm, tensor_parallel: {}}}"
    assert problems(scored(), engine.format(2)) == []
    for size in (None, 10 * GIB):
        assert problems(scored(), engine.format(3), size=size) == [
            "distributions/pivot: tensor_parallel 3 needs as many GPUs in one actor, gpus_per_actor is 2. Raise "
            "distributions.gpus_per_actor."
        ]


@pytest.mark.parametrize(("memory", "fits"), [(9.0, True), (8.9, False)])
def test_on_cpus_every_actor_of_the_smallest_pool_holds_the_weights_in_float32(memory: float, fits: bool) -> None:
    pool = ("distributions.gpus_per_actor=0", "distributions.actors.min=2")
    told = (
        "distributions/pivot: 1.1 B weights on CPUs need 9 GiB of memory, there are 9. Use GPUs "
        "(distributions.gpus_per_actor) or fewer actors."
    )
    assert problems(scored(), *pool, size=GIB, memory_gib=memory) == ([] if fits else [told])
    assert problems(scored(), *pool, size=None, memory_gib=0) == []


def test_logits_are_held_for_2048_positions_at_most() -> None:
    assert [logits_gib(tokens) for tokens in (1024, 2048, 4096)] == [1.0, 2.0, 2.0]


def test_three_shards_of_each_actor_fit_into_the_object_store() -> None:
    # 1,024 rows of 512 tokens, 4 bytes each and 4 more for each of the 70 % that are answer; four actors.
    needed = 6.8 * 3 * 4 / 2**11
    assert problems(scored(), object_store_gib=needed) == []
    assert problems(scored(), object_store_gib=needed * 0.99) == [
        "distributions: shards of 3 MiB for 4 actors need 0.0 GiB of object store, there are 0.0. Lower "
        "corpus.shard_rows or actors.max, or start Ray with more --object-store-memory."
    ]


def test_all_that_is_written_fits_on_the_disk() -> None:
    written = replace(trained(), bytes_written=3.0 * GIB)
    costs, sizes = [written, replace(written, rate="done")], {"pivot": None}
    assert find_problems(recipe_of(), CORPUS, sizes, costs, replace(ROOMY, disk_gib=6.0)) == []
    assert find_problems(recipe_of(), CORPUS, sizes, costs, replace(ROOMY, disk_gib=5.4)) == [
        "disk: the run writes about 6 GiB to /r/fusechat_7b (training checkpoints of 14 bytes a weight included), 5 "
        "are free. Set `runs` to a larger disk or a bucket."
    ]


# --- training --------------------------------------------------------------------------------------------------------
# Of 6 GiB weights: 2 bytes, 4 of gradient and 12 of optimizer each; 8,192 tokens of 4,096 units, 2 bytes in each of 32
# layers and 34 once (3.0625 GiB), or 34 in each layer (34 GiB); 1 GiB of logits.
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 6 * 18 / 8 + 3.0625 + 1),
        (["targets.gradient_checkpointing=false"], 6 * 18 / 8 + 34 + 1),
        (["targets.tokens_per_batch=4096"], 6 * 18 / 8 + 3.0625 / 2 + 1),
        (["targets.workers=1"], 6 * 18 + 3.0625 + 1),
        (["targets.zero_stage=2"], 6 * (2 + 16 / 8) + 3.0625 + 1),
        (["targets.zero_stage=1"], 6 * (6 + 12 / 8) + 3.0625 + 1),
        (["targets.zero_stage=0"], 6 * (6 + 12 / 8) + 3.0625 + 1),
        # In float32 the weights are their own masters, and activations take twice as much.
        (["targets.dtype=float32"], 6 * 16 / 8 + 6.125 + 1),
        (["targets.dtype=float32", "targets.zero_stage=1"], 6 * (8 + 8 / 8) + 6.125 + 1),
        (["targets.dtype=float32", "targets.zero_stage=0"], 6 * 16 + 6.125 + 1),
        (["targets.offload.optimizer=true"], 6 * 6 / 8 + 3.0625 + 1),
        (["targets.offload.optimizer=true", "targets.offload.parameters=true"], 6 * 4 / 8 + 3.0625 + 1),
        # An adapter of rank 64 trains 2 * 64 / 4,096 as much as all weights.
        (["targets.adapter={kind: lora, rank: 64}"], 6 * (2 + 16 / 32) / 8 + 3.0625 + 1),
        (["targets.adapter={kind: lora, rank: 2048}"], 6 * 18 / 8 + 3.0625 + 1),
        (["targets.adapter={kind: lora, rank: 4096}"], 6 * 18 / 8 + 3.0625 + 1),
    ],
)
def test_a_worker_holds_states_activations_and_logits(overrides: list[str], expected: float) -> None:
    assert training_gib(recipe_of(*overrides), PARAMETERS) == pytest.approx(expected)


def test_a_model_has_at_least_one_layer() -> None:
    # One layer of 128 units.
    expected = (1000 * 18 / 8 + 8192 * 128 * 36) / GIB + 1
    assert training_gib(recipe_of(), 1000) == pytest.approx(expected, rel=1e-12)


_CHANGES = ["gradient_checkpointing=True", "zero_stage=3", "tokens_per_batch=2048", "offload.optimizer=True"]


@pytest.mark.parametrize(
    ("room", "changes"),
    [
        *[(161.01, None), (160.99, 1), (37.26, 1), (37.24, 2), (26.76, 2), (26.74, 3), (15.27, 3), (15.26, 4)],
        *[(6.27, 4), (6.26, 0)],
    ],
)
def test_the_cheapest_change_is_advised_with_which_training_fits(room: float, changes: int | None) -> None:
    plain = ("targets.gradient_checkpointing=false", "targets.zero_stage=2", "targets.tokens_per_batch=32768")
    found = problems(trained(), *plain, size=PARAMETERS, gpu=Gpu(room + 1.5, 1e12))
    if changes is None:
        assert found == []
    elif changes == 0:
        assert found[0].endswith(" Use more workers or larger GPUs.")
    else:
        words = ", ".join(f"targets.{change}" for change in _CHANGES[:changes])
        assert found[0].endswith(f". Set {words}.")


def test_offloaded_parameters_stay_so_in_what_is_advised() -> None:
    plain = ("targets.tokens_per_batch=2048", "targets.offload.parameters=true")
    # Without weights on the GPU 6 * 4 / 8 and 1.765625 are left once the optimizer is away, too.
    found = problems(trained(), *plain, size=PARAMETERS, gpu=Gpu(4.77 + 1.5, 1e12))
    assert found[0].endswith("targets.offload.optimizer=True.")


@pytest.mark.parametrize(
    ("overrides", "cluster", "fits"),
    [
        # 17.5625 GiB for each of eight workers, and 1.5 of CUDA on a GPU.
        (["targets.gpus_per_worker=2"], {"gpus": 16, "gpu": Gpu(19.07, 1)}, True),
        (["targets.gpus_per_worker=2"], {"gpus": 16, "gpu": Gpu(19.05, 1)}, False),
        (["targets.gpus_per_worker=0.5"], {"gpu": Gpu(38.13, 1)}, True),
        (["targets.gpus_per_worker=0.5"], {"gpu": Gpu(38.11, 1)}, False),
        (["targets.gpus_per_worker=0"], {"memory_gib": 8 * 17.57}, True),
        (["targets.gpus_per_worker=0"], {"memory_gib": 8 * 17.55}, False),
    ],
)
def test_a_worker_has_its_part_of_a_gpu_or_of_the_memory(
    overrides: list[str], cluster: dict[str, Any], fits: bool
) -> None:
    found = problems(trained(), *overrides, size=PARAMETERS, **cluster)
    assert (found == []) is fits
    where = "worker's share of the memory" if "memory_gib" in cluster else "GPU"
    assert fits or f"need 18 GiB each, a {where} has 18. " in found[0]


def test_what_meets_the_room_of_a_worker_exactly_fits() -> None:
    # One layer of 128 units, so that every number is exact: 16,384 weights, 18 bytes each over 8 workers.
    needed = (16_384 * 18 / 8 + 8192 * 128 * 36) / GIB + 1
    on_cpus = "targets.gpus_per_worker=0"
    assert problems(trained(), on_cpus, size=16_384, memory_gib=8 * needed) == []
    assert len(problems(trained(), on_cpus, size=16_384, memory_gib=8 * needed * (1 - 1e-12))) == 1


@pytest.mark.parametrize(
    ("overrides", "cluster", "expected"),
    [
        ([], {}, 1),
        ([], {"gpus": 23}, 2),
        ([], {"gpus": 7}, 1),
        (["targets.gpus_per_worker=0.5"], {"gpus": 12}, 3),
        (["targets.gpus_per_worker=0"], {"cpus": 25}, 3),
        (["targets.gpus_per_worker=0", "targets.cpus_per_worker=4"], {"cpus": 25}, 1),
        (["targets.side_by_side=5"], {}, 5),
    ],
)
def test_as_many_targets_train_at_once_as_have_room(
    overrides: list[str], cluster: dict[str, int], expected: int
) -> None:
    assert targets_side_by_side(recipe_of(*overrides), replace(ROOMY, **cluster)) == expected


@pytest.mark.parametrize(
    ("overrides", "cluster", "expected"),
    [
        ([], {}, 1),  # Pools of four actors with two GPUs each.
        ([], {"gpus": 17}, 2),
        ([], {"gpus": 7}, 1),
        (["distributions.gpus_per_actor=0"], {"cpus": 15}, 3),
        (["distributions.gpus_per_actor=0", "distributions.cpus_per_actor=0"], {"cpus": 15}, 3),
        (["distributions.gpus_per_actor=0", "distributions.cpus_per_actor=2"], {"cpus": 16}, 2),
        (["distributions.gpus_per_actor=0"], {"cpus": 2}, 1),
    ],
)
def test_as_many_models_score_at_once_as_have_room_for_their_largest_pools(
    overrides: list[str], cluster: dict[str, int], expected: int
) -> None:
    assert distributions_side_by_side(recipe_of(*overrides), replace(ROOMY, **cluster)) == expected


def test_training_that_does_not_fit_says_how_much_it_needs() -> None:
    # 13.5 of states, 34 of activations, 1 of logits.
    plain = "targets.gradient_checkpointing=false"
    assert problems(trained(), plain, size=PARAMETERS, gpu=Gpu(40.0, 1e12)) == [
        "targets: 6.4 B weights under ZeRO 3 with 8 workers need 48 GiB each, a GPU has 38. Set "
        "targets.gradient_checkpointing=True."
    ]
    assert problems(trained(), plain, size=None, gpu=Gpu(0.0, 1e12)) == []
