"""`fusion-ray inspect`: look at chats as a model reads them, before it is trained on them."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fusion_ray import api
from fusion_ray.cli.align import draw_groups
from fusion_ray.cli.terminal import out, printable

if TYPE_CHECKING:
    from fusion_ray.distributions.inspect_chats import InspectedToken

# Neighbouring answer tokens differ in colour, so that one sees where they are cut.
_ANSWER = ("black on green", "black on bright_green")
_END = "bold white on blue"


def inspect(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model; only its tokenizer is read.")],
    chats: Annotated[str, typer.Argument(help="Chats: a file or folder.")],
    row: Annotated[int | None, typer.Option(min=0, help="One row, by its number from 0.")] = None,
    id: Annotated[str | None, typer.Option(help="One row, by its id.")] = None,
    count: Annotated[int, typer.Option("--rows", min=1, help="How many, where no row is named.")] = 10,
    template: Annotated[str, typer.Option(help="native, none, chatml, ... or a Jinja source.")] = "native",
    source: Annotated[str | None, typer.Option(help="Another model: how its tokens lie beside.")] = None,
    max_length: Annotated[int, typer.Option(min=1, help="As distributions.max_length.")] = 2048,
    columns: Annotated[str, typer.Option(help="As corpus.columns: prompt=NAME,answer=NAME,id=NAME,domain=NAME.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show chats as a model reads them: which tokens are answer, where turns end, what was left out and why."""
    if row is not None and id is not None:
        raise typer.BadParameter("give --row or --id, not both")
    named = dict(part.partition("=")[::2] for part in columns.split(",") if part)
    found = api.inspect(
        model, chats, row=row, id=id, count=count, template=template, source=source, max_length=max_length,
        columns=named,
    )  # fmt: skip
    if as_json:
        sys.stdout.write(json.dumps({"rows": [each.plain() for each in found]}, ensure_ascii=False, indent=1) + "\n")
        return
    for each in found:
        for part in _draw(each):
            out.print(part, soft_wrap=True)
    used = [each for each in found if each.row.reason is None]
    answers = sum(token.answer for each in used for token in each.row.tokens)
    tokens = sum(len(each.row.tokens) for each in used)
    legend = Text(f"{len(used)} of {len(found)} rows usable, {answers:,} of their {tokens:,} tokens are answer: ")
    if out.is_terminal:
        out.print(legend.append("answer", _ANSWER[0]).append(" ").append("end of turn", _END).append(" context", "dim"))
    else:
        out.print(legend.append("⟦tok|en|s⟧"), soft_wrap=True)


def _draw(found: api.Inspection) -> Iterator[Text]:
    row = found.row
    yield Text(printable(f"{row.id:.200}  {row.domain or ''}".replace("\n", "\\n")), style="bold")
    if row.dropped:
        yield Text(f"not read: {printable(', '.join(row.dropped))}", style="yellow")
    if row.reason is not None:
        yield Text(f"refused: {printable(row.reason)}\n", style="red")
        return
    yield _draw_tokens(row.tokens)
    if row.left_out:
        yield Text(f"cut: {row.left_out:,} more tokens are beyond the longest length", style="yellow")
    if found.problem is not None:
        yield Text(f"the source: {printable(found.problem)}", style="red")
    if found.groups is not None:
        yield from draw_groups(found.groups, out.width)  # type: ignore[misc]
    yield Text()


def _draw_tokens(tokens: "list[InspectedToken]") -> Text:
    """Answer tokens in colours; where there are none, between brackets."""
    text, plain = Text(), not out.is_terminal
    for number, token in enumerate(tokens):
        before = tokens[number - 1].turn if number else None
        if plain and token.turn != before:
            text.append("⟧" * (before is not None) + "⟦" * (token.turn is not None))
        elif plain and token.turn is not None:
            text.append("|")
        text.append(printable(token.text), _END if token.end else _ANSWER[number % 2] if token.answer else "dim")
    return text.append("⟧") if plain and tokens and tokens[-1].answer else text
