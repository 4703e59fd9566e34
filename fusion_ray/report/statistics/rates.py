"""Bits per byte of several models over the same documents, by domain and overall."""

from typing import NamedTuple

import numpy as np

OVERALL = "overall"


class Scores(NamedTuple):
    """What M models made of N documents.

    Attributes:
        models: Their names.
        nll_MN: nll of every document in nats, float64, over the same bytes for all models.
        bytes_N: Bytes of every document, int64, at least 1.
        domains_N: Domain of every document; none is called `overall`.
    """

    models: tuple[str, ...]
    nll_MN: np.ndarray
    bytes_N: np.ndarray
    domains_N: np.ndarray

    def row(self, model: str) -> np.ndarray:
        """The nll of one model over the documents."""
        values: np.ndarray = self.nll_MN[self.models.index(model)]
        return values

    def with_model(self, name: str, nll_N: np.ndarray) -> "Scores":
        """The same documents with one more model."""
        return self._replace(models=(*self.models, name), nll_MN=np.vstack([self.nll_MN, nll_N]))


def measure_rates(scores: Scores) -> dict[str, dict[str, float]]:
    """Bits per byte of every model by domain, and `overall`: the mean of the domains.

    A domain's rate is its bits over its bytes. `overall` gives every domain the same say, however long it is.
    """
    masks = {str(domain): scores.domains_N == domain for domain in sorted(set(scores.domains_N.tolist()))}
    bits_MN = scores.nll_MN / np.log(2.0)
    rates = {}
    for row, model in enumerate(scores.models):
        by_domain = {domain: _rate(bits_MN[row, mask], scores.bytes_N[mask]) for domain, mask in masks.items()}
        rates[model] = by_domain | {OVERALL: float(np.mean(list(by_domain.values())))}
    return rates


def measure_micro_rates(scores: Scores) -> dict[str, float]:
    """Bits per byte of every model over all bytes alike, whatever their domain."""
    bits_MN = scores.nll_MN / np.log(2.0)
    return {model: _rate(bits_MN[row], scores.bytes_N) for row, model in enumerate(scores.models)}


def _rate(bits_N: np.ndarray, bytes_N: np.ndarray) -> float:
    return float(bits_N.sum() / bytes_N.sum())
