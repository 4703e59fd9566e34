"""`fusion-ray init`."""

from pathlib import Path
from typing import Annotated

import typer

from fusion_ray import api
from fusion_ray.cli.terminal import out


def init(
    pivot: Annotated[str, typer.Argument(help="Folder or Hub id of the pivot.")],
    sources: Annotated[list[str], typer.Argument(help="Folders or Hub ids of the sources.")],
    corpus: Annotated[str, typer.Option(help="Chats: a file or folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Look at a pivot, sources and a corpus, and write a commented recipe for them."""
    api.write_recipe(pivot, sources, corpus, output)
    out.print(f"Wrote {output}. Next: [bold]fusion-ray plan {output}[/bold]")
