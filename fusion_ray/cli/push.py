"""`fusion-ray push`."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fusion_ray import api
from fusion_ray.cli.terminal import out


def push(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, or a merged model folder.")],
    repo: Annotated[str, typer.Option(help="Repository at the Hub: user/name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Send it; without this nothing is sent.")] = False,
    private: Annotated[bool, typer.Option(help="Whether a new repository is private.")] = True,
) -> None:
    """Send a merged model to the Hugging Face Hub, with the token in HF_TOKEN; lists the files first."""
    parcel = api.push(run, repo, private=private, dry_run=True)
    table = Table(title=f"{parcel.folder} to {repo}", title_justify="left", box=None, pad_edge=False)
    table.add_column("file", no_wrap=True)
    table.add_column("bytes", justify="right")
    for name, size in parcel.files.items():
        table.add_row(Text(name), f"{size:,}")
    table.add_row("all", f"{sum(parcel.files.values()):,}", style="bold")
    out.print(table)
    if parcel.local_paths:
        named = ", ".join(parcel.local_paths)
        out.print(Text(f"README.md or merge_config.yaml name folders of this machine: {named}. Edit them first."))
    if not yes:
        out.print("Nothing was sent. `--yes` sends it.")
        return
    out.print(Text(f"Sent: {api.push(run, repo, private=private).url}"))
