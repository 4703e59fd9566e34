"""What every setting is unless it is given, and the least and the most that it may be."""

import copy
from typing import Any

import pytest
import yaml

from fusion_ray.errors import RecipeError
from fusion_ray.recipe import Recipe, parse_recipe
from fusion_ray.recipe.merge_methods import METHODS

SMALL: dict[str, Any] = {
    "name": "small",
    "pivot": {"model": "models/pivot"},
    "sources": [{"name": "math", "model": "models/math"}],
    "corpus": {"path": "chats.jsonl"},
}
ASKED: dict[str, Any] = {
    "answers": {},
    "judge": {"base_url": "http://x/v1", "model": "m", "questions": "q"},
    "evaluate": {"tasks": ["arc"]},
}

DEFAULTS = """
name: small
seed: 0
runs: runs
pivot: {model: models/pivot, parameters: null, active_parameters: null, trust_remote_code: false, engine: null,
  template: null}
sources:
- {model: models/math, parameters: null, active_parameters: null, trust_remote_code: false, engine: null,
  template: null, name: math}
corpus: {path: chats.jsonl, heldout: 0.1, validation: 0.05, shard_rows: 512, max_rows: null, domain_column: domain,
  columns: {prompt: null, answer: null, id: id, domain: null},
  max_rejected: 0.01}
distributions:
  top_k: 10
  template: native
  engine: {kind: transformers, dtype: auto, tokens_per_batch: 8192, attention: null}
  actors: {min: 1, max: 1}
  cpus_per_actor: 1.0
  gpus_per_actor: 0.0
  nodes: null
  max_length: 2048
  too_long: cut
  store: {kind: compact}
  max_rejected: 0.01
  wait_s: 600.0
answers: {per_chat: 1, max_tokens: 512, unfinished: keep, temperature: 1.0}
fused:
  mode: pairwise
  align: {kind: bytes, inner_tail: unigram}
  choose: {kind: mince, level: sequence, unit: byte, trust: fitted}
  pivot_wins: gold
  top_k: null
  cpus_per_task: 1.0
  max_rejected: 0.01
targets:
  start: null
  rounds: 1
  lambda_: null
  lambda_end: null
  divergence: ce
  tail: bucket
  temperature: 1.0
  epochs: 3.0
  measure_every_steps: null
  keep: last
  early_stop: null
  learning_rate: 5.0e-06
  schedule: cosine
  warmup: 0.03
  weight_decay: 0.0
  betas: [0.9, 0.999]
  clip: 1.0
  tokens_per_step: 262144
  tokens_per_batch: 8192
  max_length: 2048
  dtype: bfloat16
  save_dtype: float32
  zero_stage: 2
  offload: {optimizer: false, parameters: false}
  deepspeed: null
  gradient_checkpointing: false
  adapter: null
  workers: 1
  cpus_per_worker: 1.0
  gpus_per_worker: 0.0
  nodes: null
  controls: [sft]
  side_by_side: null
  checkpoint_every_steps: 200
  trackers: []
  retries: 3
  wait_s: 600.0
merged:
  method: {kind: rescaled_sum, reach: null}
  base: null
  dtype: pivot
  shard_gib: 5.0
  block_mib: 1.0
report: {samples: 6, sample_tokens: 64, views: 4, bootstrap: 2000}
judge:
  base_url: http://x/v1
  model: m
  questions: q
  kinds: [single, pairwise]
  max_length: 4096
  answer_tokens: 1024
  judgment_tokens: 2048
  options: {}
  api_key_variable: OPENAI_API_KEY
  usd_per_million_input_tokens: null
  usd_per_million_output_tokens: null
  concurrency: 8
  timeout_s: 300.0
  retries: 5
evaluate:
  tasks:
  - {kind: harness, name: arc}
  folder: null
  few_shot: null
  limit: null
  chat_template: false
  batch_size: 8
  max_length: null
"""


def with_overrides(*overrides: str) -> Recipe:
    return parse_recipe(copy.deepcopy(SMALL | ASKED), overrides=overrides)


