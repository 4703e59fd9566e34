"""Which model knows a chat best: bits per byte, and who wins a tie."""

import math

import numpy as np
import pytest
from toys.fused import scored_shard

from fusion_ray.distributions.mince import _bits_per_byte, best_known, has_score, pick_mince
from fusion_ray.errors import NonFiniteError


def test_a_tie_goes_to_the_lower_row_and_what_has_no_score_loses() -> None:
    scores_MN = np.array([[2.0, 1.0, np.nan, np.inf], [2.0, 1.0, 3.0, 4.0], [1.0, 1.0, 3.0, np.nan]], np.float32)
    assert pick_mince(scores_MN).tolist() == [2, 0, 1, 1]


def test_an_example_that_nobody_has_scored_is_named() -> None:
    scores_MN = np.array([[1.0, np.nan], [np.inf, np.inf]])
    assert has_score(scores_MN).tolist() == [True, False]
    with pytest.raises(NonFiniteError, match=r"example 1: no model has scored it .* in all 2 rows"):
        pick_mince(scores_MN)


def test_a_token_of_one_in_four_over_two_bytes_is_one_bit_a_byte() -> None:
    quarter = -math.log(4.0)
    found = _bits_per_byte(scored_shard(([quarter], 2), ([quarter, quarter], 8), None, ([], 0)))
    np.testing.assert_allclose(found, [1.0, 0.5, np.nan, np.nan])


def test_where_all_models_say_the_same_the_pivot_knows_best() -> None:
    tables = {name: scored_shard(([-1.0], 3), ([-2.0], 3)) for name in ("pivot", "one", "two")}
    assert best_known(tables, "pivot").tolist() == [0, 1]
    assert best_known(tables, "one").tolist() == best_known(tables, "two").tolist() == []


def test_the_fewest_bits_per_byte_win_and_rows_without_any_score_belong_to_nobody() -> None:
    tables = {
        "pivot": scored_shard(([-1.0], 1), ([-1.0, -1.0], 4), None, None, ([-1.0], 0), ([-6.0], 3)),
        "one": scored_shard(([-2.0], 3), ([-1.0], 1), ([-9.0], 1), None, ([], 0), ([-2.0], 1)),
    }
    assert best_known(tables, "pivot").tolist() == [1, 5]
    assert best_known(tables, "one").tolist() == [0, 2]
    lost = tables["pivot"].set_column(tables["pivot"].schema.get_field_index("reason"), "reason", [["lost"] * 6])
    assert best_known(tables | {"pivot": lost}, "one").tolist() == [0, 1, 2, 5]
