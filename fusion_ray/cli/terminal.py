"""What commands share: arguments, the console, and the live lines of what runs."""

import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fusion_ray.progress import Progress, Tell

_QUIET_S = 10.0
_QUIET_SHARE = 0.02

out = Console(highlight=False)

RecipePath = Annotated[Path, typer.Argument(help="Recipe, YAML or JSON.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override one setting: section.key=value.", metavar="KEY=VALUE")
]


def say_stopped() -> None:
    """What a run that was told to end says last."""
    out.show_cursor()  # The live lines have hidden it.
    sys.stderr.write("Stopped. What was finished is kept; the same command goes on from there.\n")


# Control and format characters (but not the joiners of words and emoji), line separators, lone surrogates.
_STEERING = ("Cc", "Cf", "Zl", "Zp", "Cs")


def printable(text: str) -> str:
    """Text of data for the terminal: characters that would steer it are shown and not obeyed, but line ends and tabs.

    >>> printable("a\\x1b[31m\\n")
    'a\\\\x1b[31m\\n'
    """
    return "".join(
        character
        if character in "\n\t\u200c\u200d" or unicodedata.category(character) not in _STEERING
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


@contextmanager
def live_progress(console: Console) -> Iterator[Tell]:
    """Draw one live line per artifact on a terminal; elsewhere print a plain line now and then."""
    if not console.is_terminal:
        yield _PlainLines(console)
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(24),
        TextColumn("{task.percentage:>4.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Bars(*columns, console=console, refresh_per_second=4) as bars:
        yield _LiveLines(bars)


class _LiveLines:
    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.what not in self.tasks:
            self.tasks[progress.what] = self.bars.add_task(progress.what, total=progress.total, detail="")
        self.bars.update(
            self.tasks[progress.what], completed=progress.done, total=progress.total, detail=progress.detail
        )


class _PlainLines:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()
        self.told: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        finished = progress.done >= progress.total
        # In a job of hours a line every minute or two is enough.
        quiet_s = max(_QUIET_S, _QUIET_SHARE * (now - self.started))
        if not finished and now - self.told.get(progress.what, -quiet_s) < quiet_s:
            return
        if finished and self.told.get(progress.what) == float("inf"):
            return
        self.told[progress.what] = float("inf") if finished else now
        share = progress.done / progress.total if progress.total else 1.0
        left = "" if finished or progress.left_s is None else f", {_clock(progress.left_s)} left"
        line = f"{now - self.started:7.1f} s  {progress.what:<24} {share:>5.0%}  {progress.detail}{left}"
        self.console.print(line.rstrip(), markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
