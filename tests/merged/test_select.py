"""Exact selection by rank against a stable sort, with many ties, however the tensor is cut."""

from collections.abc import Iterator

import numpy as np
import pytest

from fusion_ray.merged.methods.draws import key_of, uniform
from fusion_ray.merged.methods.select import Selection, find_cuts

RNG = np.random.default_rng(1)


def select(scores_JRC: np.ndarray, counts: list[int], largest: bool, rows: int) -> np.ndarray:
    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, scores_JRC.shape[1], rows):
            yield scores_JRC[:, start : start + rows]

    selection = Selection(find_cuts(blocks, counts, largest=largest), largest=largest)
    return np.concatenate([selection.take(block) for block in blocks()], axis=1)


def sort_and_take(scores: np.ndarray, count: int, largest: bool) -> np.ndarray:
    taken = np.zeros(scores.size, dtype=bool)
    order = np.argsort(-scores.ravel() if largest else scores.ravel(), kind="stable")
    taken[order[:count]] = True
    return taken.reshape(scores.shape)


@pytest.mark.parametrize("kind", ["distinct", "few values", "all zero", "tiny", "wide"])
@pytest.mark.parametrize("largest", [True, False])
def test_a_selection_is_a_stable_sorts(kind: str, largest: bool) -> None:
    scores_JRC = np.abs(RNG.normal(size=(3, 20, 7))).astype(np.float32)
    if kind == "few values":
        scores_JRC = np.floor(scores_JRC * 2)
    elif kind == "all zero":
        scores_JRC[...] = 0
    elif kind == "tiny":
        scores_JRC *= np.float32(1e-42)
    elif kind == "wide":
        scores_JRC = np.exp(scores_JRC * 15).astype(np.float32)
    size = scores_JRC[0].size
    for counts in ([0, 1, size], [size - 1, size // 2, 13]):
        expected = np.stack([sort_and_take(s, c, largest) for s, c in zip(scores_JRC, counts, strict=True)])
        for rows in (1, 6, 20):
            np.testing.assert_array_equal(select(scores_JRC, counts, largest, rows), expected)


def test_draws_are_uniform_and_do_not_depend_on_where_they_begin() -> None:
    key = key_of(0, "model.norm.weight", "math")
    draws = uniform(key, 0, 200_000)
    np.testing.assert_array_equal(uniform(key, 777, 1000), draws[777:1777])
    assert 0 <= draws.min() < 1e-4 and 1 - 1e-4 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 200_000)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(200_000)


def test_two_tensors_and_two_models_have_draws_of_their_own() -> None:
    keys = {key_of(seed, tensor, model) for seed in (0, 1) for tensor in "ab" for model in "cd"}
    assert len(keys) == 8
