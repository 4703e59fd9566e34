"""`fusion-ray align`."""

from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from fusion_ray.fused.align.view import Entry, GroupView, TokenView, show_spaces

_SHOWN = 3


def plain_groups(groups: list[GroupView]) -> list[dict[str, Any]]:
    """The groups as data that JSON holds."""
    return [asdict(group) for group in groups]


def draw_groups(groups: list[GroupView], width: int) -> list[Text | Table]:
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


def _cell(tokens: tuple[TokenView, ...]) -> str:
    return "|".join(show_spaces(token.token) for token in tokens)


def _distributions(groups: list[GroupView]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("pivot token", no_wrap=True, min_width=12)
    for column in ("source says", "projected", "pivot says"):
        table.add_column(column, no_wrap=True)
    for group in groups:
        for number, token in enumerate(group.pivot):
            says = group.source[number].top if number < len(group.source) else ()
            cells = (_entries(entries) for entries in (says, token.projected, token.top))
            table.add_row(Text(show_spaces(token.token)), *cells)
    return table


def _entries(entries: tuple[Entry, ...]) -> Text:
    text = Text()
    for entry in entries:
        text.append(f"{show_spaces(entry.token)} {entry.probability:.2f}  ", style="green" if entry.is_real else "")
    return text
