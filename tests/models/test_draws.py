"""Draws in place of top-k: unbiased, of little variance, and the same for the same row."""

import numpy as np
import pytest
import torch
import toys.models as toy_models
from toys.models import FLOAT32

from fusion_ray.errors import EngineError, RecipeError
from fusion_ray.models.head import keep_draws, uniforms_of
from fusion_ray.models.opening import make_scorer
from fusion_ray.models.scorer import DrawSettings
from fusion_ray.models.transformers import TransformersScorer
from fusion_ray.recipe import OpenAIEngine, SampledStore, TransformersEngine, parse_recipe
from fusion_ray.storage.topk import TopK

VOCABULARY = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_models.save_toy(tmp_path_factory.mktemp("llama"), "llama", toy_models.byte_level_tokenizer())


def logits_of(positions: int, seed: int = 0, sharpness: float = 2.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(positions, VOCABULARY)).astype(np.float32)) * sharpness


def draw(logits_NV: torch.Tensor, uniforms_N: np.ndarray, k: int, n_tokens: int = VOCABULARY) -> TopK:
    real_ids_N = torch.zeros(len(logits_NV), dtype=torch.int64)
    kept = keep_draws(logits_NV, real_ids_N, torch.from_numpy(uniforms_N), k, n_tokens)
    return TopK(kept.ids_NK.numpy().astype(np.int32), kept.logprobs_NK.numpy(), kept.real_logprobs_N.numpy())


def dense(topk: TopK) -> np.ndarray:
    """The estimate of every token's probability, [positions, VOCABULARY]."""
    estimate = np.zeros((len(topk), VOCABULARY))
    for t, (ids, logprobs) in enumerate(zip(topk.ids_TK, topk.logprobs_TK, strict=True)):
        estimate[t, ids[ids >= 0]] = np.exp(logprobs[ids >= 0].astype(np.float64))
    return estimate


def naive_draws(probs_V: np.ndarray, uniform: float, k: int) -> np.ndarray:
    """Take tokens into the head while they exceed the threshold, then walk along the others in even steps."""
    head: list[int] = []
    rest = np.argsort(-probs_V, kind="stable").tolist()
    while rest and len(head) < k and probs_V[rest[0]] >= probs_V[rest].sum() / (k - len(head)):
        head.append(rest.pop(0))
    estimate_V = np.zeros(len(probs_V))
    estimate_V[head] = probs_V[head]
    threshold = probs_V[rest].sum() / max(1, k - len(head))
    for number in range(k - len(head)):
        mass = 0.0
        for token in sorted(rest):
            mass += probs_V[token]
            if (number + uniform) * threshold < mass:
                estimate_V[token] += threshold
                break
    return estimate_V


@pytest.mark.parametrize("k", [1, 4, 10, VOCABULARY])
@pytest.mark.parametrize("sharpness", [0.0, 0.3, 2.0, 8.0])
def test_draws_equal_a_naive_walk_along_the_tail(k: int, sharpness: float) -> None:
    logits_NV = logits_of(50, sharpness=sharpness)
    uniforms_N = np.random.default_rng(1).random(50)
    probs_NV = torch.softmax(logits_NV, dim=-1).double().numpy()
    want = np.array([naive_draws(probs, uniform, k) for probs, uniform in zip(probs_NV, uniforms_N, strict=True)])
    np.testing.assert_allclose(dense(draw(logits_NV, uniforms_N, k)), want, atol=1e-6)


def test_draws_are_unbiased_and_vary_less_than_draws_with_replacement() -> None:
    repeats, k = 20000, 10
    logits_V = logits_of(1)
    probs_V = torch.softmax(logits_V.double(), dim=-1)[0].numpy()
    estimate_RV = dense(draw(logits_V.expand(repeats, -1), np.random.default_rng(2).random(repeats), k))
    mean_V = estimate_RV.mean(axis=0)
    with_replacement_V = probs_V * (1 - probs_V) / k
    assert (np.abs(mean_V - probs_V) < 4.5 * np.sqrt(with_replacement_V / repeats)).all()
    assert estimate_RV.var(axis=0).sum() < 0.5 * with_replacement_V.sum()
    top_k = np.where(probs_V >= np.sort(probs_V)[-k], probs_V, 0)
    top_k /= top_k.sum()
    assert (np.abs(top_k - probs_V) > 4.5 * np.sqrt(with_replacement_V / repeats)).any(), "a bias passes this test"


