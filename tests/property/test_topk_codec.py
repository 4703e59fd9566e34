"""Laws of the compact store: exact ids, bounded error, falling rows, mass at most 1, for any distributions."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_ray.errors import CorruptArtifactError, NonFiniteError
from fusion_ray.storage.topk import TopK
from fusion_ray.storage.topk_codec import REAL_STEP_NATS, compact_topk, decode_topk, encode_topk, expand_topk


def random_topk(rng, positions: int, width: int, vocabulary: int, sharpness: float = 1.0, unused: float = 0.0) -> TopK:
    """Top-k of random full distributions; `sharpness` 0 is uniform, 20 nearly certain."""
    logits = rng.normal(size=(positions, vocabulary)) * sharpness
    logprobs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    logprobs -= logits.max(1, keepdims=True)
    ids = np.argsort(-logprobs, axis=1, kind="stable")[:, :width].astype(np.int32)
    kept = np.take_along_axis(logprobs, ids, 1).astype(np.float32)
    real = logprobs[np.arange(positions), rng.integers(0, vocabulary, positions)].astype(np.float32)
    for row in np.flatnonzero(rng.random(positions) < unused):
        first = rng.integers(0, width)
        ids[row, first:], kept[row, first:] = -1, -np.inf
    return TopK(ids, np.minimum(kept, 0), np.minimum(real, 0))


@st.composite
def distributions(draw) -> TopK:
    """Distributions of any shape, from flat to certain, with and without unused places."""
    vocabulary = draw(st.integers(1, 400))
    return random_topk(
        np.random.default_rng(draw(st.integers(0, 2**32))),
        draw(st.integers(1, 30)),
        draw(st.integers(1, vocabulary)),
        vocabulary,
        draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0])),
        draw(st.sampled_from([0.0, 0.3])),
    )


@settings(max_examples=150, deadline=None)
@given(distributions())
def test_decoding_gives_the_distributions_within_the_stated_error(topk):
    decoded = decode_topk(encode_topk(topk, np.array([len(topk)])))
    np.testing.assert_array_equal(decoded.ids_TK, topk.ids_TK)
    used = topk.ids_TK >= 0
    assert np.isneginf(decoded.logprobs_TK[~used]).all()
    assert np.abs(decoded.logprobs_TK[used].astype(np.float64) - topk.logprobs_TK[used]).max(initial=0) <= 0.01
    difference = np.abs(decoded.real_logprobs_T.astype(np.float64) - topk.real_logprobs_T)
    assert (difference <= REAL_STEP_NATS / 2 + 1e-7 * np.abs(topk.real_logprobs_T)).all()
    decoded.check("test")


@settings(max_examples=150, deadline=None)
@given(distributions())
def test_decoded_rows_fall_and_sum_to_at_most_one(topk):
    decoded = decode_topk(encode_topk(topk, np.array([len(topk)])))
    ordered = np.where(np.isneginf(decoded.logprobs_TK), -1e30, decoded.logprobs_TK)
    assert (np.diff(ordered, axis=1) <= 0).all()
    assert np.exp(decoded.logprobs_TK.astype(np.float64)).sum(axis=1).max() <= 1.0


def plain_table(topk: TopK, lengths: list[int | None]) -> pa.Table:
    """A shard as the stage makes it: lists, and null where a row is unusable."""
    width = topk.ids_TK.shape[1]
    ends = np.cumsum([length or 0 for length in lengths])
    rows = []
    for n, length in enumerate(lengths):
        part = slice(ends[n] - (length or 0), ends[n])
        arrays = (topk.real_logprobs_T[part], topk.ids_TK[part].reshape(-1), topk.logprobs_TK[part].reshape(-1))
        assert length is None or len(arrays[1]) == length * width
        rows.append((None, None, None) if length is None else arrays)
    real, ids, logprobs = zip(*rows, strict=True)
    return pa.table(
        {
            "id": [f"row{n}" for n in range(len(lengths))],
            "real_logprobs": pa.array(real, pa.list_(pa.float32())),
            "topk_ids": pa.array(ids, pa.list_(pa.int32())),
            "topk_logprobs": pa.array(logprobs, pa.list_(pa.float32())),
        }
    )


@pytest.mark.parametrize("lengths", [[3, None, 0, 7], [None, None, 10], [10], [0, 0, 10, None]])
def test_rows_keep_their_places_through_parquet(lengths):
    topk = random_topk(np.random.default_rng(1), 10, 5, 300, unused=0.2)
    plain = plain_table(topk, lengths)
    buffer = io.BytesIO()
    pq.write_table(compact_topk(plain), buffer, compression="zstd")
    back = expand_topk(pq.read_table(pa.BufferReader(buffer.getvalue())))
    assert back.schema.equals(plain.schema)
    assert back["topk_ids"].to_pylist() == plain["topk_ids"].to_pylist()
    for name in ("real_logprobs", "topk_logprobs"):
        for one, other in zip(back[name].to_pylist(), plain[name].to_pylist(), strict=True):
            assert (one is None) == (other is None)
            np.testing.assert_allclose(one or [], other or [], atol=0.01)


def test_a_shard_without_a_usable_row_survives():
    plain = plain_table(TopK(np.zeros((0, 4), np.int32), np.zeros((0, 4), np.float32), np.zeros(0, np.float32)), [None])
    assert expand_topk(compact_topk(plain)).equals(plain)


def test_a_plain_table_is_expanded_to_itself():
    plain = plain_table(random_topk(np.random.default_rng(2), 4, 3, 50), [4])
    assert expand_topk(plain) is plain


def test_equal_distributions_give_equal_bytes():
    topk = random_topk(np.random.default_rng(3), 50, 8, 500)
    one, other = encode_topk(topk, np.array([20, 30])), encode_topk(topk, np.array([20, 30]))
    assert all(one[name].equals(other[name]) for name in one)


def test_ids_need_more_than_two_bytes_and_survive():
    ids = np.arange(100_000, dtype=np.int32).reshape(-1, 1) * 2
    topk = TopK(ids, np.full(ids.shape, -1.0, np.float32), np.full(len(ids), -1.0, np.float32))
    columns = encode_topk(topk, np.array([len(ids)]))
    np.testing.assert_array_equal(decode_topk(columns).ids_TK, ids)
    assert any(columns["topk_id_2"][0].as_py())


def test_nan_is_refused():
    topk = TopK(np.zeros((1, 1), np.int32), np.full((1, 1), np.nan, np.float32), np.zeros(1, np.float32))
    with pytest.raises(NonFiniteError, match="compact store"):
        encode_topk(topk, np.array([1]))


def test_a_gap_that_two_bytes_cannot_hold_is_refused():
    topk = TopK(np.array([[0, 1]], np.int32), np.array([[0.0, -700.0]], np.float32), np.zeros(1, np.float32))
    with pytest.raises(NonFiniteError, match="700 nats below the one before; at most 642"):
        encode_topk(topk, np.array([1]))


def test_a_part_of_a_shard_is_refused_for_lack_of_its_dictionary():
    topk = random_topk(np.random.default_rng(4), 10, 5, 300)
    table = compact_topk(plain_table(topk, [5, 5]))
    with pytest.raises(CorruptArtifactError, match="read whole shards"):
        expand_topk(table.slice(1))


def test_columns_that_do_not_fit_together_are_refused():
    topk = random_topk(np.random.default_rng(5), 10, 5, 300)
    columns = encode_topk(topk, np.array([10]))
    other = encode_topk(random_topk(np.random.default_rng(5), 7, 5, 300), np.array([7]))
    with pytest.raises(CorruptArtifactError, match="do not fit together"):
        decode_topk(columns | {name: other[name] for name in ("topk_gap_0", "topk_gap_1")})
    with pytest.raises(CorruptArtifactError, match="topk_id_1 has 35 bytes, expected 50"):
        decode_topk(columns | {"topk_id_1": other["topk_id_1"]})
