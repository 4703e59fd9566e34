"""Which measurement is the best, and when waiting for a better one ends."""

import pytest

from fusion_ray.recipe import EarlyStop
from fusion_ray.targets.best_weights import is_best, is_out_of_patience


def test_the_first_measurement_is_the_best_and_of_equal_ones_the_first_stays() -> None:
    assert is_best([2.0])
    assert is_best([2.0, 3.0, 1.9])
    assert not is_best([2.0, 2.0])
    assert not is_best([1.0, 3.0, 2.0])


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([], 1, False),
        ([3.0], 1, False),
        ([3.0, 3.0], 1, True),
        ([3.0, 3.1], 2, False),
        ([3.0, 3.1, 3.0], 2, True),
        ([3.0, 3.1, 2.9], 2, False),
        ([3.0, 3.1, 2.9, 2.9, 2.95], 2, True),
    ],
)
def test_patience_is_counted_from_the_best_measurement(values: list[float], patience: int, expected: bool) -> None:
    assert is_out_of_patience(values, EarlyStop(patience=patience)) is expected


def test_a_gain_that_is_too_small_counts_as_none_until_small_ones_add_up() -> None:
    stop = EarlyStop(patience=2, min_gain=0.1)
    assert is_out_of_patience([3.0, 2.95, 2.91], stop)
    assert not is_out_of_patience([3.0, 2.95, 2.85], stop)
    assert not is_out_of_patience([3.0, 2.8, 2.75], stop)
