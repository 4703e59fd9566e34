"""Numbers as planes of bytes: every byte in its place, every id with its number, and what does not fit is refused."""

import numpy as np
import pyarrow as pa
import pytest

from fusion_ray.errors import CorruptArtifactError, NonFiniteError
from fusion_ray.storage import planes
from fusion_ray.storage.planes import Rows
from fusion_ray.storage.topk import TopK, bits_per_byte
from fusion_ray.storage.topk_codec import compact_topk, decode_topk, encode_topk, expand_topk, is_compact

ROWS = Rows(np.array([2, 2, 3]), np.array([True, False, True]))


def topk(ids: list[list[int]], logprobs: list[list[float]], real: list[float]) -> TopK:
    return TopK(np.array(ids, np.int32), np.array(logprobs, np.float32), np.array(real, np.float32))


def test_byte_b_of_every_number_stands_in_column_b() -> None:
    numbers = np.array([0x030201, 0xFF, 0x10000], dtype=np.uint32)
    written = planes.write_planes("x", numbers, 3, ROWS)
    assert {name: column.to_pylist() for name, column in written.items()} == {
        "x_0": [b"\x01\xff", None, b"\x00"], "x_1": [b"\x02\x00", None, b"\x00"], "x_2": [b"\x03\x00", None, b"\x01"]
    }  # fmt: skip
    assert planes.plane_names("x", 3) == list(written)
    found, rows = planes.read_planes(written, "x", 3)
    assert (found.tolist(), rows.ends_N.tolist(), rows.usable_N.tolist()) == (
        numbers.tolist(), [2, 2, 3], [True, False, True]
    )  # fmt: skip
    assert planes.read_planes(written, "x", 1)[0].tolist() == [1, 0xFF, 0]
    assert Rows(np.array([1, 4]), ROWS.usable_N).times(3).ends_N.tolist() == [3, 12]


def test_a_part_of_a_column_and_columns_in_chunks_read_as_their_own_rows() -> None:
    written = planes.write_planes("x", np.array([1, 2, 3], dtype=np.uint32), 1, ROWS)
    part, rows = planes.read_planes({"x_0": written["x_0"].slice(1)}, "x", 1)
    assert (part.tolist(), rows.ends_N.tolist(), rows.usable_N.tolist()) == ([3], [0, 1], [False, True])
    chunks = pa.chunked_array([written["x_0"], written["x_0"].slice(2)])
    assert planes.read_planes({"x_0": chunks}, "x", 1)[0].tolist() == [1, 2, 3, 3]
    nothing, rows = planes.read_planes({"x_0": pa.array([], pa.binary())}, "x", 1)
    assert (nothing.tolist(), rows.ends_N.tolist(), rows.usable_N.tolist()) == ([], [], [])
    short = {"x_0": pa.array([b"ab"]), "x_1": pa.array([b"a"])}
    with pytest.raises(CorruptArtifactError, match="x_1 has 1 bytes, expected 2"):
        planes.read_planes(short, "x", 2)


def test_ids_are_numbered_from_1_by_the_power_of_two_of_their_count_then_by_id() -> None:
    # 0 comes once, 1 never, 2 twice, 3 three times, 4 four times: 4; then 2 and 3, both of two to three; then 0.
    ids = np.array([[4, 4, 4, 4], [2, 3, 3, 3], [2, 0, -1, -1]], dtype=np.int32)
    codes, dictionary = planes.number_ids(ids)
    assert dictionary.tolist() == [4, 2, 3, 0]
    assert codes.tolist() == [[1, 1, 1, 1], [2, 3, 3, 3], [2, 4, 0, 0]]
    np.testing.assert_array_equal(planes.ids_of(codes, dictionary), ids)
    with pytest.raises(CorruptArtifactError, match="number 4 and the dictionary 3 ids"):
        planes.ids_of(codes, dictionary[:3])
    assert planes.ids_of(codes[:0], dictionary[:0]).shape == (0, 4)


@pytest.mark.parametrize("n_rows", [0, 1, 3])
def test_the_dictionary_stands_in_the_first_row_as_planes_of_differences(n_rows: int) -> None:
    dictionary = np.array([0x01020304, 2])  # The second is 0x01020302 less, which wraps round.
    column = planes.dictionary_column(dictionary, n_rows)
    assert column.to_pylist() == [b"\x04\xfe\x03\xfc\x02\xfd\x01\xfe", None, None][:n_rows]
    assert planes.read_dictionary({"d": column}, "d").tolist() == (dictionary.tolist() if n_rows else [])
    assert planes.read_dictionary({"d": pa.array([None], pa.large_binary())}, "d").tolist() == []


def test_real_log_probabilities_are_whole_steps_and_never_above_0() -> None:
    real_T = np.array([-1.0, 0.0005, -1.6 / 4096], dtype=np.float32)
    steps, _ = planes.read_planes(planes.write_real(real_T, ROWS), "real", 4)
    assert steps.tolist() == [4096, 0, 2]
    found, rows = planes.read_real(planes.write_real(real_T, ROWS))
    assert (found.tolist(), rows.ends_N.tolist()) == ([-1.0, 0.0, -2 / 4096], [2, 2, 3])


