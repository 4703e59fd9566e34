"""The command line: a file a command. Every error becomes one clear message and an exit code."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from fusion_ray._version import __version__
from fusion_ray.cli.align import align
from fusion_ray.cli.chat import chat
from fusion_ray.cli.demo import demo
from fusion_ray.cli.doctor import doctor
from fusion_ray.cli.init import init
from fusion_ray.cli.inspect import inspect
from fusion_ray.cli.merge import merge
from fusion_ray.cli.plan import plan
from fusion_ray.cli.push import push
from fusion_ray.cli.run import run
from fusion_ray.cli.show import show
from fusion_ray.cli.terminal import printable, say_stopped
from fusion_ray.errors import FusionRayError

app = typer.Typer(
    name="fusion-ray",
    help="Fuse the knowledge of several chat LLMs of any architecture and tokenizer into one model, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (demo, init, inspect, plan, run, show, align, merge, chat, push, doctor):
    app.command()(command)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fusion-ray {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that need no command."""


def main() -> None:
    """Entry point of the `fusion-ray` command."""
    try:
        app()
    except FusionRayError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]{type(error).__name__}[/bold red]", end=" ")
        sys.stderr.write(f"{printable(str(error))}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say_stopped()
        sys.exit(130)
