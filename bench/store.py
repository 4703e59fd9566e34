"""Bytes a token, error and speed of the compact store on a real model's distributions, beside plain lists.

    python bench/store.py            Gemma-3-270M (262,144 tokens), 10,000 answer positions
    python bench/store.py smollm2 8000

The peer is what a straightforward program stores: int32 ids and float16 log-probabilities as Parquet lists, zstd.
Scoring takes minutes on a CPU; its result is kept in the cache folder of bench/real_models.py.
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from chats import chats
from measurement import Measurement, report
from real_models import cache_folder, real_model

from fusion_ray.chat import render_all
from fusion_ray.models.folders import load_tokenizer
from fusion_ray.models.transformers import TransformersScorer
from fusion_ray.recipe import TransformersEngine
from fusion_ray.storage.topk import TopK
from fusion_ray.storage.topk_codec import decode_topk, encode_topk


def main(name: str, positions: int) -> None:
    """Measure k = 10 and k = 50."""
    saved = np.load(_distributions(name, positions))
    for k, goal in ((10, 34.0), (50, 115.0)):
        topk = TopK(saved["ids"][:, :k].copy(), saved["logprobs"][:, :k].copy(), saved["real"])
        _measure(f"{name} k={k}", topk, saved["lengths"], goal)


def _measure(case: str, topk: TopK, lengths_N: np.ndarray, goal: float) -> None:
    columns = encode_topk(topk, lengths_N)
    decoded = decode_topk(columns)
    if not np.array_equal(decoded.ids_TK, topk.ids_TK):
        raise SystemExit("the ids came back changed")
    ours, peer = _parquet_bytes(columns) / len(topk), _parquet_bytes(_plain_lists(topk, lengths_N)) / len(topk)
    report(_compare(case, "bytes per answer token", ours, peer, f"<= {goal}", ours <= goal))
    error = float(np.abs(decoded.logprobs_TK.astype(np.float64) - topk.logprobs_TK).max())
    half = np.where(np.isneginf(topk.logprobs_TK), 0, topk.logprobs_TK)
    peer_error = float(np.abs(half.astype(np.float16).astype(np.float64) - half).max())
    report(_compare(case, "largest error in nats", error, peer_error, "<= 0.01", error <= 0.01))
    real_error = float(np.abs(decoded.real_logprobs_T.astype(np.float64) - topk.real_logprobs_T).max())
    report(Measurement("store", case, "largest error of the real token in nats", real_error))
    encode = len(topk) / _best_seconds(lambda: encode_topk(topk, lengths_N))
    peer_encode = len(topk) / _best_seconds(lambda: _plain_lists(topk, lengths_N))
    report(_compare(case, "positions encoded per second", encode, peer_encode, ">= 200000", encode >= 200_000))
    decode = len(topk) / _best_seconds(lambda: decode_topk(columns))
    report(Measurement("store", case, "positions decoded per second", decode, goal=">= 200000", holds=decode >= 2e5))


def _compare(case: str, unit: str, ours: float, peer: float, goal: str, holds: bool) -> Measurement:
    return Measurement("store", case, unit, ours, peer, "int32 and float16 lists", ours / peer, goal, holds)


def _parquet_bytes(columns: dict[str, pa.Array]) -> int:
    """Size of the file that the pipeline's own settings write."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd", compression_level=3, use_dictionary=True)
    return len(buffer.getvalue())


def _plain_lists(topk: TopK, lengths_N: np.ndarray) -> dict[str, pa.Array]:
    ends = np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int32)
    width = topk.ids_TK.shape[1]
    wide = pa.array(ends * width)
    return {
        "real": pa.ListArray.from_arrays(pa.array(ends), pa.array(topk.real_logprobs_T.astype(np.float16))),
        "ids": pa.ListArray.from_arrays(wide, pa.array(topk.ids_TK.reshape(-1))),
        "logprobs": pa.ListArray.from_arrays(wide, pa.array(topk.logprobs_TK.reshape(-1).astype(np.float16))),
    }


def _best_seconds(work: Callable[[], object], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _distributions(name: str, positions: int) -> Path:
    path = cache_folder() / "distributions" / f"{name}-{positions}.npz"
    if path.is_file():
        return path
    folder = real_model(name)
    tokenizer = load_tokenizer(folder)
    rows = render_all(tokenizer, chats(), "native" if tokenizer.chat_template else "plain")
    counts = np.cumsum([len(row.positions) for row in rows])
    rows = rows[: int(np.searchsorted(counts, positions)) + 1]
    scorer = TransformersScorer(folder, 50, engine=TransformersEngine(tokens_per_batch=2048))
    scored = scorer.score([row.input_ids for row in rows], [row.positions for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        ids=np.concatenate([row.ids_TK for row in scored]),
        logprobs=np.concatenate([row.logprobs_TK for row in scored]),
        real=np.concatenate([row.real_logprobs_T for row in scored]),
        lengths=[len(row) for row in scored],
    )
    return path


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "gemma3", int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
