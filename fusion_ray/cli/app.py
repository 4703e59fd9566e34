"""The command line: every error becomes one clear message and an exit code. Heavy imports wait for their command."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusion_ray.errors import FusionRayError, RecipeError

app = typer.Typer(
    name="fusion-ray",
    help="Fuse the knowledge of several chat LLMs of any architecture and tokenizer into one model, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
out = Console(highlight=False)

RecipePath = Annotated[Path, typer.Argument(help="Recipe, YAML or JSON.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override one setting: section.key=value.", metavar="KEY=VALUE")
]
Address = Annotated[str | None, typer.Option(help="Ray cluster; default RAY_ADDRESS, else a local Ray.")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo's models and chats go.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
) -> None:
    """Make three small specialists and a pivot from text on this machine, then fuse them: the whole job in minutes."""
    from fusion_ray.cli.terminal import live_progress
    from fusion_ray.demo import prepare

    with live_progress(out) as tell:
        path = prepare(folder, seed, tell)
    _run(path, [f"seed={seed}"], "report", None)


@app.command()
def init(
    pivot: Annotated[str, typer.Argument(help="Folder or Hub id of the pivot.")],
    sources: Annotated[list[str], typer.Argument(help="Folders or Hub ids of the sources.")],
    corpus: Annotated[str, typer.Option(help="Chats: a file or folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Look at a pivot, sources and a corpus, and write a commented recipe for them."""
    from fusion_ray.planning.recipe_writer import write_recipe

    write_recipe(pivot, sources, corpus, output)
    out.print(f"Wrote {output}. Next: [bold]fusion-ray plan {output}[/bold]")


@app.command()
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
    from fusion_ray.cli.terminal import forecast_parts, plan_table
    from fusion_ray.pipeline.status import list_statuses
    from fusion_ray.planning.forecast import forecast
    from fusion_ray.planning.sizes import cluster_size
    from fusion_ray.recipe import load_recipe

    loaded = load_recipe(recipe, tuple(set_ or ()))
    statuses = list_statuses(loaded)
    cluster = cluster_size(
        loaded, cpus=cpus, gpus=gpus, gpu=gpu, gpu_memory_gib=gpu_memory, memory_gib=memory,
        object_store_gib=object_store, disk_gib=disk,
    )  # fmt: skip
    expected = forecast(
        loaded, statuses, cluster, rows=rows, tokens_per_row=tokens_per_row, price_per_gpu_hour=price_per_gpu_hour
    )
    if as_json:
        states = [{"artifact": str(s.artifact), "state": s.state, "why": s.why} for s in statuses]
        sys.stdout.write(json.dumps({"artifacts": states, **expected.plain()}, indent=1) + "\n")
        return
    for part in (plan_table(loaded, statuses), *forecast_parts(expected)):
        out.print(part)


@app.command()
def run(
    recipe: RecipePath,
    set_: Overrides = None,
    until: Annotated[str, typer.Option(help="Last stage to run.")] = "report",
    address: Address = None,
) -> None:
    """Run a recipe: makes exactly what is stale or missing."""
    _run(recipe, set_ or [], until, address)


def _run(recipe: Path, overrides: list[str], until: str, address: str | None) -> None:
    from fusion_ray.cli.terminal import closing_lines, live_progress
    from fusion_ray.pipeline import run as running
    from fusion_ray.recipe import load_recipe
    from fusion_ray.stopping import stop_on_signals

    loaded = load_recipe(recipe, tuple(overrides))
    stop_on_signals(lambda _: _say_stopped())
    with live_progress(out) as tell:
        running.run(loaded, tell, until=until, address=address)
    if until == "report":
        _show(loaded.folder)
        out.print(closing_lines(loaded.folder), soft_wrap=True)


@app.command()
def show(
    runs: Annotated[list[str], typer.Argument(help="One run folder, or two to compare.", metavar="RUN [RUN]")],
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of tables.")] = False,
) -> None:
    """Show the report of a run in the terminal, or compare two runs."""
    if len(runs) > 2:
        raise typer.BadParameter("give one run folder, or two to compare")
    if as_json:
        from fusion_ray.report.reading import read_report

        reports = [read_report(run) for run in runs]
        sys.stdout.write(json.dumps(reports[0] if len(reports) == 1 else reports, indent=1) + "\n")
    else:
        _show(*runs)


def _show(*runs: str) -> None:
    from fusion_ray.cli.show import report_tables

    for table in report_tables(*runs):
        out.print(table)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="Model folder, or the folder of a finished run.")],
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token each time.")] = 0.0,
) -> None:
    """Talk to a model in the terminal."""
    from fusion_ray.cli.chat import chat as talk

    talk(model, out, max_tokens=max_tokens, temperature=temperature)


@app.command()
def push(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, or a merged model folder.")],
    repo: Annotated[str, typer.Option(help="Repository at the Hub: user/name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Send it; without this nothing is sent.")] = False,
    private: Annotated[bool, typer.Option(help="Whether a new repository is private.")] = True,
) -> None:
    """Send a merged model to the Hugging Face Hub, with the token in HF_TOKEN; lists the files first."""
    from fusion_ray.report.push import pack, send

    parcel = pack(run)
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
    out.print(Text(f"Sent: {send(parcel, repo, private=private)}"))


@app.command()
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
    from fusion_ray.cli.terminal import live_progress
    from fusion_ray.merged.add import add_target
    from fusion_ray.merged.from_yaml import merge_from_yaml

    threads = threads or len(os.sched_getaffinity(0))
    with live_progress(out) as tell:
        if add is None:
            merge_from_yaml(config, output, seed=seed, threads=threads, tell=tell)
        else:
            name, _, folder = add.partition("=")
            if not folder:
                raise RecipeError(f"--add {add}: expected NAME=FOLDER, such as math=runs/mine/4_targets/math.")
            add_target(config, name, folder, output, threads=threads, tell=tell)
    out.print(f"Wrote {output}")


@app.command()
def align(
    text: Annotated[str, typer.Argument(help="Any text.")],
    pivot: Annotated[str, typer.Argument(help="Model folder of the pivot.")],
    source: Annotated[str, typer.Argument(help="Model folder of the source.")],
    score: Annotated[bool, typer.Option(help="Load both models and show their distributions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the groups as JSON.")] = False,
) -> None:
    """Show how two tokenizers cut a text into groups, and what alignment moves between the models."""
    from fusion_ray.cli.align import draw_groups, plain_groups
    from fusion_ray.fused.align_text import align_text

    groups = align_text(text, pivot, source, score=score)
    if as_json:
        sys.stdout.write(json.dumps(plain_groups(groups), ensure_ascii=False, indent=1) + "\n")
        return
    for part in draw_groups(groups, out.width):
        out.print(part)


@app.command()
def doctor() -> None:
    """Check this machine: versions, devices, engines, memory, disk."""
    from fusion_ray.cli.doctor import examine

    table = Table(box=None, pad_edge=False)
    for column in ("check", "found", "advice"):
        table.add_column(column)
    findings = examine()
    for finding in findings:
        table.add_row(finding.check, finding.found, finding.advice, style=None if finding.fine else "yellow")
    out.print(table)
    if any(finding.fatal for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the `fusion-ray` command."""
    try:
        app()
    except FusionRayError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]{type(error).__name__}[/bold red]", end=" ")
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say_stopped()
        sys.exit(130)


def _say_stopped() -> None:
    out.show_cursor()  # The live lines have hidden it.
    sys.stderr.write("Stopped. What was finished is kept; the same command goes on from there.\n")
