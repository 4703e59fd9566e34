"""Draws in place of top-k: unbiased, the same for the same row, and stored without loss."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import toy_models

from fusion_ray.algorithms.topk import TopK
from fusion_ray.engines.head import keep_draws
from fusion_ray.engines.scorer import Sampling, make_scorer
from fusion_ray.engines.scoring import DISTRIBUTIONS_SCHEMA
from fusion_ray.engines.transformers import TransformersScorer
from fusion_ray.errors import CorruptArtifactError, EngineError, RecipeError
from fusion_ray.recipe import SampledStore, VllmEngine, parse_recipe
from fusion_ray.storage.draws_codec import read_draws, store_draws
from fusion_ray.storage.planes import REAL_STEP_NATS
from fusion_ray.storage.shards import read_shard, write_shard

VOCABULARY = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_models.save_toy(tmp_path_factory.mktemp("llama"), "llama", toy_models.byte_level_tokenizer())


def logits_of(positions: int, seed: int = 0, sharpness: float = 2.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(positions, VOCABULARY)).astype(np.float32)) * sharpness


def draw(logits_NV: torch.Tensor, uniforms_ND: np.ndarray, n_tokens: int = VOCABULARY) -> TopK:
    kept = keep_draws(
        logits_NV, torch.zeros(len(logits_NV), dtype=torch.int64), torch.from_numpy(uniforms_ND), n_tokens
    )
    return TopK(kept.ids_NK.numpy().astype(np.int32), kept.logprobs_NK.numpy(), kept.real_logprobs_N.numpy())


def dense(topk: TopK) -> np.ndarray:
    """The estimate of every token's probability, [positions, VOCABULARY]."""
    estimate = np.zeros((len(topk), VOCABULARY))
    for t, (ids, logprobs) in enumerate(zip(topk.ids_TK, topk.logprobs_TK, strict=True)):
        estimate[t, ids[ids >= 0]] = np.exp(logprobs[ids >= 0].astype(np.float64))
    return estimate


def naive_draws(probs_V: np.ndarray, uniforms_D: np.ndarray) -> np.ndarray:
    """One draw at a time: the first token up to which the mass exceeds the number."""
    counts_V = np.zeros(len(probs_V))
    for uniform in uniforms_D:
        mass = 0.0
        for token, probability in enumerate(probs_V):
            mass += probability
            if uniform < mass:
                counts_V[token] += 1
                break
    return counts_V / len(uniforms_D)


def test_draws_equal_a_naive_walk_through_the_distribution():
    logits_NV = logits_of(5)
    uniforms_ND = np.random.default_rng(1).random((5, 30))
    probs_NV = torch.softmax(logits_NV.double(), dim=-1).numpy()
    want = np.array([naive_draws(probs, row) for probs, row in zip(probs_NV, uniforms_ND, strict=True)])
    np.testing.assert_allclose(dense(draw(logits_NV, uniforms_ND)), want, atol=1e-6)


def test_shares_of_draws_are_unbiased_estimates_of_every_probability():
    repeats, draws = 4000, 10
    logits_V = logits_of(1)
    probs_V = torch.softmax(logits_V.double(), dim=-1)[0].numpy()
    uniforms = np.random.default_rng(2).random((repeats, draws))
    mean_V = dense(draw(logits_V.expand(repeats, -1), uniforms)).mean(axis=0)
    deviation_V = np.sqrt(probs_V * (1 - probs_V) / (repeats * draws))
    assert (np.abs(mean_V - probs_V) < 4.5 * deviation_V).all()
    top_k = np.where(probs_V >= np.sort(probs_V)[-draws], probs_V, 0)
    top_k /= top_k.sum()
    assert (np.abs(top_k - probs_V) > 4.5 * deviation_V).any(), "a biased estimate passes this test"


def test_places_fall_by_count_then_rise_by_id_and_add_up_to_all_draws():
    topk = draw(logits_of(50), np.random.default_rng(3).random((50, 64)))
    topk.check("draws")
    for ids, logprobs in zip(topk.ids_TK, topk.logprobs_TK, strict=True):
        used = ids >= 0
        assert np.isneginf(logprobs[~used]).all() and len(set(ids[used].tolist())) == used.sum()
        order = list(zip(-logprobs[used], ids[used], strict=True))
        assert order == sorted(order)
        assert np.exp(logprobs[used].astype(np.float64)).sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(topk.tail_T, 0, atol=1e-6)


def test_rows_that_pad_the_output_head_are_never_drawn():
    topk = draw(logits_of(200, sharpness=0.1), np.random.default_rng(4).random((200, 20)), n_tokens=30)
    assert topk.ids_TK.max() == 29
    assert topk.tail_T.mean() == pytest.approx(0.25, abs=0.02)


