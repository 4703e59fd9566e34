"""The distribution a model gives at each answer position: its top-k, the tail, and the token that came."""

from dataclasses import dataclass

import numpy as np

from fusion_ray.errors import NonFiniteError

# Who teaches a position, as the column `chosen` of a fused set says it: 0 is the pivot, 1 and on are the sources, and
NO_TEACHER = -1  # only the token that really came, gold, counts there;
ANCHORED = -2  # the model that training starts from does, so that the target stays what it was there.
GOLD = "gold"  # How counts of `chosen` name NO_TEACHER.


@dataclass(frozen=True, eq=False)
class TopK:
    """Top-k distributions over T answer positions; row t is over the token that stands at answer position t.

    Attributes:
        ids_TK: Token ids, int32, most probable first; -1 where fewer than K were kept.
        logprobs_TK: Natural-log probabilities over the full vocabulary, float32; -inf where the id is -1.
        real_logprobs_T: Log-probability of the token that really came, kept or not, float32.
    """

    ids_TK: np.ndarray
    logprobs_TK: np.ndarray
    real_logprobs_T: np.ndarray

    def __len__(self) -> int:
        return len(self.real_logprobs_T)

    @property
    def tail_T(self) -> np.ndarray:
        """Mass outside the kept entries, float32 in [0, 1]."""
        kept_T = np.exp(self.logprobs_TK.astype(np.float64)).sum(axis=1)
        return np.clip(1.0 - kept_T, 0.0, 1.0).astype(np.float32)

    @property
    def nll_nats(self) -> float:
        """Negative log-likelihood of the answer, summed in float64."""
        return float(-self.real_logprobs_T.astype(np.float64).sum())

    def check(self, where: str) -> None:
        """Refuse NaN and positive log-probabilities.

        Raises:
            NonFiniteError: A log-probability is NaN, above 0, or the real token's is infinite.
        """
        if not np.isfinite(self.real_logprobs_T).all() or np.isnan(self.logprobs_TK).any():
            raise NonFiniteError(
                f"{where}: the model gave NaN or infinite log-probabilities; expected finite numbers. "
                "Check the model's weights and dtype (float16 overflows in some models; try bfloat16)."
            )
        if (self.logprobs_TK > 1e-3).any() or (self.real_logprobs_T > 1e-3).any():
            raise NonFiniteError(f"{where}: a log-probability is above 0; expected normalised log-probabilities.")


def bits_per_byte(nll_nats: float, n_bytes: int) -> float:
    """Convert a summed nll in nats over an answer of `n_bytes` UTF-8 bytes; inf where there are no bytes.

    >>> round(bits_per_byte(13.862944, 10), 6)
    2.0
    """
    return float("inf") if n_bytes == 0 else float(nll_nats / np.log(2.0) / n_bytes)