def test_every_setting_has_its_default() -> None:
    assert with_overrides().model_dump(mode="json") == yaml.safe_load(DEFAULTS)
    plain = parse_recipe(SMALL)
    assert (plain.answers, plain.judge, plain.evaluate) == (None, None, None)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (
            "distributions.engine=vllm",
            {"dtype": "auto", "tensor_parallel": 1, "gpu_memory_share": 0.85, "tokens_per_batch": 2048, "options": {}},
        ),
        (
            "distributions.engine={kind: openai, base_url: x}",
            {"base_url": "x", "served_model": None, "concurrency": 16, "timeout_s": 120, "retries": 5},
        ),
        ("distributions.store=plain", {}),
        ("fused.align=ms", {}),
        ("fused.choose=avgce", {"tau": 1.0, "unit": "byte"}),
        ("targets.adapter=lora", {"rank": 16, "alpha": 32.0, "dropout": 0.0, "modules": "all-linear"}),
    ],
)
def test_a_choice_has_its_own_defaults(setting: str, expected: dict[str, Any]) -> None:
    place, _, key = setting.partition("=")[0].partition(".")
    section = getattr(with_overrides(setting), place)
    assert getattr(section, key).model_dump(mode="json", exclude={"kind"}) == expected


@pytest.mark.parametrize(("key", "least", "most"), [("draws", 1, 1024), ("seed", 0, None)])
def test_draws_are_counted_and_seeded_from_the_least_on(key: str, least: int, most: int | None) -> None:
    def draw(value: int) -> None:
        with_overrides(f"distributions.store={{kind: sampled, {key}: {value}}}", "targets.tail=sampled")

    for value in (least, most or 2**40):
        draw(value)
    for value in (least - 1, *([most + 1] if most else [])):
        with pytest.raises(RecipeError):
            draw(value)


def test_draws_and_early_stops_have_their_own_defaults() -> None:
    drawn = with_overrides("distributions.store=sampled", "targets.tail=sampled").distributions.store
    assert drawn.model_dump() == {"kind": "sampled", "draws": 10, "seed": 0}
    stop = with_overrides("targets.early_stop={}").targets.early_stop
    assert stop is not None and stop.model_dump() == {"patience": 2, "min_gain": 0.0}


_DELTA = {"weight": 1.0, "normalize": False, "rescale": False, "lambda_": 1.0}
_SPARSE = _DELTA | {"density": 1.0}


@pytest.mark.parametrize(
    ("kind", "base", "passes", "parameters"),
    [
        ("varm", "required", 2, {"granularity": "matrix"}),
        ("rescaled_sum", "required", 2, {"reach": None}),
        ("linear", "none", 1, {"weight": 1.0, "normalize": True}),
        ("sce", "required", 4, {"select_topk": 1.0, "dialect": "paper"}),
        ("task_arithmetic", "required", 2, _DELTA),
        ("ties", "required", 4, _SPARSE | {"normalize": True}),
        ("dare_ties", "required", 2, _SPARSE | {"rescale": True}),
        ("dare_linear", "required", 2, _SPARSE | {"rescale": True}),
        ("della", "required", 2, _SPARSE | {"rescale": True, "epsilon": 0.15, "normalize": True}),
        ("della_linear", "required", 2, _SPARSE | {"rescale": True, "epsilon": 0.15}),
        ("breadcrumbs", "required", 6, _SPARSE | {"gamma": 0.01}),
        ("breadcrumbs_ties", "required", 6, _SPARSE | {"gamma": 0.01}),
        ("slerp", "a target", 2, {"t": 0.5}),
        ("nuslerp", "optional", 2, {"weight": 1.0, "nuslerp_flatten": True, "nuslerp_row_wise": False}),
        ("multislerp", "optional", 2, {"weight": 1.0, "normalize_weights": True, "eps": 1e-8}),
        ("karcher", "none", 2, {"max_iter": 10, "tol": 1e-5}),
        ("model_stock", "required", 2, {"filter_wise": False}),
        ("ram", "required", 1, {"epsilon": 1e-5}),
        ("ramplus_tl", "required", 2, {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}),
        ("nearswap", "required", 1, {"t": 0.25}),
        ("arcee_fusion", "required", 7, {}),
        ("passthrough", "none", 1, {"scale": 1.0}),
    ],
)
def test_a_merge_method_has_mergekit_s_defaults_and_reads_its_tensors_so_often(
    kind: str, base: str, passes: int, parameters: dict[str, Any]
) -> None:
    method = METHODS[kind](**({"t": 0.25} if kind == "nearswap" else {}))
    assert (method.base, method.passes) == (base, passes)
    assert method.model_dump(exclude={"kind"}) == parameters
    assert method.has_base is (base in ("required", "optional"))
    targets = ["math", "code"]
    spread = {"weight", "density", "epsilon", "gamma", "scale"} - ({"epsilon"} if "ram" in kind else set())
    expected = {key: (value,) * 2 if key in spread else value for key, value in parameters.items()}
    assert method.parameters(targets) == expected


