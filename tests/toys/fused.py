"""Small shards: fused sets made from a seed (two-turn chats of random tokens with random top-k), and scores by hand."""

import numpy as np
import pyarrow as pa

from fusion_ray.distributions.score import DISTRIBUTIONS_SCHEMA
from fusion_ray.fused.fuse import FUSED_SCHEMA

SCHEMA = FUSED_SCHEMA.insert(len(FUSED_SCHEMA) - 1, pa.field("n_bytes", pa.int32()))


def toy_fused(n_rows: int = 24, *, vocabulary: int = 300, k: int = 4, seed: int = 0, longest: int = 60) -> pa.Table:
    """A fused shard; row 3 is unusable, and some positions are gold only.

    Tokens follow a simple rule (the next id is mostly the former plus one), so that there is something to learn.
    """
    random = np.random.default_rng(seed)
    rows = [_row(random, number, vocabulary, k, longest) for number in range(n_rows)]
    if n_rows > 3:
        rows[3] = dict.fromkeys(SCHEMA.names) | {"id": "row-3", "reason": "made unusable for the test"}
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _row(random: np.random.Generator, number: int, vocabulary: int, k: int, longest: int) -> dict[str, object]:
    length = int(random.integers(16, longest))
    input_ids = (random.integers(vocabulary) + np.arange(length)) % vocabulary
    turn_starts, turn_lengths = [4, length // 2 + 3], [length // 2 - 4, length - length // 2 - 3]
    n = sum(turn_lengths)
    answer = np.concatenate([np.arange(s, s + m) for s, m in zip(turn_starts, turn_lengths, strict=True)])
    others_TK = np.stack([random.choice(vocabulary, k, replace=False) for _ in range(n)])
    others_TK[:, 0] = input_ids[answer]
    others_TK[:, 1:][others_TK[:, 1:] == others_TK[:, :1]] = -1
    share_TK = np.where(others_TK < 0, 0.0, np.array([0.6] + [0.3 / (k - 1)] * (k - 1)))
    with np.errstate(divide="ignore"):
        logprobs_TK = np.log(share_TK)
    return {
        "id": f"row-{number}",
        "domain": "odd" if number % 2 else "even",
        "input_ids": input_ids,
        "turn_starts": turn_starts,
        "turn_lengths": turn_lengths,
        "chosen": random.integers(-1, 2, n),
        "real_logprobs": np.full(n, np.log(0.6)),
        "topk_ids": others_TK.ravel(),
        "topk_logprobs": logprobs_TK.ravel(),
        "bits_per_byte": [-np.log2(0.6) / 3, 1.0],
        "n_bytes": 3 * n,
        "reason": None,
    }


def scored_shard(*rows: tuple[list[float], int] | None) -> pa.Table:
    """A distributions shard by the log-probabilities of its real tokens and its bytes; None is a rejected row."""
    return pa.Table.from_pylist(
        [
            {"id": str(n), "reason": "no"}
            if row is None
            else {"id": str(n), "real_logprobs": row[0], "n_bytes": row[1]}
            for n, row in enumerate(rows)
        ],
        schema=DISTRIBUTIONS_SCHEMA,
    )