def test_plain_columns_split_and_come_together_again() -> None:
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "real_logprobs": pa.array([[-1.0, -2.0], None, [-3.0]], pa.list_(pa.float32())),
            "topk_ids": pa.array([[1, 2, 3, 4], None, [5, -1]], pa.list_(pa.int32())),
            "topk_logprobs": pa.array([[-1.0, -2.0, -0.5, -3.0], None, [-0.1, -np.inf]], pa.list_(pa.float32())),
        }
    )
    others, found, rows = planes.take_plain(table)
    assert (others.column_names, rows.ends_N.tolist(), rows.usable_N.tolist()) == (
        ["id"], [2, 2, 3], [True, False, True]
    )  # fmt: skip
    assert (found.ids_TK.tolist(), found.real_logprobs_T.tolist()) == ([[1, 2], [3, 4], [5, -1]], [-1, -2, -3])
    assert planes.put_plain(others, found, rows).equals(table)
    compact = compact_topk(table)
    assert compact.column_names == [
        "id", "topk_dictionary", "topk_id_0", "topk_id_1", "topk_id_2", "topk_gap_0", "topk_gap_1", "real_0", "real_1",
        "real_2", "real_3",
    ]  # fmt: skip
    assert is_compact(compact.column_names) and not is_compact(table.column_names)
    assert compact["topk_gap_0"].to_pylist() == [bytes([102, 102, 51, 255]), None, bytes([10, 0])]
    assert expand_topk(compact).column_names == table.column_names
    assert expand_topk(compact)["topk_ids"].to_pylist() == table["topk_ids"].to_pylist()


def test_the_largest_gap_that_two_bytes_hold_is_stored_and_one_step_more_is_not() -> None:
    step = 0.0098
    kept = decode_topk(encode_topk(topk([[0, 1]], [[0.0, -65535 * step]], [-1.0]), np.array([1])))
    np.testing.assert_allclose(kept.logprobs_TK, [[0.0, -65535 * step]], atol=0.001)
    with pytest.raises(NonFiniteError, match="642 nats below the one before; at most 642"):
        encode_topk(topk([[0, 1]], [[0.0, -65536 * step]], [-1.0]), np.array([1]))


def test_a_shard_without_positions_has_none() -> None:
    nothing = topk([], [], []).ids_TK.reshape(0, 3)
    empty = TopK(nothing, nothing.astype(np.float32), np.zeros(0, np.float32))
    found = decode_topk(encode_topk(empty, np.array([0, 0])))
    assert (found.ids_TK.shape, found.logprobs_TK.shape, len(found)) == ((0, 0), (0, 0), 0)


def test_where_rounding_raised_the_mass_above_1_it_is_brought_back_and_elsewhere_nothing_changes() -> None:
    near = np.log(0.5) + 0.0045  # Together 0.9 % too much: within what rounding may do.
    given = topk([[0, 1], [0, 1]], [[near, near], [-1.0, -2.0]], [-1.0, -1.0])
    found = decode_topk(encode_topk(given, np.array([2])))
    assert np.exp(found.logprobs_TK[0].astype(np.float64)).sum() == pytest.approx(1 - 2e-6, abs=1e-6)
    np.testing.assert_array_equal(found.logprobs_TK[1], np.float32([-102 * 0.0098, -204 * 0.0098]))
    entries = [[0, 1, 2], [2, 1, 0]]
    assert decode_topk(encode_topk(topk(entries, [[-2, -3, -4]] * 2, [-1, -1]), np.array([1, 1]))).ids_TK.tolist() == (
        entries
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (topk([[0]], [[-1]], [np.nan]), "NaN or infinite"),
        (topk([[0]], [[-1]], [-np.inf]), "NaN or infinite"),
        (topk([[0]], [[np.nan]], [-1]), "NaN or infinite"),
        (topk([[0]], [[0.002]], [-1]), "above 0"),
        (topk([[0]], [[-1]], [0.002]), "above 0"),
        (topk([[0, -1]], [[1e-3, -np.inf]], [1e-3]), ""),
    ],
)
def test_distributions_of_nan_or_above_0_are_refused(given: TopK, said: str) -> None:
    if not said:
        given.check("here")
        return
    with pytest.raises(NonFiniteError, match=f"here: .*{said}"):
        given.check("here")


def test_the_tail_is_what_is_left_of_1_and_bits_are_per_byte() -> None:
    found = topk([[0, 1], [0, -1], [0, 1]], [np.log([0.5, 0.25]).tolist(), [0.0, -np.inf], [0.0005, -1]], [-1, -2, -4])
    np.testing.assert_allclose(found.tail_T, [0.25, 0.0, 0.0], atol=1e-6)
    assert (len(found), found.nll_nats) == (3, 7.0)
    assert bits_per_byte(np.log(2.0) * 6, 3) == pytest.approx(2.0)
    assert bits_per_byte(1.0, 0) == np.inf
    assert bits_per_byte(np.log(2.0), 1) == pytest.approx(1.0)