def test_values_for_each_target_come_in_the_order_of_the_targets_and_for_all_of_them() -> None:
    def weights(value: Any) -> Any:
        return METHODS["linear"](weight=value).parameters(["math", "code"])["weight"]

    assert weights([1.0, 2.0]) == (1.0, 2.0)
    assert weights({"code": 2.0, "math": 1.0}) == (1.0, 2.0)
    for wrong in ([1.0], [1.0, 2.0, 3.0], {"math": 1.0}, {"math": 1.0, "code": 1.0, "law": 1.0}):
        with pytest.raises(RecipeError, match=r"merged\.method\.weight: "):
            weights(wrong)


TINY = 1e-9
BOUNDS = [  # A setting, the least that it may be and what is below, the most that it may be and what is above.
    ("seed", 0, -1, None, None),
    ("pivot.parameters", TINY, 0, None, None),
    ("pivot.active_parameters", TINY, 0, None, None),
    ("sources.math.engine={kind: vllm, tensor_parallel: $}", 1, 0, None, None),
    ("sources.math.engine={kind: vllm, gpu_memory_share: $}", TINY, 0, 1, 1.01),
    ("sources.math.engine={kind: vllm, tokens_per_batch: $}", 1, 0, None, None),
    ("sources.math.engine={kind: transformers, tokens_per_batch: $}", 1, 0, None, None),
    *[
        (f"sources.math.engine={{kind: openai, base_url: x, {key}: $}}", least, below, None, None)
        for key, least, below in (("concurrency", 1, 0), ("timeout_s", TINY, 0), ("retries", 0, -1))
    ],
    ("corpus.heldout", 0, -TINY, 0.94, 1),
    ("corpus.validation", 0, -TINY, 0.89, 1),
    ("corpus.shard_rows", 1, 0, None, None),
    ("corpus.max_rows", 1, 0, None, None),
    ("corpus.max_rejected", 0, -TINY, 0.999, 1),
    ("distributions.top_k", 1, 0, 1024, 1025),
    ("distributions.actors={min: 1, max: $}", 1, 0, None, None),
    ("distributions.actors={max: 9, min: $}", 1, 0, 9, 10),
    ("distributions.cpus_per_actor", 0, -TINY, None, None),
    ("distributions.gpus_per_actor", 0, -TINY, None, None),
    ("distributions.max_length", 8, 7, None, None),
    ("distributions.max_rejected", 0, -TINY, 0.999, 1),
    ("distributions.wait_s", TINY, 0, None, None),
    ("answers.per_chat", 1, 0, 64, 65),
    ("answers.max_tokens", 1, 0, None, None),
    ("answers.temperature", TINY, 0, None, None),
    ("fused.top_k", 1, 0, 1024, 1025),
    ("fused.choose={kind: avgce, tau: $}", TINY, 0, None, None),
    ("fused.choose={kind: mince, trust: $}", TINY, 0, 1, 1.01),
    ("fused.cpus_per_task", TINY, 0, None, None),
    ("fused.max_rejected", 0, -TINY, 0.999, 1),
    ("targets.lambda_", 0, -TINY, 1, 1.01),
    ("targets.lambda_end", 0, -TINY, 1, 1.01),
    *[
        (f"targets.{key}", TINY, 0, None, None)
        for key in ("temperature", "epochs", "learning_rate", "clip", "cpus_per_worker", "wait_s")
    ],
    *[
        (f"targets.{key}", 1, 0, None, None)
        for key in ("rounds", "measure_every_steps", "workers", "side_by_side", "checkpoint_every_steps")
    ],
    ("targets.early_stop={patience: $}", 1, 0, None, None),
    ("targets.early_stop={min_gain: $}", 0, -TINY, None, None),
    ("targets.warmup", 0, -TINY, 0.999, 1),
    ("targets.weight_decay", 0, -TINY, None, None),
    ("targets.tokens_per_step", 16, 15, None, None),
    ("targets.tokens_per_batch", 16, 15, None, None),
    ("targets.max_length", 8, 7, None, None),
    ("targets.zero_stage", 0, -1, 3, 4),
    ("targets.adapter={rank: $}", 1, 0, None, None),
    ("targets.adapter={alpha: $}", TINY, 0, None, None),
    ("targets.adapter={dropout: $}", 0, -TINY, 0.999, 1),
    ("targets.gpus_per_worker", 0, -TINY, None, None),
    ("targets.retries", 0, -1, None, None),
    ("merged.shard_gib", TINY, 0, None, None),
    ("merged.block_mib", TINY, 0, None, None),
    ("merged.method={kind: sce, select_topk: $}", 0, -TINY, 1, 1.01),
    ("merged.method={kind: multislerp, eps: $}", TINY, 0, None, None),
    ("merged.method={kind: karcher, max_iter: $}", 0, -1, None, None),
    ("merged.method={kind: karcher, tol: $}", TINY, 0, None, None),
    ("merged.method={kind: ram, epsilon: $}", 0, -TINY, None, None),
    ("merged.method={kind: ramplus_tl, epsilon: $}", 0, -TINY, None, None),
    ("report.samples", 0, -1, None, None),
    ("report.sample_tokens", 1, 0, None, None),
    ("report.views", 0, -1, None, None),
    ("report.bootstrap", 100, 99, None, None),
    ("judge.max_length", 8, 7, None, None),
    *[(f"judge.{key}", 1, 0, None, None) for key in ("answer_tokens", "judgment_tokens", "concurrency")],
    *[(f"judge.usd_per_million_{kind}_tokens", 0, -TINY, None, None) for kind in ("input", "output")],
    ("judge.timeout_s", TINY, 0, None, None),
    ("judge.retries", 0, -1, None, None),
    ("evaluate.few_shot", 0, -1, None, None),
    ("evaluate.limit", 1, 0, None, None),
    ("evaluate.batch_size", 1, 0, None, None),
    ("evaluate.max_length", 8, 7, None, None),
]


