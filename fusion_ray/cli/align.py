"""`fusion-ray align`."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fusion_ray import api
from fusion_ray.cli.terminal import out, printable

if TYPE_CHECKING:
    from fusion_ray.fused.align.view import Entry, GroupView, TokenView


def align(
    text: Annotated[str, typer.Argument(help="Any text.")],
    pivot: Annotated[str, typer.Argument(help="Model folder of the pivot.")],
    source: Annotated[str, typer.Argument(help="Model folder of the source.")],
    score: Annotated[bool, typer.Option(help="Load both models and show their distributions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the groups as JSON.")] = False,
) -> None:
    """Show how two tokenizers cut a text into groups, and what alignment moves between the models."""
    groups = api.align(text, pivot, source, score=score)
    if as_json:
        plain = [asdict(group) for group in groups]
        sys.stdout.write(json.dumps(plain, ensure_ascii=False, indent=1) + "\n")
        return
    for part in draw_groups(groups, out.width):
        out.print(part)


def draw_groups(groups: list["GroupView"], width: int) -> list[Text | Table]:
    """Both tokenizations under each other, groups in brackets, wrapped to the terminal's width."""
    drawn: list[Text | Table] = []
    upper, lower = Text("pivot  "), Text("source ")
    for group in groups:
        ours, theirs = _cell(group.pivot), _cell(group.source)
        cell = max(len(ours), len(theirs))
        if len(upper) + cell + 3 > width and len(upper) > 7:
            drawn += [upper, lower, Text("")]
            upper, lower = Text("pivot  "), Text("source ")
        style = "" if len(group.pivot) == len(group.source) == 1 else "bold cyan"
        upper.append(f"[{ours:<{cell}}] ", style=style)
        lower.append(f"[{theirs:<{cell}}] ", style=style)
    drawn += [upper, lower]
    if any(token.top for group in groups for token in group.pivot):
        drawn += [Text(""), _distributions(groups)]
    return drawn


def _cell(tokens: "tuple[TokenView, ...]") -> str:
    return "|".join(printable(token.shown) for token in tokens)


def _distributions(groups: list["GroupView"]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("pivot token", no_wrap=True, min_width=12)
    for column in ("source says", "projected", "pivot says"):
        table.add_column(column, no_wrap=True)
    for group in groups:
        for number, token in enumerate(group.pivot):
            says = group.source[number].top if number < len(group.source) else ()
            cells = (_entries(entries) for entries in (says, token.projected, token.top))
            table.add_row(Text(printable(token.shown)), *cells)
    return table


def _entries(entries: "tuple[Entry, ...]") -> Text:
    text = Text()
    for entry in entries:
        text.append(f"{printable(entry.shown)} {entry.probability:.2f}  ", style="green" if entry.is_real else "")
    return text
