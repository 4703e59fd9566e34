"""`fusion-ray run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fusion_ray import api
from fusion_ray.cli.show import report_tables
from fusion_ray.cli.terminal import Overrides, RecipePath, live_progress, out, say_stopped
from fusion_ray.stopping import stop_on_signals


def run(
    recipe: RecipePath,
    set_: Overrides = None,
    until: Annotated[str, typer.Option(help="Last stage to run.")] = "report",
    address: Annotated[str | None, typer.Option(help="Ray cluster; default RAY_ADDRESS, else a local Ray.")] = None,
) -> None:
    """Run a recipe: makes exactly what is stale or missing."""
    run_and_show(recipe, set_ or (), until=until, address=address)


def run_and_show(path: Path, overrides: Sequence[str], *, until: str = "report", address: str | None = None) -> None:
    """Run a recipe with live lines, and show the report if the run makes one."""
    recipe = api.load_recipe(path, tuple(overrides))
    stop_on_signals(lambda _: say_stopped())
    with live_progress(out) as tell:
        report = api.run(recipe, tell=tell, until=until, address=address)
    if report is None:
        return
    for table in report_tables(report):
        out.print(table)
    out.print(closing_lines(recipe.folder, report.merged, report.page), soft_wrap=True)


def closing_lines(run: str, merged: str, page: str) -> str:
    """Where a run's merged model and its page are, and how to use them."""
    return f"\nModel   {merged}\nReport  {page}\nChat    fusion-ray chat {run}\nServe   vllm serve {merged}"
