"""`fusion-ray demo`."""

from pathlib import Path
from typing import Annotated

import typer

from fusion_ray.cli.run import run_and_show
from fusion_ray.cli.terminal import live_progress, out


def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo's models and chats go.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
) -> None:
    """Make three small specialists and a pivot from text on this machine, then fuse them: the whole job in minutes."""
    from fusion_ray.demo import prepare

    with live_progress(out) as tell:
        path = prepare(folder, seed, tell)
    run_and_show(path, [f"seed={seed}"])
