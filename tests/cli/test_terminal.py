"""What the terminal shows of a forecast and of progress: units, prices, and lines that do not flood a log."""

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.table import Table
from toys.screen import printed

from fusion_ray.cli.plan import forecast_parts
from fusion_ray.cli.run import closing_lines
from fusion_ray.cli.terminal import live_progress, printable
from fusion_ray.planning.costs import Cost
from fusion_ray.planning.forecast import Forecast
from fusion_ray.planning.sizes import GPUS, Cluster, CorpusSize, ModelSize
from fusion_ray.progress import Progress

BIG = Cluster(cpus=96, gpus=8, gpu=GPUS["a100"], memory_gib=1000, object_store_gib=300, disk_gib=5000)
CORPUS = CorpusSize(rows=12_345, tokens_per_row=400.0, source="counted")


def drawn(*costs: Cost, price: float | None = None, problems: tuple[str, ...] = ()) -> str:
    """A forecast as it is printed."""
    out = Console(file=io.StringIO(), width=200)
    found = Forecast(BIG, CORPUS, {"pivot": None}, list(costs), list(costs), list(problems), price)
    for part in forecast_parts(found):
        out.print(part)
    return out.file.getvalue()  # type: ignore[attr-defined]


def test_a_forecast_says_rows_tokens_bytes_time_and_money() -> None:
    training = Cost("targets", "2 of targets", 1_000, 2.5e6, 3.0e9, 7200.0, 8.0, "stated")
    scoring = Cost("distributions", "1 of distributions", 0, 0.0, 999.0, 89.0, 0.0, "measured")
    text = drawn(scoring, training, price=2.5)
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines() if " of " in line or "in all" in line}
    assert lines["2 of targets"][3:] == ["1,000", "2.5", "M", "3", "GB", "2.0", "h", "16.0", "40.00", "stated"]
    assert lines["1 of distributions"][3:] == ["999", "B", "89", "s", "0.0", "0.00", "measured"]
    assert lines["in all"][2:] == ["2.0", "h", "16.0", "40.00"]
    assert f"with 96 CPUs, 8 GPUs of {BIG.gpu.memory_gib:.0f} GiB" in text
    assert "12,345 rows of 400 tokens: counted." in text
    assert "the size of pivot (the model's `parameters`" in text
    assert "money" in text and "money" not in drawn(training)


@pytest.mark.parametrize(
    ("wall_s", "expected"),
    [(None, "?"), (89.4, "89 s"), (90.0, "2 min"), (5399.0, "90 min"), (5400.0, "1.5 h")],
)
def test_times_are_in_the_unit_that_people_would_use(wall_s: float | None, expected: str) -> None:
    text = drawn(Cost("merged", "1 of merged", 0, 0.0, 1e6, wall_s, 0.0, "stated"), price=1.0)
    assert f" {expected} " in next(line for line in text.splitlines() if line.startswith("1 of merged"))


def test_where_a_time_is_not_known_neither_are_hours_and_price() -> None:
    text = drawn(Cost("targets", "1 of targets", 5, 9e3, 1e12, None, 8.0, "size unknown"), price=2.0)
    (line,) = (line.split() for line in text.splitlines() if line.startswith("1 of targets"))
    assert line[3:] == ["5", "9", "k", "1", "TB", "?", "?", "?", "size", "unknown"]


def test_nothing_to_make_draws_nothing_and_problems_are_told() -> None:
    assert drawn() == ""
    cost = Cost("targets", "1 of targets", 5, 9e3, 1e3, 1.0, 8.0, "stated")
    assert "Will not fit: the disk" in drawn(cost, problems=("the disk",))


def test_a_log_gets_the_first_and_the_last_line_of_a_piece_of_work_and_few_between() -> None:
    out = Console(file=io.StringIO(), width=200)
    with live_progress(out) as tell:
        for done in range(101):
            tell(Progress("fused/math", done, 100, f"at {done}"))
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "fused/math" in lines[0] and "at 100" in lines[-1]
    assert len(lines) < 10


def test_the_closing_lines_name_the_merged_model_and_the_report() -> None:
    text = closing_lines("runs/x", "runs/x/5_merged", "runs/x/6_report/report.html")
    assert (
        "chat runs/x\n" in text and "Model   runs/x/5_merged" in text and "Report  runs/x/6_report/report.html" in text
    )


