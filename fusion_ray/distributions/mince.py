"""Which model knows a chat best: MinCE (FuseLLM) on the models' scores of its answer."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusion_ray.distributions.score import flat_values
from fusion_ray.errors import NonFiniteError


def pick_mince(bits_per_byte_MN: np.ndarray) -> np.ndarray:
    """Choose for each example the model that fits its answer best (MinCE).

    Row 0 is the pivot, and a tie goes to the lower row: the pivot wins ties. With several sources this is FuseLLM's
    "Multi".

    Args:
        bits_per_byte_MN: nll of the answer over ln 2 and its UTF-8 bytes; NaN or inf where a model has no score.

    Returns:
        Row of the chosen model for each example, int64 [N].

    Raises:
        NonFiniteError: An example that no model has scored; ask `has_score` first.

    Source: MinCE, FuseLLM, arXiv 2401.10491. Differs: the paper compares nats per each model's own token; pass those
    instead of bits per byte to reproduce it.

    >>> pick_mince(np.array([[2.0, 1.5], [1.0, 1.5]], dtype=np.float32)).tolist()
    [1, 0]
    """
    return np.argmin(finite_or_worst(bits_per_byte_MN), axis=0)


def has_score(bits_per_byte_MN: np.ndarray) -> np.ndarray:
    """Whether any model has scored the example, bool [N]; the others are to be rejected.

    >>> has_score(np.array([[np.nan, np.inf], [1.0, np.nan]], dtype=np.float32)).tolist()
    [True, False]
    """
    return np.isfinite(bits_per_byte_MN).any(axis=0)


def finite_or_worst(scores_MN: np.ndarray) -> np.ndarray:
    """Scores in float32, infinite where a model has none, so that it loses.

    Raises:
        NonFiniteError: An example that no model has scored.
    """
    known_N = has_score(scores_MN)
    if not known_N.all():
        raise NonFiniteError(
            f"example {int(np.argmin(known_N))}: no model has scored it (NaN or infinity in all {len(scores_MN)} "
            "rows); expected at least one finite score. Reject such rows before choosing."
        )
    return np.where(np.isfinite(scores_MN), scores_MN, np.inf).astype(np.float32)


def best_known(scored: Mapping[str, pa.Table], source: str) -> np.ndarray:
    """Rows whose answer the source gives the fewest bits per byte, int64; a tie goes to the model that comes first.

    Args:
        scored: The same shard's distributions by model, the pivot's first; n_bytes, real_logprobs and reason are read.
        source: One of the models.
    """
    scores_MN = np.array([_bits_per_byte(table) for table in scored.values()], dtype=np.float32)
    known_N = has_score(scores_MN)
    best_N = pick_mince(np.where(known_N, scores_MN, 0.0))
    return np.flatnonzero(known_N & (best_N == list(scored).index(source)))


def _bits_per_byte(table: pa.Table) -> np.ndarray:
    lengths_N = pc.fill_null(pc.list_value_length(table["real_logprobs"]), 0).to_numpy()
    row_T = np.repeat(np.arange(len(table)), lengths_N)
    nll_N = -np.bincount(row_T, flat_values(table, "real_logprobs", np.float64), len(table))
    n_bytes_N = pc.fill_null(table["n_bytes"], 0).to_numpy()
    usable_N = table["reason"].is_null().to_numpy() & (n_bytes_N > 0)
    return np.divide(nll_N, n_bytes_N * np.log(2.0), out=np.full(len(table), np.nan), where=usable_N)
