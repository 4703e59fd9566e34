"""`fusion-ray plan`."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fusion_ray import api
from fusion_ray.cli.terminal import Overrides, RecipePath, out

if TYPE_CHECKING:
    from fusion_ray.planning.costs import Cost
    from fusion_ray.planning.forecast import Forecast

_STATE_STYLES = {"done": "green", "stale": "yellow", "to do": "cyan", "blocked": "red"}


def plan(
    recipe: RecipePath,
    set_: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of the cluster; default this machine's.")] = None,
    gpu: Annotated[str, typer.Option(help="Their kind: l4, a10g, l40s, a100-40, a100, h100, h200, b200.")] = "a100",
    gpu_memory: Annotated[float | None, typer.Option(help="Memory of one, where it differs.", metavar="GIB")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs of the cluster.")] = None,
    memory: Annotated[float | None, typer.Option(help="Memory of the cluster.", metavar="GIB")] = None,
    object_store: Annotated[float | None, typer.Option(help="Ray's object store.", metavar="GIB")] = None,
    disk: Annotated[float | None, typer.Option(help="Free disk for the run folder.", metavar="GIB")] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of the corpus, where it is not here.")] = None,
    tokens_per_row: Annotated[float | None, typer.Option(help="Tokens of a row, likewise.")] = None,
    price_per_gpu_hour: Annotated[float | None, typer.Option(help="Adds what it costs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what is done, stale or to do, what the rest will take, and what will not fit; starts nothing."""
    found = api.plan(
        api.load_recipe(recipe, tuple(set_ or ())), gpus=gpus, gpu=gpu, gpu_memory_gib=gpu_memory, cpus=cpus,
        memory_gib=memory, object_store_gib=object_store, disk_gib=disk, rows=rows, tokens_per_row=tokens_per_row,
        price_per_gpu_hour=price_per_gpu_hour,
    )  # fmt: skip
    if as_json:
        sys.stdout.write(json.dumps(found.plain(), indent=1) + "\n")
        return
    for part in (_states_table(found), *forecast_parts(found.forecast)):
        out.print(part)


def _states_table(plan: api.Plan) -> Table:
    """The state of every artifact of a recipe."""
    table = Table(title=f"{plan.recipe.name} in {plan.recipe.folder}", title_justify="left", box=None, pad_edge=False)
    table.add_column("artifact", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("why")
    for artifact, state, why in plan.statuses:
        style = _STATE_STYLES[state]
        table.add_row(str(artifact), f"[{style}]{state}[/{style}]", why.replace("[", r"\["))
    return table


def forecast_parts(forecast: "Forecast") -> Iterator[Table | str]:
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


def _cost_cells(cost: "Cost") -> list[str]:
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