def test_entries_fall_then_rise_by_id_are_met_once_and_sum_to_one() -> None:
    topk = draw(logits_of(50), np.random.default_rng(3).random(50), 20)
    topk.check("draws")
    for ids, logprobs in zip(topk.ids_TK, topk.logprobs_TK, strict=True):
        assert len(set(ids.tolist())) == 20
        order = list(zip(-logprobs, ids, strict=True))
        assert order == sorted(order)
        assert np.exp(logprobs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(topk.tail_T, 0, atol=1e-6)


def test_a_distribution_of_few_tokens_is_kept_whole_and_leaves_places_unused() -> None:
    logits_NV = torch.full((1, VOCABULARY), -torch.inf)
    logits_NV[0, [3, 7]] = torch.log(torch.tensor([0.25, 0.75]))
    topk = draw(logits_NV, np.array([0.5]), 5)
    assert topk.ids_TK.tolist() == [[7, 3, -1, -1, -1]]
    np.testing.assert_allclose(np.exp(topk.logprobs_TK), [[0.75, 0.25, 0, 0, 0]], atol=1e-6)


def test_rows_that_pad_the_output_head_are_never_drawn() -> None:
    topk = draw(logits_of(200, sharpness=0.1), np.random.default_rng(4).random(200), 20, n_tokens=30)
    assert topk.ids_TK.max() == 29
    assert topk.tail_T.mean() == pytest.approx(0.25, abs=0.02)


def test_a_token_s_number_depends_on_it_and_all_before_it_and_the_seed() -> None:
    ids_N = torch.arange(20_000) % 7
    numbers_N = uniforms_of(ids_N, seed=5)
    assert numbers_N.dtype == torch.float64 and float(numbers_N.min()) >= 0 and float(numbers_N.max()) < 1
    assert torch.equal(uniforms_of(ids_N[:50].int(), seed=5), numbers_N[:50])
    changed_N = ids_N.clone()
    changed_N[100] += 1
    assert ((uniforms_of(changed_N, seed=5) == numbers_N) == (torch.arange(20_000) < 100)).all()
    assert (uniforms_of(ids_N, seed=6) != numbers_N).all()
    counts = torch.histc(numbers_N, bins=20, min=0, max=1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 40  # chi square of 19 degrees: above with 0.3 %
    together = np.corrcoef(numbers_N[1:].numpy(), numbers_N[:-1].numpy())[0, 1]
    assert abs(together) < 0.025


def test_a_row_is_drawn_the_same_in_any_batch_and_otherwise_with_another_seed(folder):
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 600, length).astype(np.int32) for length in (40, 9, 80, 23)]
    positions = [np.arange(1, len(row)) for row in rows]
    sampling = DrawSettings(25, seed=7)
    scorer = TransformersScorer(
        folder, 4, engine=TransformersEngine(dtype="float32", tokens_per_batch=1), sampling=sampling
    )
    alone = scorer.score(rows, positions)
    batched = TransformersScorer(folder, 4, FLOAT32, sampling=sampling).score(rows[::-1], positions[::-1])[::-1]
    other = TransformersScorer(folder, 4, FLOAT32, sampling=DrawSettings(25, seed=8)).score(rows, positions)
    whole = TransformersScorer(folder, 4, FLOAT32).score(rows, positions)
    for one, two, three, exact in zip(alone, batched, other, whole, strict=True):
        assert one.ids_TK.shape == (len(exact), 25)
        assert (one.ids_TK == two.ids_TK).all(axis=1).mean() > 0.9  # a draw on an edge may fall to either side
        assert (one.ids_TK != three.ids_TK).any()
        np.testing.assert_allclose(one.real_logprobs_T, exact.real_logprobs_T, atol=1e-5)


def test_more_draws_than_the_tokenizer_has_tokens_are_refused(folder: str) -> None:
    with pytest.raises(
        EngineError, match=r"store\.draws is 601 and the tokenizer has 600 tokens\. Lower \S+store\.draws\."
    ):
        TransformersScorer(folder, 4, FLOAT32, sampling=DrawSettings(601))


def test_draws_need_an_engine_that_gives_whole_distributions(folder):
    with pytest.raises(EngineError, match=r"engine openai: draws need the whole distribution.*transformers"):
        make_scorer(OpenAIEngine(base_url="http://localhost:1"), folder, 4, sampling=DrawSettings(10))
    recipe = {
        "name": "x",
        "pivot": {"model": folder},
        "sources": [{"name": "big", "model": folder, "engine": {"kind": "openai", "base_url": "http://localhost:1"}}],
        "corpus": {"path": "chats.jsonl"},
        "distributions": {"store": {"kind": "sampled", "draws": 20}},
        "targets": {"tail": "sampled"},
    }
    with pytest.raises(RecipeError, match=r"sampled needs the engine vllm or transformers, and big has openai"):
        parse_recipe(recipe)
    recipe["sources"][0]["engine"] = "transformers"
    assert parse_recipe(recipe).distributions.store == SampledStore(draws=20)
    assert parse_recipe(recipe | {"fused": {"top_k": 20}}).fused.top_k == 20
    with pytest.raises(RecipeError, match=r"fused\.top_k is 19 and distributions\.store\.draws 20"):
        parse_recipe(recipe | {"fused": {"top_k": 19}})


@pytest.mark.parametrize(
    ("store", "tail"), [("sampled", "bucket"), ("sampled", "renormalise"), ("compact", "sampled"), ("plain", "sampled")]
)
def test_draws_are_stored_and_taught_together_or_not_at_all(store, tail):
    recipe = {
        "name": "x",
        "pivot": {"model": "one"},
        "sources": [{"name": "other", "model": "two"}],
        "corpus": {"path": "chats.jsonl"},
        "distributions": {"store": store},
        "targets": {"tail": tail},
    }
    with pytest.raises(
        RecipeError, match=rf"distributions\.store is {store} and targets\.tail is {tail}: .*both to sampled"
    ):
        parse_recipe(recipe)
