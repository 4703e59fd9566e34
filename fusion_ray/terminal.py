"""What the terminal shows while things run: live lines, the plan, and where the results are."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from fusion_ray.pipeline import Status
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import Recipe

_QUIET_S = 10.0
_STATE_STYLES = {"done": "green", "stale": "yellow", "to do": "cyan", "blocked": "red"}


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
        if not finished and now - self.told.get(progress.what, -_QUIET_S) < _QUIET_S:
            return
        if finished and self.told.get(progress.what) == float("inf"):
            return
        self.told[progress.what] = float("inf") if finished else now
        share = progress.done / progress.total if progress.total else 1.0
        line = f"{now - self.started:7.1f} s  {progress.what:<24} {share:>5.0%}  {progress.detail}"
        self.console.print(line.rstrip(), markup=False, soft_wrap=True)


def plan_table(recipe: Recipe, statuses: list[Status]) -> Table:
    """The state of every artifact of a recipe."""
    table = Table(title=f"{recipe.name} in {recipe.folder}", title_justify="left", box=None, pad_edge=False)
    table.add_column("artifact", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("why")
    for artifact, state, why in statuses:
        style = _STATE_STYLES[state]
        table.add_row(str(artifact), f"[{style}]{state}[/{style}]", why.replace("[", r"\["))
    return table


def closing_lines(folder: str) -> str:
    """Where the merged model and the report are, and how to use them."""
    model = f"{folder}/5_merged"
    return (
        f"\nModel   {model}\nReport  {folder}/6_report/report.html\n"
        f"Chat    fusion-ray chat {folder}\nServe   vllm serve {model}"
    )