def test_a_row_is_drawn_the_same_in_any_batch_and_otherwise_with_another_seed(folder):
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 600, length).astype(np.int32) for length in (40, 9, 80, 23)]
    positions = [np.arange(1, len(row)) for row in rows]
    sampling = Sampling(25, seed=7)
    scorer = TransformersScorer(folder, 4, dtype="float32", tokens_per_batch=1, sampling=sampling)
    alone = scorer.score(rows, positions)
    batched = TransformersScorer(folder, 4, dtype="float32", sampling=sampling).score(rows[::-1], positions[::-1])[::-1]
    other = TransformersScorer(folder, 4, dtype="float32", sampling=Sampling(25, seed=8)).score(rows, positions)
    whole = TransformersScorer(folder, 4, dtype="float32").score(rows, positions)
    for one, two, three, exact in zip(alone, batched, other, whole, strict=True):
        assert one.ids_TK.shape == (len(exact), 25)
        assert (one.ids_TK == two.ids_TK).all(axis=1).mean() > 0.9  # a draw on an edge may fall to either side
        assert (one.ids_TK != three.ids_TK).any()
        np.testing.assert_allclose(one.real_logprobs_T, exact.real_logprobs_T, atol=1e-5)


def drawn_table(rows: int, draws: int, seed: int = 5) -> pa.Table:
    """A distributions shard of draws, as the stage has it before it is stored; row 1 was rejected."""
    rng = np.random.default_rng(seed)
    table = []
    for row in range(rows):
        if row == 1:
            table.append({"id": "row-1", "reason": "no answer"})
            continue
        topk = draw(logits_of(3 + row, seed + row), rng.random((3 + row, draws)))
        columns = {"topk_ids": topk.ids_TK.reshape(-1), "topk_logprobs": topk.logprobs_TK.reshape(-1)}
        table.append({"id": f"row-{row}", "real_logprobs": topk.real_logprobs_T, **columns})
    return pa.Table.from_pylist(table, schema=DISTRIBUTIONS_SCHEMA)


@pytest.mark.parametrize("draws", [1, 30, 600])
def test_stored_draws_read_back_exactly(draws):
    plain = drawn_table(6, draws)
    buffer = io.BytesIO()
    pq.write_table(store_draws(plain, draws), buffer, compression="zstd")
    back = read_draws(pq.read_table(buffer))
    assert set(back.column_names) == set(plain.column_names)
    assert back["reason"].to_pylist() == plain["reason"].to_pylist()
    for before, after in zip(plain.to_pylist(), back.to_pylist(), strict=True):
        if before["reason"]:
            assert after["topk_ids"] is None and after["real_logprobs"] is None
            continue
        error = np.abs(np.subtract(after["real_logprobs"], before["real_logprobs"]))
        assert (error <= REAL_STEP_NATS / 2 + 1e-6).all()
        n = len(before["real_logprobs"])
        ids, kept = (np.array(row["topk_ids"]).reshape(n, -1) for row in (before, after))
        logs, shares = (np.array(row["topk_logprobs"]).reshape(n, -1) for row in (before, after))
        assert kept.shape[1] <= ids.shape[1]
        np.testing.assert_array_equal(kept, ids[:, : kept.shape[1]])
        assert (ids[:, kept.shape[1] :] == -1).all()
        np.testing.assert_allclose(shares, logs[:, : kept.shape[1]], atol=1e-6)


def test_a_sampled_shard_reads_like_any_other(tmp_path):
    plain = drawn_table(4, 20)
    record = write_shard(str(tmp_path), "0.parquet", store_draws(plain, 20), "f")
    table = read_shard(str(tmp_path), record, ["id", "topk_ids"])
    assert table.column_names == ["id", "topk_ids"]
    assert table["id"].equals(plain["id"])


def test_a_part_of_a_sampled_shard_is_refused():
    with pytest.raises(CorruptArtifactError, match="read whole shards"):
        read_draws(store_draws(drawn_table(4, 20), 20).slice(2))


def test_draws_need_an_engine_that_gives_whole_distributions(folder):
    with pytest.raises(EngineError, match=r"engine vllm: draws need the whole distribution.*transformers"):
        make_scorer(VllmEngine(), folder, 4, sampling=Sampling(10))
    recipe = {
        "name": "x",
        "pivot": {"model": folder},
        "sources": [{"name": "big", "model": folder, "engine": "vllm"}],
        "corpus": {"path": "chats.jsonl"},
        "distributions": {"store": {"kind": "sampled", "draws": 20}},
        "targets": {"tail": "sampled"},
    }
    with pytest.raises(RecipeError, match=r"sampled needs the engine transformers, and big has vllm"):
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
