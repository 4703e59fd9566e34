"""What the command line does, as functions that take and give plain objects.

The examples run in a folder where `fusion-ray demo` has been: the models are demo/models/NAME, the recipe
demo/recipe.yaml, the run runs/demo.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_ray.errors import RecipeError
from fusion_ray.progress import Progress, Tell, silent

if TYPE_CHECKING:
    from fusion_ray.distributions.inspect_chats import InspectedRow
    from fusion_ray.fused.align.view import GroupView
    from fusion_ray.pipeline.status import Status
    from fusion_ray.planning.forecast import Forecast
    from fusion_ray.recipe import Recipe, load_recipe
    from fusion_ray.report.push import Parcel
    from fusion_ray.report.reading import RunReport
    from fusion_ray.targets.loss import fusion_loss
    from fusion_ray.targets.soft_target import soft_target

__all__ = [
    "Inspection",
    "Plan",
    "Progress",
    "Recipe",
    "RunReport",
    "align",
    "fusion_loss",
    "inspect",
    "load_recipe",
    "merge",
    "plan",
    "push",
    "run",
    "soft_target",
    "write_recipe",
]


# What brings pydantic, torch or pyarrow, and is imported when it is first used.
_HOMES = {
    "Recipe": "fusion_ray.recipe",
    "RunReport": "fusion_ray.report.reading",
    "fusion_loss": "fusion_ray.targets.loss",
    "load_recipe": "fusion_ray.recipe",
    "soft_target": "fusion_ray.targets.soft_target",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fusion_ray.api' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


@dataclass(frozen=True)
class Plan:
    """What is done and what is to do, and what that will take.

    Attributes:
        recipe: The run.
        statuses: Every artifact of it, its state (done, stale, to do, blocked), and why it must be made if it must.
        forecast: Time, GPU-hours and disk by stage, and what will not fit.
    """

    recipe: "Recipe"
    statuses: "list[Status]"
    forecast: "Forecast"

    def plain(self) -> dict[str, Any]:
        """As data that JSON can hold."""
        states = [{"artifact": str(s.artifact), "state": s.state, "why": s.why} for s in self.statuses]
        return {"artifacts": states, **self.forecast.plain()}


def plan(
    recipe: "Recipe | str | Path",
    *,
    gpus: int | None = None,
    gpu: str = "a100",
    gpu_memory_gib: float | None = None,
    cpus: int | None = None,
    memory_gib: float | None = None,
    object_store_gib: float | None = None,
    disk_gib: float | None = None,
    rows: int | None = None,
    tokens_per_row: float | None = None,
    price_per_gpu_hour: float | None = None,
) -> Plan:
    """Say what is done, stale or to do, what the rest will take, and what will not fit; starts nothing.

    Args:
        recipe: A recipe, or the path of one.
        gpus, gpu, gpu_memory_gib: How many GPUs the cluster has (default: as this machine), of which kind (l4, a10g,
            l40s, a100-40, a100, h100, h200, b200), and their memory where it is another.
        cpus, memory_gib, object_store_gib, disk_gib: Of the whole cluster; default: as this machine.
        rows, tokens_per_row: Of the corpus, where it is not here to be counted.
        price_per_gpu_hour: Adds what it costs, in the same currency.

    Raises:
        RecipeError: The recipe cannot be used, or there is no such kind of GPU.

    >>> import fusion_ray
    >>> plan = fusion_ray.plan("demo/recipe.yaml")
    >>> {status.state for status in plan.statuses}
    {'done'}
    >>> plan.forecast.problems
    []
    """
    from fusion_ray.pipeline.status import list_statuses
    from fusion_ray.planning.forecast import forecast
    from fusion_ray.planning.sizes import cluster_size

    loaded = _loaded(recipe)
    statuses = list_statuses(loaded)
    cluster = cluster_size(
        loaded, cpus=cpus, gpus=gpus, gpu=gpu, gpu_memory_gib=gpu_memory_gib, memory_gib=memory_gib,
        object_store_gib=object_store_gib, disk_gib=disk_gib,
    )  # fmt: skip
    expected = forecast(
        loaded, statuses, cluster, rows=rows, tokens_per_row=tokens_per_row, price_per_gpu_hour=price_per_gpu_hour
    )
    return Plan(loaded, statuses, expected)


def run(
    recipe: "Recipe | str | Path", *, until: str = "report", address: str | None = None, tell: Tell = silent
) -> "RunReport | None":
    """Run a recipe: make exactly what is stale or missing, stage after stage.

    Args:
        recipe: A recipe, or the path of one.
        until: The last stage to run: corpus, distributions, answers, fused, targets, merged or report.
        address: Ray cluster to use; default RAY_ADDRESS, else a local Ray.
        tell: Receives progress reports.

    Returns:
        The report; None where `until` is an earlier stage.

    Raises:
        FusionRayError: Whatever stopped it. All that was finished before stays, and the same call goes on from there.

    >>> import fusion_ray
    >>> report = fusion_ray.run("demo/recipe.yaml")
    >>> report.bits_per_byte["merged"]["overall"] < report.bits_per_byte["pivot"]["overall"]
    True
    >>> report.merged.endswith("runs/demo/5_merged")
    True
    """
    from fusion_ray.pipeline.run import run as make_all
    from fusion_ray.report.reading import RunReport

    loaded = _loaded(recipe)
    make_all(loaded, tell, until=until, address=address)
    return RunReport.read(loaded.folder) if until == "report" else None


def merge(
    config: str | Path,
    out: str | Path,
    *,
    add: Mapping[str, str | Path] | None = None,
    seed: int = 0,
    threads: int | None = None,
    tell: Tell = silent,
) -> str:
    """Merge models as a mergekit YAML file says, or add a target to a finished VaRM merge; runs without Ray.

    Args:
        config: mergekit YAML file; with `add`, the folder of a merged model.
        out: Folder of the new model.
        add: One more target: its name, and its folder.
        seed: Seeds the random methods (dare, della).
        threads: How many tensors are worked on at once; default: one for each core.
        tell: Receives progress reports.

    Returns:
        The folder of the new model.

    Raises:
        RecipeError: The file is wrong, asks for what is not supported, or `out` holds another model.
        MergeError: The models cannot be merged as it says.

    >>> import fusion_ray
    >>> config = '''
    ... merge_method: linear
    ... dtype: float32
    ... models:
    ...   - {model: runs/demo/4_targets/code, parameters: {weight: 0.5}}
    ...   - {model: runs/demo/4_targets/conversation, parameters: {weight: 0.5}}
    ... '''
    >>> from pathlib import Path
    >>> _ = Path("mine.yaml").write_text(config)
    >>> fusion_ray.merge("mine.yaml", "mine")
    'mine'
    """
    threads = threads or len(os.sched_getaffinity(0))
    if add is None:
        from fusion_ray.merged.from_yaml import merge_from_yaml

        merge_from_yaml(config, str(out), seed=seed, threads=threads, tell=tell)
        return str(out)
    from fusion_ray.merged.add import add_target

    if len(add) != 1:
        raise RecipeError(f"merge: add names {len(add)} targets; expected one, such as {{'math': 'models/math'}}.")
    ((name, folder),) = add.items()
    add_target(str(config), name, str(folder), str(out), threads=threads, tell=tell)
    return str(out)


def align(text: str, pivot: str | Path, source: str | Path, *, score: bool = False) -> "list[GroupView]":
    """Show how two tokenizers cut a text into groups, and what alignment moves between the models.

    Args:
        text: Any text.
        pivot, source: Model folders or Hub ids; tokenizers are enough where nothing is scored.
        score: Load both models and give their distributions.

    Returns:
        The groups of tokens that cover the same bytes, in order. Each has `pivot` and `source`, tuples of tokens; a
        token has its text, its bytes in `text`, and with `score` what either model says there.

    Raises:
        AlignmentError: The tokenizers do not cover the same bytes.

    >>> import fusion_ray
    >>> groups = fusion_ray.align("The cat sat.", "demo/models/pivot", "demo/models/conversation")
    >>> "".join(token.token for group in groups for token in group.source if group.is_aligned).strip()[:12]
    'The cat sat.'
    """
    from fusion_ray.fused.align_text import align_text

    return align_text(text, str(pivot), str(source), score=score)


@dataclass(frozen=True)
class Inspection:
    """A row of chats as a model reads it, and how a source's tokens lie beside.

    Attributes:
        row: Its tokens, which of them are answer, and what was left out and why.
        groups: Of its answers in the model's and the source's tokens; None without a source, or where one of them
            cannot read the row.
        problem: Why the source cannot read the row or be aligned; None where it can.
    """

    row: "InspectedRow"
    groups: "list[GroupView] | None" = None
    problem: str | None = None

    def plain(self) -> dict[str, Any]:
        """As data that JSON can hold."""
        aligned = {} if self.groups is None else {"groups": [asdict(group) for group in self.groups]}
        return self.row.plain() | aligned | ({} if self.problem is None else {"source_reason": self.problem})


def inspect(
    model: str | Path,
    chats: str | Path | Sequence[Mapping[str, Any]],
    *,
    row: int | None = None,
    id: str | None = None,
    count: int = 10,
    template: str = "native",
    source: str | Path | None = None,
    max_length: int = 2048,
    columns: Mapping[str, str] | None = None,
) -> list[Inspection]:
    """Show chats as a model reads them: every token, which are answer, where turns end, what was left out and why.

    Args:
        model: Model folder or Hub id; only its tokenizer is read.
        chats: A corpus as `corpus.path` names it, or rows themselves.
        row, id: One row, by its number from 0 over all files, or by its id.
        count: How many rows from the first on, where neither is given.
        template: As the recipe's `template`: native, none, a built-in's name, or a Jinja source.
        source: Another model; adds how its tokens of the answers lie beside the model's.
        max_length: As the recipe's `distributions.max_length`.
        columns: As the recipe's `corpus.columns`: prompt, answer, id, domain.

    Raises:
        RecipeError: No such model, chats, row or template.
        EngineError: The model's tokenizer cannot be loaded.

    >>> import fusion_ray
    >>> chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    >>> (found,) = fusion_ray.inspect("demo/models/pivot", [{"id": "a", "messages": chat, "tools": ["search"]}])
    >>> "".join(token.text for token in found.row.tokens if token.answer and not token.end)
    'Hello.'
    >>> found.row.dropped
    ['tools']
    """
    from fusion_ray.chat import choose_template
    from fusion_ray.distributions.inspect_chats import inspect_rows, pick_rows
    from fusion_ray.distributions.score import RenderSettings
    from fusion_ray.models.folders import load_tokenizer, longest_sequence, read_config
    from fusion_ray.recipe.loading import parse_columns
    from fusion_ray.storage.model_files import find_model

    given = str(chats) if isinstance(chats, Path) else chats
    named = parse_columns(columns or {})
    rows = pick_rows(given, row=row, identity=id, count=count, columns=named)
    read = []
    for place in (model, source) if source is not None else (model,):
        folder = str(place) if Path(place).is_dir() else find_model(str(place)).folder  # A tokenizer is enough.
        tokenizer = load_tokenizer(folder)
        config = read_config(folder) if Path(folder, "config.json").is_file() else {}
        limit = min(max_length, longest_sequence(config) or max_length)
        settings = RenderSettings(choose_template(template, tokenizer), limit, "cut")
        read.append((tokenizer, inspect_rows(rows, tokenizer, settings, named)))
    if source is None:
        return [Inspection(found) for found in read[0][1]]
    (ours, inspected), (theirs, beside) = read
    return [_aligned(a, b, ours, theirs) for a, b in zip(inspected, beside, strict=True)]


def _aligned(ours: "InspectedRow", theirs: "InspectedRow", tokenizer: Any, other: Any) -> Inspection:
    from fusion_ray.errors import FusionRayError
    from fusion_ray.fused.align_text import align_answers

    if ours.rendered is None or theirs.rendered is None:
        return Inspection(ours, problem=theirs.reason)
    try:
        return Inspection(ours, align_answers(ours.rendered, theirs.rendered, tokenizer, other))
    except FusionRayError as error:
        return Inspection(ours, problem=str(error))


def write_recipe(pivot: str, sources: list[str], corpus: str, out: str | Path = "recipe.yaml") -> Path:
    """Look at a pivot, sources and a corpus, and write a commented recipe for them.

    Args:
        pivot: Folder or Hub id of the pivot.
        sources: Folders or Hub ids of the sources.
        corpus: Chats: a file or folder.
        out: The recipe's file; it must not be there.

    Raises:
        RecipeError: A model or the corpus cannot be read, or there is a file at `out`.

    >>> import fusion_ray
    >>> path = fusion_ray.write_recipe(
    ...     "demo/models/pivot", ["demo/models/code"], corpus="demo/chats.jsonl", out="recipe.yaml"
    ... )
    >>> fusion_ray.load_recipe(path).targets.start
    'sft'
    """
    from fusion_ray.planning.recipe_writer import write_recipe as write

    if isinstance(sources, str) or not sources:
        raise RecipeError(f"write_recipe: expected a list of sources, got {sources!r:.80}.")
    write(str(pivot), [str(source) for source in sources], str(corpus), Path(out))
    return Path(out)


def push(run: str | Path, repository: str, *, private: bool = True, dry_run: bool = False) -> "Parcel":
    """Send a merged model to the Hugging Face Hub, with the token in the environment variable HF_TOKEN.

    Args:
        run: Folder of a finished run, or a model folder such as `merge` writes.
        repository: `user/name` at the Hub; it is made if it is not there.
        private: Whether a new repository is private.
        dry_run: Only say what would be sent.

    Returns:
        The files with their sizes, folders of this machine that the model card would make public, and `url`, the
        address of the commit, empty after a dry run.

    Raises:
        MissingArtifactError: There is no finished merged model.
        RecipeError: HF_TOKEN is not set, or the repository's name is none.
        FusionRayError: The Hub refused or could not be reached.

    >>> import fusion_ray
    >>> parcel = fusion_ray.push("runs/demo", "me/demo", dry_run=True)
    >>> "model.safetensors" in parcel.files, parcel.url
    (True, '')
    """
    from fusion_ray.report.push import pack, send

    parcel = pack(str(run))
    return parcel if dry_run else send(parcel, repository, private=private)


def _loaded(recipe: "Recipe | str | Path") -> "Recipe":
    from fusion_ray.recipe import Recipe, load_recipe

    if isinstance(recipe, str | Path):
        return load_recipe(recipe)
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"expected a Recipe or the path of one, got {type(recipe).__name__}.")
    return recipe