def test_a_plan_that_fits_is_printed_whole() -> None:
    scoring = Cost("distributions", "1 of distributions", 0, 0.0, 0.0, 89.0, 0.0, "measured")
    training = Cost("targets", "2 of targets", 1_000, 999.4, 1e3, 7200.0, 8.0, "stated")
    costs = [scoring, training]
    assert printed(forecast_parts(Forecast(BIG, CORPUS, {"pivot": None}, costs, costs, [], None))) == [
        "",
        "with 96 CPUs, 8 GPUs of 79 GiB",
        "to make              rows  tokens  writes   wall  GPU-hours  rate",
        "1 of distributions                    0 B   89 s        0.0  measured",
        "2 of targets        1,000     999    1 kB  2.0 h       16.0  stated",
        "in all                                     2.0 h       16.0",
        "12,345 rows of 400 tokens: counted. Times within a factor of 3.",
        "Neither here nor stated: the size of pivot (the model's `parameters` in the recipe).",
    ]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        *[(999.0, "999 B"), (1e3, "1 kB"), (999e3, "999 kB"), (1e6, "1 MB"), (1e9, "1 GB")],
        *[(1e12, "1 TB"), (1.5e13, "15 TB"), (0.4, "0 B")],
    ],
)
def test_bytes_get_the_largest_unit_that_leaves_at_least_one(written: float, expected: str) -> None:
    line = drawn(Cost("merged", "1 of merged", 0, 0.0, written, 1.0, 0.0, "stated")).splitlines()[3]
    assert line.split("  ")[-4].strip() == expected or f" {expected}  " in line


def test_without_gpus_none_are_named_and_known_sizes_are_not_asked_for() -> None:
    cost = Cost("merged", "1 of merged", 0, 0.0, 1e6, 1.0, 0.0, "stated")
    models = {"pivot": ModelSize(1.0, 1.0)}
    lines = printed(forecast_parts(Forecast(replace(BIG, gpus=0), CORPUS, models, [cost], [cost], [], None)))
    assert lines[1] == "with 96 CPUs"
    assert not any("GPUs of" in line or "Neither" in line for line in lines)


def test_a_table_of_costs_is_cut_and_not_broken_on_a_narrow_screen() -> None:
    cost = Cost("merged", "1 of merged", 10, 10.0, 1e6, 1.0, 0.0, "stated")
    found = Forecast(BIG, CORPUS, {}, [cost], [cost], [], 1.0)
    table = next(part for part in forecast_parts(found) if isinstance(part, Table))
    table.title = None
    assert len(printed([table], 30)) == 3


def told(monkeypatch: pytest.MonkeyPatch, *reports: tuple[float, Progress]) -> list[str]:
    """What a log gets, each report at its time in seconds."""
    out, clock = Console(file=io.StringIO(), width=40), [1e6]
    monkeypatch.setattr("fusion_ray.cli.terminal.time", SimpleNamespace(monotonic=lambda: clock[0]))
    with live_progress(out) as tell:
        for now, progress in reports:
            clock[0] = 1e6 + now
            tell(progress)
    return out.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_line_of_a_log_has_time_share_detail_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(
        monkeypatch,
        (1.5, Progress("fused/math", 1, 4, "at [b]1")),
        (20.0, Progress("fused/math", 2, 4, "at 2", left_s=3725.4)),
        (30.0, Progress("corpus", 0, 0)),
        (40.0, Progress("fused/math", 4, 4, "at 4", left_s=0.0)),
        (41.0, Progress("fused/math", 4, 4, "again")),
    ) == [
        "    1.5 s  fused/math                 25%  at [b]1",
        "   20.0 s  fused/math                 50%  at 2, 1:02:05 left",
        "   30.0 s  corpus                    100%",
        "   40.0 s  fused/math                100%  at 4",
    ]


def test_a_log_is_told_again_after_ten_seconds_or_a_fiftieth_of_the_time_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def times(*at: float) -> list[float]:
        reports = [(now, Progress("x", place, 100)) for place, now in enumerate(at)]
        return [float(line.split()[0]) for line in told(monkeypatch, *reports)]

    assert times(0, 9.9, 10, 19.9, 20) == [0, 10, 20]
    assert times(1000, 1010, 1020, 1020.5) == [1000, 1020.5]
    assert times(5, 6) == [5]


def test_each_piece_of_work_is_told_of_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch, (0, Progress("a", 1, 4)), (1, Progress("b", 1, 4)), (2, Progress("a", 2, 4)))
    assert [line.split()[2] for line in lines] == ["a", "b"]


def test_on_a_terminal_each_piece_of_work_has_one_line() -> None:
    out = Console(file=io.StringIO(), width=100, force_terminal=True, force_interactive=True)
    with live_progress(out) as tell:
        tell(Progress("fused/math", 1, 4, "at 1"))
        tell(Progress("corpus", 2, 2, "all"))
        tell(Progress("fused/math", 2, 4, "at 2"))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.file.getvalue())  # type: ignore[attr-defined]
    last = [line.rstrip() for line in shown.split("\r")[-1].splitlines() if line.strip()]
    assert [line.split()[0] for line in last] == ["fused/math", "corpus"]
    assert " 50%" in last[0] and last[0].endswith("at 2") and "100%" in last[1] and last[1].endswith("all")


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\u202e", "\u2028", "\u2029", "\ud800", "\u200b"])
def test_what_would_steer_a_terminal_is_written_out(character: str) -> None:
    assert printable(f"a{character}b").isascii() and "\\" in printable(character)


@pytest.mark.parametrize("character", ["\n", "\t", "\u200c", "\u200d", "é", "語", "👍"])
def test_letters_line_ends_and_joiners_stay_as_they_are(character: str) -> None:
    assert printable(f"a{character}b") == f"a{character}b"
