"""What the terminal shows while things run: live lines, the plan, and where the results are."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from fusion_ray.pipeline.status import Status
from fusion_ray.planning.costs import Cost
from fusion_ray.planning.forecast import Forecast
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import Recipe
from fusion_ray.storage.run_folder import PAGE, stage_folder

_QUIET_S = 10.0
_QUIET_SHARE = 0.02
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


def forecast_parts(forecast: Forecast) -> Iterator[Table | str]:
    """What a run will take, and what will not fit; nothing where everything is done."""
    if not forecast.stages:
        return
    cluster, corpus = forecast.cluster, forecast.corpus
    gpus = f", {cluster.gpus} GPUs of {cluster.gpu.memory_gib:.0f} GiB" if cluster.gpus else ""
    table = Table(title=f"\nwith {cluster.cpus} CPUs{gpus}", title_justify="left", box=None, pad_edge=False)
    money = [] if forecast.price_per_gpu_hour is None else ["money"]
    for column in ("to make", "rows", "tokens", "writes", "wall", "GPU-hours", *money, "rate"):
        table.add_column(column, justify="left" if column in ("to make", "rate") else "right", no_wrap=True)
    for stage in forecast.stages:
        price = [_price(stage.gpu_hours, forecast.price_per_gpu_hour)] if money else []
        table.add_row(*_cost_cells(stage), *price, stage.rate)
    total = ["in all", "", "", "", _duration(forecast.wall_s), f"{forecast.gpu_hours:,.1f}"]
    table.add_row(*total, *([_price(forecast.gpu_hours, forecast.price_per_gpu_hour)] if money else []), "")
    yield table
    yield f"{corpus.rows:,} rows of {corpus.tokens_per_row:,.0f} tokens: {corpus.source}. Times within a factor of 3."
    unknown = [name for name, size in forecast.models.items() if size is None]
    if unknown:
        yield f"Neither here nor stated: the size of {', '.join(unknown)} (the model's `parameters` in the recipe)."
    yield from (f"[red]Will not fit:[/red] {problem}" for problem in forecast.problems)


def _cost_cells(cost: Cost) -> list[str]:
    hours = "?" if cost.gpu_hours is None else f"{cost.gpu_hours:,.1f}"
    tokens = _short(cost.tokens) if cost.tokens else ""
    rows = f"{cost.rows:,}" if cost.rows else ""
    return [cost.artifact, rows, tokens, _short(cost.bytes_written) + "B", _duration(cost.wall_s), hours]


def _price(gpu_hours: float | None, price: float | None) -> str:
    return "?" if gpu_hours is None or price is None else f"{gpu_hours * price:,.2f}"


def _short(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f} "


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def closing_lines(folder: str) -> str:
    """Where the merged model and the report are, and how to use them."""
    model = stage_folder(folder, "merged")
    return (
        f"\nModel   {model}\nReport  {stage_folder(folder, 'report', PAGE)}\n"
        f"Chat    fusion-ray chat {folder}\nServe   vllm serve {model}"
    )
