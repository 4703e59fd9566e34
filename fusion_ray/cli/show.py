"""`fusion-ray show`: the report in the terminal, one run, or two side by side."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fusion_ray import api
from fusion_ray.cli.terminal import out

if TYPE_CHECKING:
    from fusion_ray.api import RunReport

_MOST_DOMAINS = 8
_OVERALL = "overall"
_VERDICT_STYLES = {True: "bold green", False: "bold red", None: "bold yellow"}


def show(
    runs: Annotated[list[str], typer.Argument(help="One run folder, or two to compare.", metavar="RUN [RUN]")],
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of tables.")] = False,
) -> None:
    """Show the report of a run in the terminal, or compare two runs."""
    if len(runs) > 2:
        raise typer.BadParameter("give one run folder, or two to compare")
    reports = [api.RunReport.read(run) for run in runs]
    if as_json:
        contents = [report.content for report in reports]
        sys.stdout.write(json.dumps(contents[0] if len(contents) == 1 else contents, indent=1) + "\n")
        return
    for part in report_tables(reports[0]) if len(reports) == 1 else comparison_tables(runs, *reports):
        out.print(part)


def report_tables(report: "RunReport") -> list[RenderableType]:
    """What the terminal shows of one run: scores, differences and verdict."""
    content = report.content
    more = [*benchmark_tables(content), *judge_tables(content)]
    return [scores_table(content), Text(), differences_table(content), Text(), *more, *verdict_lines(content)]


def comparison_tables(runs: list[str], first: "RunReport", second: "RunReport") -> list[RenderableType]:
    """What the terminal shows of two runs, named as on the command line: what changed."""
    return [_models_table(first.content, second.content, runs), Text(), *_compare_merged(runs, first, second)]


def scores_table(report: dict[str, Any]) -> Table:
    """Held-out bits per byte of every model, by domain and overall; the best of every column in bold."""
    rates = report["bits_per_byte"]
    domains = [domain for domain in rates["pivot"] if domain != _OVERALL]
    shown = sorted(sorted(domains, key=lambda d: -report["heldout"]["bytes_by_domain"][d])[:_MOST_DOMAINS])
    left = f"; {len(domains) - len(shown)} smaller domains are in report.json" if len(shown) < len(domains) else ""
    heldout = report["heldout"]
    title = (
        f"{report['name']}: held-out bits per byte, {heldout['documents']} documents, {heldout['bytes']:,} bytes; "
        f"lower is better{left}"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for domain in [*shown, _OVERALL]:
        table.add_column(Text(domain), justify="right", no_wrap=True)
    table.add_column("recovered", justify="right", no_wrap=True)
    best = {domain: min(by_domain[domain] for by_domain in rates.values()) for domain in [*shown, _OVERALL]}
    for model, by_domain in rates.items():
        cells = [_number(by_domain[domain], best[domain]) for domain in [*shown, _OVERALL]]
        share = report["oracle"]["recovered_share"].get(model, {}).get(_OVERALL)
        table.add_row(Text(model), *cells, "" if share is None else f"{share:.0%}")
    oracle = report["oracle"]["bits_per_byte"]
    table.add_row(
        Text("oracle", style="dim"),
        *(Text(f"{oracle[d]:.3f}", style="dim") for d in [*shown, _OVERALL]),
        Text("100%", style="dim"),
    )
    return table


def _number(value: float, best: float | None) -> Text:
    return Text(f"{value:.3f}", style="bold" if value == best else "")


def differences_table(report: dict[str, Any]) -> Table:
    """Overall differences with their intervals; below 0 the first model is better."""
    table = Table(
        title=f"differences overall, 95 % intervals over documents ({report['bootstrap']:,} draws)",
        title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    table.add_column("first - second", no_wrap=True)
    for column in ("bits per byte", "95 % interval", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for pair, by_domain in report["differences"].items():
        table.add_row(Text(pair), *_difference_cells(by_domain[_OVERALL]))
    return table


def _difference_cells(found: dict[str, float]) -> list[Text]:
    style = "green" if found["high"] < 0 else "red" if found["low"] > 0 else ""
    p_value = "<0.001" if found["p_value"] < 0.001 else f"{found['p_value']:.3f}"
    interval = f"[{found['low']:+.4f}, {found['high']:+.4f}]"
    return [Text(f"{found['value']:+.4f}", style=style), Text(interval), Text(p_value)]


def verdict_lines(report: dict[str, Any]) -> list[Text]:
    """The verdict, and its warnings."""
    verdict = report["verdict"]
    lines = [Text(verdict["text"], style=_VERDICT_STYLES[verdict["helped"]])]
    lines += [Text(note) for note in verdict["notes"]]
    if report["heldout"]["left_out"]:
        lines.append(
            Text(f"{len(report['heldout']['left_out'])} held-out chats were left out: not scored by every model.")
        )
    if report["remote_code"]:
        lines.append(Text("Remote code was allowed for a model of this run.", style="yellow"))
    return lines


def benchmark_tables(report: dict[str, Any]) -> list[RenderableType]:
    """Every model's benchmarks; nothing where none were run."""
    from fusion_ray.report.benchmarks import benchmark_columns, best_value

    columns = benchmark_columns(report.get("benchmarks"))
    if not columns:
        return []
    left = f" ({len(columns) - _MOST_DOMAINS} more in report.json)" if len(columns) > _MOST_DOMAINS else ""
    table = Table(title=f"benchmarks{left}", title_justify="left", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for title, _ in columns[:_MOST_DOMAINS]:
        table.add_column(Text(title), justify="right")
    for model in columns[0][1]["values"]:
        cells = [_number(found["values"][model], best_value(found)) for _, found in columns[:_MOST_DOMAINS]]
        table.add_row(Text(model), *cells)
    return [table, Text()]


def judge_tables(report: dict[str, Any]) -> list[RenderableType]:
    """What the judge said: every model's rating, and the merged model against each other; nothing without a judge."""
    judge = report.get("judge")
    if not judge:
        return []
    from fusion_ray.report.judging import describe_cost, judged_turns

    header = Text(f"judge {judge['model']}: {judge['questions']} questions, {describe_cost(judge)}", style="italic")
    ratings = Table(box=None, pad_edge=False)
    turns = judged_turns(judge)
    for column in ("model", "rating of 10", *turns):
        ratings.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for model, found in judge["ratings"].items():
        cells = [found.get(key) for key in ("overall", *turns)]
        ratings.add_row(Text(model), *("" if cell is None else f"{cell:.2f}" for cell in cells))
    pairs = Table(title="judged side by side, in both orders", title_justify="left", box=None, pad_edge=False)
    for column in ("first - second", "wins", "ties", "losses", "share of points", "95 % interval"):
        pairs.add_column(column, justify="left" if column.startswith("first") else "right", no_wrap=True)
    for pair, found in judge["pairs"].items():
        points = found["points"]
        share = [""] if points is None else [f"{points['value']:.0%}", f"[{points['low']:.0%}, {points['high']:.0%}]"]
        pairs.add_row(Text(pair), *(str(found[name]) for name in ("wins", "ties", "losses")), *share)
    return [header, *(part for table in (ratings, pairs) if table.row_count for part in (table, Text()))]


def _models_table(first: dict[str, Any], second: dict[str, Any], runs: list[str]) -> Table:
    table = Table(
        title="overall held-out bits per byte; lower is better", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("model", no_wrap=True)
    for run in runs:
        table.add_column(Text(run), justify="right")
    table.add_column("second - first", justify="right")
    for model in dict.fromkeys([*first["bits_per_byte"], *second["bits_per_byte"]]):
        values = [report["bits_per_byte"].get(model, {}).get(_OVERALL) for report in (first, second)]
        known = [value for value in values if value is not None]
        cells = [Text("") if value is None else _number(value, min(known)) for value in values]
        change = Text(f"{known[1] - known[0]:+.4f}") if len(known) == 2 else Text("")
        table.add_row(Text(model), *cells, change)
    return table


def _compare_merged(runs: list[str], first: "RunReport", second: "RunReport") -> list[RenderableType]:
    """The two merged models by domain, with intervals where both runs hold out the same documents."""
    from fusion_ray.report.reading import compare_merged

    differences = compare_merged(first, second)
    if differences is None:
        return [
            Text("The runs hold out different documents: their numbers do not compare.", style="bold yellow"),
            *(Text(f"{run}: {report.verdict}") for run, report in zip(runs, (first, second), strict=True)),
        ]
    table = Table(title="merged, second - first, 95 % intervals", title_justify="left", box=None, pad_edge=False)
    table.add_column("domain", no_wrap=True)
    for column in ("bits per byte", "95 % interval", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for domain, found in differences.items():
        table.add_row(Text(domain), *_difference_cells(found._asdict()))
    return [table]
