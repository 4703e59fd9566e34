"""What merge methods and their oracles give of a few whole numbers, worked out by hand."""

from typing import Any

import numpy as np
import pytest
from toys.merging import Case, merge_arrays, oracle_of

from fusion_ray.recipe.merge_methods import METHODS

HALF = np.sqrt(0.5)
# Kind, its parameters, the models (the base first, where the method has one), and what they merge to.
BY_HAND: list[tuple[str, dict[str, Any], list[list[float]], list[float]]] = [
    ("ram", {"epsilon": 0.01}, [[0, 0, 0, 0], [1, 1, 1, 0], [2, 0, 0, 0]], [1.5, 1, 1, 0]),
    ("ram", {"epsilon": 1.0}, [[0, 0, 0, 0], [1, 1, 1, 0], [2, 0, 0, 0]], [2, 0, 0, 0]),
    ("ram", {"epsilon": 0.01}, [[1, 1], [4, 1], [4, 1], [4, 3]], [4, 3]),
    # The first target shares one element and moved two alone: 1 + r / 2.
    ("ramplus_tl", {"r": 0.5, "alpha": 10.0, "epsilon": 0.01}, [[0, 0, 0, 0], [1, 1, 1, 0], [2, 0, 0, 0]],
     [1.5, 1.25, 1.25, 0]),
    ("ramplus_tl", {"r": 0.5, "alpha": 0.2, "epsilon": 0.01}, [[0, 0, 0, 0], [1, 1, 1, 0], [2, 0, 0, 0]],
     [1.5, 1.1, 1.1, 0]),
    ("nearswap", {"t": 1.0}, [[0, 0, 0, 2], [4, -2, 0.5, 2]], [1, -1, 0.5, 2]),
    ("passthrough", {"scale": 0.5}, [[4, -2]], [2, -1]),
    ("linear", {"weight": (1.0, 3.0), "normalize": True}, [[4, 0], [8, 4]], [7, 3]),
    ("linear", {"weight": (1.0, 3.0), "normalize": False}, [[4, 0], [8, 4]], [28, 12]),
    ("task_arithmetic", {"weight": (0.5, 1.0)}, [[1, 0], [3, 0], [5, 2]], [6, 2]),
    ("task_arithmetic", {"weight": (0.5, 1.0), "lambda_": 0.5}, [[1, 0], [3, 0], [5, 2]], [3.5, 1]),
    ("task_arithmetic", {"weight": (1.0, 3.0), "normalize": True}, [[1, 0], [3, 0], [5, 4]], [4.5, 3]),
    ("ties", {"normalize": True}, [[0, 0, 0], [1, -1, 1], [2, 3, -1]], [1.5, 3, 1]),
    ("ties", {"normalize": False}, [[0, 0, 0], [1, -1, 1], [2, 3, -1]], [3, 3, 1]),
    ("ties", {"normalize": True, "weight": (1.0, 3.0)}, [[0, 0], [1, -9], [5, 2]], [4, -9]),
    ("ties", {"density": 0.5}, [[0, 0, 0, 0], [1, -2, 3, -4]], [0, 0, 3, -4]),
    ("ties", {"density": 0.5, "rescale": True}, [[0, 0, 0, 0], [1, -2, 3, -4]], [0, 0, 30 / 7, -40 / 7]),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.25}, [[0] * 8, [1, 2, 3, 4, 5, 6, 7, 8]], [0, 0, 3, 4, 5, 6, 0, 0]),
    ("sce", {}, [[0, 0], [1, 0], [0, 2]], [1, 2]),
    ("sce", {}, [[0, 0], [3, 1], [1, 1]], [(3 * 10 + 2) / 12, 1]),
    ("sce", {"select_topk": 0.5, "dialect": "paper"}, [[0, 0], [1, 1], [5, 2]], [(1 + 5 * 25) / 26, 0]),
    ("sce", {"select_topk": 0.5, "dialect": "fuseai"}, [[0, 0], [1, 1], [5, 2]], [126 / 26, 51 / 26]),
    ("rescaled_sum", {"reach": "each"}, [[1, 1], [4, 1], [1, 5]], [4, 5]),
    ("varm", {"granularity": "matrix"}, [[0, 0], [1, 0], [0, 2]], [0.2, 1.6]),
    ("varm", {"granularity": "element"}, [[0, 0], [1, 0], [1, 2]], [1, 2]),
    ("varm", {"granularity": "element"}, [[0], [1], [3]], [2.8]),
    ("model_stock", {}, [[0, 0], [1, 0], [0, 1]], [0, 0]),
    ("model_stock", {}, [[1, 1], [3, 1], [3, 1]], [3, 1]),
    ("model_stock", {}, [[0, 0], [2, 0], [1, np.sqrt(3)]], [1, 1 / np.sqrt(3)]),  # At 60 degrees two thirds of the way.
    ("slerp", {"t": 0.5}, [[1, 0], [0, 1]], [HALF, HALF]),
    ("slerp", {"t": 0.0}, [[1, 0], [0, 1]], [1, 0]),
    ("nuslerp", {"weight": (3.0, 1.0)}, [[1, 0], [0, 1]], [np.cos(np.pi / 8), np.sin(np.pi / 8)]),
    ("nuslerp", {"weight": (3.0, 1.0)}, [[1, 0], [3, 0]], [1.5, 0]),  # Along a line there is no arc.
    ("slerp", {"t": 0.25}, [[1, 0], [3, 0]], [1.5, 0]),
    ("multislerp", {"weight": (1.0, 1.0)}, [[1, 0], [0, 1]], [HALF, HALF]),
    ("karcher", {}, [[1, 0], [0, 1]], [HALF, HALF]),
]  # fmt: skip
ALONE = ("nuslerp", "multislerp")  # They have a base only where one is given.


@pytest.mark.parametrize(("kind", "given", "models", "expected"), BY_HAND)
def test_a_method_and_its_oracle_give_what_a_hand_does(
    kind: str, given: dict[str, Any], models: list[list[float]], expected: list[float]
) -> None:
    arrays = [np.array(model, dtype=np.float32) for model in models]
    has_base = METHODS[kind](**given).has_base and kind not in ALONE
    np.testing.assert_allclose(merge_arrays(kind, arrays, has_base=has_base, **given), expected, atol=1e-6)
    np.testing.assert_allclose(oracle_of(Case(kind, given, has_base=has_base), arrays), expected, atol=1e-6)
