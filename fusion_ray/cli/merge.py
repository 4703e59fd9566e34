"""`fusion-ray merge`."""

from typing import Annotated

import typer

from fusion_ray import api
from fusion_ray.cli.terminal import live_progress, out
from fusion_ray.errors import RecipeError


def merge(
    config: Annotated[str, typer.Argument(help="mergekit YAML; with --add a merged folder.", metavar="CONFIG")],
    output: Annotated[str, typer.Argument(help="Folder of the merged model.", metavar="OUT")],
    add: Annotated[
        str | None, typer.Option(help="One more target for a finished VaRM merge.", metavar="NAME=FOLDER")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random methods (dare, della).")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default one for each core.")] = None,
) -> None:
    """Merge models by a mergekit YAML, or add a target to a finished merge; runs without Ray."""
    name, _, folder = (add or "").partition("=")
    if add is not None and not folder:
        raise RecipeError(f"--add {add}: expected NAME=FOLDER, such as math=runs/mine/4_targets/math.")
    with live_progress(out) as tell:
        api.merge(config, output, add={name: folder} if add else None, seed=seed, threads=threads, tell=tell)
    out.print(f"Wrote {output}")
