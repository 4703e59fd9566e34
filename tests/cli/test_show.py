"""What `show` prints of one run and of two, whole: numbers, signs, what is best, and what is left out."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.table import Table
from toys.screen import printed, styled

from fusion_ray.cli.show import benchmark_tables, comparison_tables, judge_tables, report_tables, scores_table
from fusion_ray.report.reading import RunReport

REPORT: dict[str, Any] = {
    "name": "toy",
    "heldout": {"bytes_by_domain": {"math": 100, "code": 900}, "documents": 1_012, "bytes": 91_000, "left_out": {}},
    "bits_per_byte": {
        "pivot": {"math": 1.5, "code": 1.25, "overall": 1.2751},
        "sft": {"math": 1.25, "code": 1.125, "overall": 1.1374},
        "merged": {"math": 1.0, "code": 1.125, "overall": 1.1126},
    },
    "oracle": {
        "recovered_share": {"merged": {"overall": 0.656}, "sft": {"overall": None}},
        "bits_per_byte": {"math": 0.875, "code": 1.0, "overall": 0.9876},
    },
    "bootstrap": 10_000,
    "seed": 0,
    "differences": {
        "merged - sft": {"overall": {"value": -0.025, "low": -0.05, "high": -0.0001, "p_value": 0.0009}},
        "merged - pivot": {"overall": {"value": 0.0125, "low": 0.0001, "high": 0.03, "p_value": 0.001}},
        "sft - pivot": {"overall": {"value": -0.5, "low": -1.0, "high": 0.0, "p_value": 0.25}},
        "pivot - sft": {"overall": {"value": 0.5, "low": 0.0, "high": 1.0, "p_value": 1.0}},
    },
    "verdict": {"helped": True, "text": "Fusion helped [x].", "notes": ["A note [y]."]},
    "remote_code": False,
}


def report_with(**changes: Any) -> RunReport:
    return RunReport("runs/toy/6_report", copy.deepcopy(REPORT) | changes)


def test_a_run_is_shown_by_scores_differences_and_verdict() -> None:
    assert printed(report_tables(report_with()), width=90) == [
        "toy: held-out bits per byte, 1012",
        "documents, 91,000 bytes; lower is better",
        "model    code   math  overall  recovered",
        "pivot   1.250  1.500    1.275",
        "sft     1.125  1.250    1.137",
        "merged  1.125  1.000    1.113        66%",
        "oracle  1.000  0.875    0.988       100%",
        "",
        "differences overall, 95 % intervals over documents",
        "(10,000 draws)",
        "first - second  bits per byte       95 % interval       p",
        "merged - sft          -0.0250  [-0.0500, -0.0001]  <0.001",
        "merged - pivot        +0.0125  [+0.0001, +0.0300]   0.001",
        "sft - pivot           -0.5000  [-1.0000, +0.0000]   0.250",
        "pivot - sft           +0.5000  [+0.0000, +1.0000]   1.000",
        "",
        "Fusion helped [x].",
        "A note [y].",
    ]


def test_the_best_of_each_column_is_bold_and_only_sure_differences_have_a_colour() -> None:
    assert styled(report_tables(report_with())) == [
        *[("1.125", "bold"), ("1.125", "bold"), ("1.000", "bold"), ("1.113", "bold")],
        *[(text, "dim") for text in ("oracle", "1.000", "0.875", "0.988", "100%")],
        *[("-0.0250", "green"), ("+0.0125", "red"), ("Fusion helped [x].", "bold green")],
    ]


@pytest.mark.parametrize(("helped", "style"), [(True, "bold green"), (False, "bold red"), (None, "bold yellow")])
def test_a_verdict_s_colour_and_the_warnings_after_it(helped: bool | None, style: str) -> None:
    parts = report_tables(
        report_with(
            verdict={"helped": helped, "text": "Said.", "notes": []},
            heldout=REPORT["heldout"] | {"left_out": {"a": "no answer", "b": "too long"}},
            remote_code=True,
        )
    )
    warning = "Remote code was allowed for a model of this run."
    left_out = "2 held-out chats were left out: not scored by every model."
    assert printed(parts)[-3:] == ["Said.", left_out, warning]
    assert styled(parts)[-2:] == [("Said.", style), (warning, "yellow")]


@pytest.mark.parametrize(("count", "left"), [(8, ""), (9, "; 1 smaller domains are in report.json")])
def test_no_more_than_eight_domains_are_shown_the_largest_in_order_of_their_names(count: int, left: str) -> None:
    names = ["b", "a", "d", "c", "f", "e", "h", "g", "small"][:count]
    rates = dict.fromkeys(names, 1.0) | {"overall": 1.0}
    sizes = {name: 1 if name == "small" else 10 + place for place, name in enumerate(names)}
    content = REPORT | {
        "heldout": REPORT["heldout"] | {"bytes_by_domain": sizes},
        "bits_per_byte": {"pivot": rates},
        "oracle": {"recovered_share": {}, "bits_per_byte": rates},
    }
    table = scores_table(content)
    assert str(table.title).endswith(f"lower is better{left}")
    assert printed([table])[-3].split() == ["model", *"abcdefgh", "overall", "recovered"]


def test_benchmarks_are_shown_with_the_way_that_is_better_and_the_best_in_bold() -> None:
    tasks = {
        "arc": {"acc,none": {"higher_is_better": True, "values": {"pivot": 0.25, "merged": 0.5}}},
        "wiki": {
            "ppl": {"higher_is_better": False, "values": {"pivot": 0.75, "merged": 1.5}},
            "bits": {"higher_is_better": None, "values": {"pivot": 2.0, "merged": 1.0}},
        },
    }
    parts = benchmark_tables({"benchmarks": {"tasks": tasks}})
    assert printed(parts) == [
        "benchmarks",
        "model   arc acc ↑  wiki ppl ↓  wiki bits",
        "pivot       0.250       0.750      2.000",
        "merged      0.500       1.500      1.000",
        "",
    ]
    assert styled(parts) == [("0.750", "bold"), ("0.500", "bold")]
    assert benchmark_tables({}) == [] and benchmark_tables({"benchmarks": {"tasks": {}}}) == []


@pytest.mark.parametrize(("count", "title"), [(8, "benchmarks"), (10, "benchmarks (2 more in report.json)")])
def test_no_more_than_eight_benchmarks_are_shown(count: int, title: str) -> None:
    tasks = {f"t{n}": {"acc": {"higher_is_better": True, "values": {"pivot": n / 8}}} for n in range(count)}
    lines = printed(benchmark_tables({"benchmarks": {"tasks": tasks}}))
    assert lines[0] == title
    assert lines[1].replace(" acc ↑", "").split() == ["model", *(f"t{n}" for n in range(8))]
    assert lines[2].split() == ["pivot", *(f"{n / 8:.3f}" for n in range(8))]


JUDGE: dict[str, Any] = {
    "model": "large",
    "questions": 3,
    "judgments": 1_234,
    "unreadable": 1,
    "tokens": {"input": 1000, "output": 20},
    "usd": 0.25,
    "ratings": {
        "pivot": {"overall": 5.5, "turn 1": 6.0, "turn 2": None, "category x": 5.5, "readable": 2},
        "merged": {"overall": 7.25, "turn 1": 7.5, "turn 2": 7.0, "category x": 7.25, "readable": 2},
    },
    "pairs": {
        "merged - pivot": {"wins": 2, "ties": 1, "losses": 0, "points": {"value": 0.83, "low": 0.5, "high": 1.0}},
        "merged - sft": {"wins": 0, "ties": 0, "losses": 0, "points": None},
    },
}


def test_what_the_judge_said_is_shown_by_ratings_and_by_pairs() -> None:
    assert printed(judge_tables({"judge": JUDGE})) == [
        "judge large: 3 questions, 1,234 judgments, 1 unreadable, 1,020 tokens, 0.25 USD",
        "model   rating of 10  turn 1  turn 2",
        "pivot           5.50    6.00",
        "merged          7.25    7.50    7.00",
        "",
        "judged side by side, in both orders",
        "first - second  wins  ties  losses  share of points  95 % interval",
        "merged - pivot     2     1       0              83%    [50%, 100%]",
        "merged - sft       0     0       0",
        "",
    ]


def test_without_a_judge_or_without_a_kind_of_judgment_its_table_is_missing() -> None:
    assert judge_tables({}) == judge_tables({"judge": None}) == []
    free = JUDGE | {"usd": None, "pairs": {}}
    assert printed(judge_tables({"judge": free}))[0].endswith("1,020 tokens")
    assert printed(judge_tables({"judge": free}))[1:] == printed(judge_tables({"judge": JUDGE}))[1:5]
    only_pairs = printed(judge_tables({"judge": JUDGE | {"ratings": {}}}))
    assert only_pairs[1:] == printed(judge_tables({"judge": JUDGE}))[5:]


def test_the_tables_of_one_run_stand_in_one_order_with_lines_between() -> None:
    tasks = {"arc": {"acc": {"higher_is_better": True, "values": {"pivot": 0.25}}}}
    lines = printed(report_tables(report_with(judge=JUDGE, benchmarks={"tasks": tasks})))
    first = [after for before, after in itertools.pairwise(lines) if not before]
    starts = ("differences", "benchmarks", "judge large", "judged side by side", "Fusion helped")
    assert [any(line.startswith(start) for line in first) for start in starts] == [True] * 5
    assert [line.split()[0] for line in first] == ["differences", "benchmarks", "judge", "judged", "Fusion"]


def saved(folder: Path, nlls: list[float], **changes: Any) -> str:
    """A run with a report of documents of eight bytes each, the first of them code and all others math."""
    place = folder / "6_report"
    place.mkdir(parents=True)
    (place / "report.json").write_text(json.dumps(REPORT | {"bootstrap": 200} | changes))
    (place / "MANIFEST.json").write_text("{}")
    columns = {"id": [str(n) for n in range(len(nlls))], "domain": ["code"] + ["math"] * (len(nlls) - 1)}
    table = pa.table(columns | {"n_bytes": [8] * len(nlls), "merged": nlls})
    pq.write_table(table, place / "documents.parquet")
    return str(folder)


def test_two_runs_are_shown_side_by_side(tmp_path: Path) -> None:
    ln2 = 0.6931471805599453
    one = saved(tmp_path / "one", [8 * ln2] * 4)
    rates = {
        "pivot": {"overall": 1.2751},
        "sft": {"overall": 1.25},
        "source:new": {"overall": 2.0},
    }
    two = saved(tmp_path / "two", [4 * ln2] + [16 * ln2] * 3, bits_per_byte=rates)
    parts = comparison_tables(["one", "two"], RunReport.read(one), RunReport.read(two))
    assert printed(parts) == [
        "overall held-out bits per byte; lower is",
        "better",
        "model         one    two  second - first",
        "pivot       1.275  1.275         +0.0000",
        "sft         1.137  1.250         +0.1126",
        "merged      1.113",
        "source:new         2.000",
        "",
        "merged, second - first, 95 % intervals",
        "domain   bits per byte       95 % interval      p",
        "code           -0.5000  [-0.5000, -0.5000]  0.010",
        "math           +1.0000  [+1.0000, +1.0000]  0.010",
        "overall        +0.2500  [+0.2500, +0.2500]  0.010",
    ]  # Within a domain all documents differ alike, so every draw gives the same; p is 2 / (200 + 1).
    assert styled(parts)[:4] == [("1.275", "bold"), ("1.275", "bold"), ("1.137", "bold"), ("1.113", "bold")]


def test_runs_of_other_documents_are_not_compared_and_each_keeps_its_verdict(tmp_path: Path) -> None:
    runs = [saved(tmp_path / "one", [1.0] * 4), saved(tmp_path / "two", [1.0] * 5)]
    parts = comparison_tables(["a", "b"], *(RunReport.read(run) for run in runs))
    words = "The runs hold out different documents: their numbers do not compare."
    assert printed(parts)[-3:] == [words, "a: Fusion helped [x].", "b: Fusion helped [x]."]
    assert styled(parts)[-1] == (words, "bold yellow")


def test_on_a_narrow_screen_only_columns_of_runs_and_benchmarks_are_broken_over_lines(tmp_path: Path) -> None:
    tasks = {"a": {"b": {"higher_is_better": True, "values": {"a model of some words": 1.0}}}}
    runs = [saved(tmp_path / name, [1.0] * 4) for name in ("one", "two")]
    parts = [
        *report_tables(report_with(judge=JUDGE, benchmarks={"tasks": tasks})),
        *comparison_tables(["one", "two"], *(RunReport.read(run) for run in runs)),
    ]
    tables = [part for part in parts if isinstance(part, Table)]
    assert len(tables) == 7
    broken = {str(column.header) for table in tables for column in table.columns if not column.no_wrap}
    assert broken == {"a b ↑", "one", "two", "second - first"}
