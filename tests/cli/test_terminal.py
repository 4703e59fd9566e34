"""What the terminal shows of a forecast and of progress: units, prices, and lines that do not flood a log."""

import io

import pytest
from rich.console import Console

from fusion_ray.cli.plan import forecast_parts
from fusion_ray.cli.run import closing_lines
from fusion_ray.cli.terminal import live_progress
from fusion_ray.planning.costs import Cost
from fusion_ray.planning.forecast import Forecast
from fusion_ray.planning.sizes import GPUS, Cluster, CorpusSize
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
