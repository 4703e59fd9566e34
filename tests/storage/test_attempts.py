"""Notes of attempts: what is found after a process that did not end as it should have."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fusion_ray.distributions.score import RENDERED_SCHEMA, score_surviving
from fusion_ray.errors import EngineError
from fusion_ray.storage.attempts import Attempts, forget_attempts, open_attempts
from fusion_ray.storage.topk import TopK

SHARD = "train/00000.parquet"


class Dead(BaseException):
    """What a killed process leaves: nothing that anybody catches."""


class Scorer:
    """Uniform over four tokens; dies when it reads one of its killers."""

    n_tokens, max_length = 4, None

    def __init__(self, *killers: int) -> None:
        self.killers = killers
        self.read: list[list[int]] = []

    def score(self, input_ids: list[np.ndarray], positions: list[np.ndarray]) -> list[TopK]:
        """Score, or die."""
        self.read.append([int(ids[0]) for ids in input_ids])
        if set(self.read[-1]) & set(self.killers):
            raise Dead
        quarter = np.float32(np.log(0.25))
        n = [len(asked) for asked in positions]
        return [TopK(np.zeros((t, 1), np.int32), np.full((t, 1), quarter), np.full(t, quarter)) for t in n]

    def close(self) -> None:
        """Nothing to free."""


def rendered(rows: int) -> pa.Table:
    """Rows whose first token is their number; the one of number 1 was rejected before."""
    good = {"turn_starts": [1], "turn_lengths": [1], "turn_ended": [False], "boundaries": [1], "n_bytes": 1}
    table = [{"id": f"row-{n}", "input_ids": [n, 0], **good} for n in range(rows)]
    table[1] = {"id": "row-1", "reason": "no answer"}
    return pa.Table.from_pylist(table, schema=RENDERED_SCHEMA)


def until_done(folder: Path, scorer: Scorer, rows: int = 5) -> tuple[pa.Table, int]:
    """What a process that is started again and again ends with, and how often it died."""
    deaths = 0
    while True:
        attempts = open_attempts(str(folder), SHARD)
        try:
            scored = score_surviving(rendered(rows), scorer, attempts)
        except Dead:
            deaths += 1
            continue
        attempts.end()
        return scored, deaths


def test_a_shard_that_nothing_happens_to_is_scored_once_and_leaves_no_note(tmp_path: Path) -> None:
    scorer = Scorer()
    scored, deaths = until_done(tmp_path, scorer)
    assert (scorer.read, deaths) == ([[0, 2, 3, 4]], 0)
    assert scored["reason"].to_pylist() == [None, "no answer", None, None, None]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_first_retry_scores_all_rows_together_as_an_undisturbed_run_does(tmp_path: Path) -> None:
    open_attempts(str(tmp_path), SHARD).begin()
    scorer = Scorer()
    until_done(tmp_path, scorer)
    assert scorer.read == [[0, 2, 3, 4]]


def test_rows_that_kill_are_found_one_by_one_and_rejected(tmp_path: Path) -> None:
    scored, deaths = until_done(tmp_path, Scorer(2, 4))
    reasons = scored["reason"].to_pylist()
    assert [reason is None for reason in reasons] == [True, False, False, True, False]
    assert "the engine died each time" in reasons[2]
    assert scored["id"].to_pylist() == [f"row-{n}" for n in range(5)]
    assert deaths == 4  # twice together, once for each of the two


def test_rows_that_kill_only_together_are_all_scored(tmp_path: Path) -> None:
    class TooMany(Scorer):
        """Runs out of memory over more than one row."""

        def score(self, input_ids: list[np.ndarray], positions: list[np.ndarray]) -> list[TopK]:
            if len(input_ids) > 1:
                raise Dead
            return super().score(input_ids, positions)

    scored, deaths = until_done(tmp_path, TooMany())
    assert scored["reason"].null_count == 4
    assert deaths == 2


def test_an_engine_that_dies_on_any_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"died 2 times over a whole shard, then over 4 of its rows.*\(row row-0: "):
        until_done(tmp_path, Scorer(*range(20)), rows=20)
    assert open_attempts(str(tmp_path), SHARD).killers == {}


@pytest.mark.parametrize("killers", [3, 4])
def test_four_rows_that_kill_are_too_many_to_blame_the_rows(killers: int, tmp_path: Path) -> None:
    scorer = Scorer(*range(2, 2 + killers))
    if killers == 3:
        assert until_done(tmp_path, scorer, rows=8)[0]["reason"].null_count == 4
        return
    with pytest.raises(EngineError, match=r"over 4 of its rows one by one.*\(row row-2: "):
        until_done(tmp_path, scorer, rows=8)


def test_what_the_process_said_before_it_left_is_kept(tmp_path: Path) -> None:
    attempts = Attempts(open_attempts(str(tmp_path), SHARD).uri, deaths_together=2)
    attempts.begin(3)
    attempts.explain("CUDA error")
    assert open_attempts(str(tmp_path), SHARD).killers == {3: "CUDA error"}
    forget_attempts(str(tmp_path))
    assert open_attempts(str(tmp_path), SHARD).killers == {}


@pytest.mark.parametrize(
    ("begun", "deaths", "killers"),
    [((), 2, {7: "it"}), ((-1,), 3, {7: "it"}), ((0,), 2, {7: "it", 0: "the process ended without a word"})],
)
def test_a_note_tells_what_was_being_scored(
    begun: tuple[int, ...], deaths: int, killers: dict[int, str], tmp_path: Path
) -> None:
    first = Attempts(open_attempts(str(tmp_path), SHARD).uri, 2, {7: "it"})
    first.explain("")
    for row in begun:
        first.begin(row)
    found = open_attempts(str(tmp_path), SHARD)
    assert found == Attempts(f"{tmp_path}/attempts/{SHARD}.json", deaths, killers, None, "")
    found.begin()
    assert open_attempts(str(tmp_path), SHARD).deaths_together == deaths + 1
    found.end()
    assert open_attempts(str(tmp_path), SHARD) == Attempts(found.uri)