@pytest.mark.parametrize(("setting", "least", "below", "most", "above"), BOUNDS)
def test_a_setting_may_be_its_least_and_its_most_and_nothing_beyond(
    setting: str, least: float, below: float, most: float | None, above: float | None
) -> None:
    def said(value: float | None) -> str:
        return setting.replace("$", f"{value:.9f}" if isinstance(value, float) else str(value)) + (
            "" if "$" in setting else f"={value:.9f}" if isinstance(value, float) else f"={value}"
        )

    for value in (least, most):
        if value is not None:
            with_overrides(said(value))
    for value in (below, above):
        if value is not None:
            with pytest.raises(RecipeError):
                with_overrides(said(value))


@pytest.mark.parametrize(
    "empty", ["sources=[]", "judge.kinds=[]", "evaluate.tasks=[]", "evaluate.tasks=[{kind: harness, name: ''}]"]
)
def test_a_list_that_must_hold_something_is_not_empty(empty: str) -> None:
    with pytest.raises(RecipeError):
        with_overrides(empty)
    with_overrides("judge.kinds=[single]", "evaluate.tasks=[{kind: harness, name: a}]")


DRAWN = ("targets.tail=sampled", "distributions.store={kind: sampled, draws: 8}")


def test_draws_come_from_whole_distributions_are_taught_as_such_and_not_cut() -> None:
    server = "{kind: openai, base_url: x}"
    for place in ("sources.math.engine", "distributions.engine", "pivot.engine"):
        with pytest.raises(RecipeError, match="sampled needs the engine vllm or transformers"):
            with_overrides(*DRAWN, f"{place}={server}")
    own = ("pivot.engine=transformers", "sources.math.engine=vllm")
    with_overrides(*DRAWN, f"distributions.engine={server}", *own)
    with_overrides(f"distributions.engine={server}")
    with_overrides(*DRAWN)
    with pytest.raises(RecipeError, match="a top-k is not drawn"):
        with_overrides(DRAWN[0])
    with pytest.raises(RecipeError, match="shares of draws are no top-k"):
        with_overrides(DRAWN[1])
    with pytest.raises(RecipeError, match=r"fused.top_k is 7 and distributions.store.draws 8"):
        with_overrides(*DRAWN, "fused.top_k=7")
    with_overrides(*DRAWN, "fused.top_k=8")
    with_overrides("fused.top_k=7")
    for beyond in ("targets.divergence=rkl", "targets.divergence=jsd", "targets.temperature=1.5"):
        with pytest.raises(RecipeError, match="without bias only under divergence ce or kl and temperature 1"):
            with_overrides(*DRAWN, beyond)
    with_overrides(*DRAWN, "targets.divergence=kl")
    with_overrides("targets.divergence=jsd", "targets.temperature=1.5")


