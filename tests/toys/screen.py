"""What the terminal shows: its lines as plain text, and the pieces of it that have a style."""

import io
from collections.abc import Iterable

from rich.console import Console, RenderableType


def printed(parts: Iterable[RenderableType], width: int = 200) -> list[str]:
    """The lines that the parts take, without the spaces at their ends."""
    out = Console(file=io.StringIO(), width=width, highlight=False)
    for part in parts:
        out.print(part)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def styled(parts: Iterable[RenderableType], width: int = 200) -> list[tuple[str, str]]:
    """Every piece of text that has a style, and its style; titles and headings of tables left out."""
    out = Console(file=io.StringIO(), width=width, highlight=False, force_terminal=True)
    pieces = [segment for part in parts for segment in out.render(part) if not segment.is_control]
    styles = [(segment.text.strip(), str(segment.style or "none")) for segment in pieces if segment.text.strip()]
    headings = {
        column.header if isinstance(column.header, str) else column.header.plain  # type: ignore[attr-defined]
        for part in parts
        for column in getattr(part, "columns", ())
    }
    return [(text, style) for text, style in styles if style not in ("none", "italic") and text not in headings]