@pytest.mark.parametrize(
    ("share", "heldout", "validation"), [(True, 0.5, 0.49), (False, 0.5, 0.5), (False, 0.6, 0.5), (True, 0.0, 0.0)]
)
def test_something_is_left_to_train_on(share: bool, heldout: float, validation: float) -> None:
    corpus = f"corpus={{path: x, heldout: {heldout}, validation: {validation}}}"
    if share:
        with_overrides(corpus)
    else:
        with pytest.raises(RecipeError, match="leave nothing to train on"):
            with_overrides(corpus)


@pytest.mark.parametrize("trust", ["true", "-0.5", "[1]", "often", "2"])
def test_trust_is_fitted_or_a_share_above_nothing(trust: str) -> None:
    with pytest.raises(RecipeError, match="expected fitted, or a number above 0 and at most 1"):
        with_overrides(f"fused.choose.trust={trust}")


@pytest.mark.parametrize("name", ["pivot", "merged", "multi", "answers", "oracle", "gold", "sft", "self", "round-12"])
def test_names_that_a_run_has_itself_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"'{name}' is reserved"):
        with_overrides(f"sources.math.name={name}")
    for free in (f"{name}x", f"x{name}"):
        with_overrides(f"sources.math.name={free}")


def test_equal_sections_have_equal_hashes_however_their_options_are_ordered() -> None:
    first, second = (
        with_overrides(f"distributions.engine={{kind: vllm, options: {options}}}").distributions
        for options in ("{a: 1, b: 2}", "{b: 2, a: 1}")
    )
    assert first == second and hash(first) == hash(second)


def test_a_choice_keeps_its_kind_in_every_dump_but_one_that_leaves_it_out() -> None:
    store = with_overrides("distributions.store={kind: sampled, seed: 3}", "targets.tail=sampled").distributions.store
    assert store.model_dump(exclude_defaults=True) == {"kind": "sampled", "seed": 3}
    assert store.model_dump(exclude_unset=True) == {"kind": "sampled", "seed": 3}
    assert store.model_dump(exclude_defaults=True, exclude={"kind"}) == {"seed": 3}
    assert store.model_dump(exclude_defaults=True, include={"seed"}) == {"seed": 3}
    assert store.model_dump(exclude_defaults=True, include={"kind", "seed"}) == {"kind": "sampled", "seed": 3}
    assert store.model_dump(exclude={"kind"}) == {"draws": 10, "seed": 3}
    assert list(store.model_dump()) == ["kind", "draws", "seed"]
    assert with_overrides("corpus.heldout=0.2").corpus.model_dump(exclude_defaults=True) == {
        "path": "chats.jsonl", "heldout": 0.2,
    }  # fmt: skip


def test_an_error_names_its_place_and_what_was_given_and_not_what_only_follows_from_it() -> None:
    def message(*overrides: str, **sections: Any) -> str:
        with pytest.raises(RecipeError) as error:
            parse_recipe(copy.deepcopy(SMALL | sections), overrides=overrides)
        return str(error.value)

    assert message("seed=-1") == "recipe: seed: Input should be greater than or equal to 0 (got -1)"
    assert message("sources.math.name=pivot").startswith("recipe: sources: the name 'pivot' is reserved")
    assert message("corpus.heldot=1").startswith("recipe: corpus: unknown key 'heldot' (did you mean 'heldout'?); ")
    assert "got" not in message("corpus.heldot=1")
    too_short = message(sources=[])
    assert too_short.startswith("recipe: sources: ") and "at least 1 item" in too_short
    wrong_too = message(sources=[{"name": "a b", "model": "m"}], evaluate={"tasks": []})
    assert "pattern" in wrong_too and "at least 1 item" not in wrong_too


@pytest.mark.parametrize(
    ("override", "expected"), [("name=1e5x", "1e5x"), ("seed=1e1", 10), ("seed=12", 12), ("answers=", None)]
)
def test_what_is_set_is_read_as_yaml_and_as_a_number_where_it_is_one(override: str, expected: Any) -> None:
    assert getattr(with_overrides(override), override.partition("=")[0]) == expected
