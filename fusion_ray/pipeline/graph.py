"""Which artifacts a recipe asks for, and what each is made from."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fusion_ray.corpus.files import chat_files
from fusion_ray.errors import RecipeError
from fusion_ray.recipe import Evaluate, LocalTask, Recipe, Section
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.filesystem import absolute, exists, join, list_files, locate, stamp
from fusion_ray.storage.model_files import ModelFiles, file_hash, find_model, trained_model

# In this order; and the numbers of their folders. What sources answer anew is scored as the corpus was, and where
# targets start from the SFT control, it scores the corpus before they do.
STAGES = ("corpus", "distributions", "answers", "fused", "targets", "merged", "report")


_NUMBERS = {"corpus": 1, "distributions": 2, "answers": 2, "fused": 3, "targets": 4, "merged": 5, "report": 6}


# Settings that say where and how fast, not what: changing one of them makes nothing stale.
_PLACEMENT = {
    "actors", "cpus_per_actor", "gpus_per_actor", "wait_s", "cpus_per_task", "cpus_per_worker", "gpus_per_worker",
    "side_by_side", "retries", "max_rejected", "checkpoint_every_steps", "controls", "concurrency", "timeout_s",
    "block_mib", "batch_size", "nodes", "trackers",
}  # fmt: skip


# Settings of what teachers say; the SFT control has none, so it stays as it is when one of them changes.
_OF_TEACHING = {"lambda_", "lambda_end", "divergence", "tail", "temperature"}


NO_HELDOUT = (
    "corpus.heldout is 0, and the report measures on held-out chats. Set a share, say 0.1, or stop before the report: "
    "--until merged."
)


def build_graph(recipe: Recipe, *, need_inputs: bool = True) -> list[Artifact]:
    """Every artifact of a recipe, inputs before what is made from them.

    Args:
        recipe: The run.
        need_inputs: Refuse missing models or corpus; else they stand in the graph as missing.

    Raises:
        RecipeError: A model or the corpus is not there.
    """
    find = find_model if need_inputs else _find_or_miss
    models = {name: find(model.model) for name, model in recipe.models().items()}
    corpus = _corpus(recipe, need_inputs)
    distributions = {name: _distributions(recipe, name, corpus, models) for name in models}
    answers = _answers(recipe, distributions) if recipe.answers else {}
    rescored = {
        f"{label}/{name}": _distributions(recipe, name, chats, models, within=label)
        for label, chats in answers.items()
        for name in ("pivot", chats.name)
    }
    fused = _fused(recipe, distributions, models)
    fused_answers = _fused_answers(recipe, answers | rescored, models)
    rounds = _rounds(recipe, fused, fused_answers, distributions["pivot"])
    merged = _merged(recipe, rounds[-1])
    first = [corpus, *distributions.values(), *answers.values(), *rescored.values()]
    fusing = [*fused.values(), *(artifact for those in fused_answers.values() for artifact in those.values())]
    made = [*first, *fusing, *_in_order(rounds), merged]
    report = _report(recipe, {str(artifact): artifact for artifact in made}, models, need_inputs)
    return [*made, report]


def _corpus(recipe: Recipe, need_inputs: bool) -> Artifact:
    try:
        contents = {_file_label(recipe, uri): _content_hash(uri) for uri in chat_files(recipe.corpus.path)}
    except RecipeError as error:
        if need_inputs:
            raise
        contents = {"missing": str(error)}
    settings = _section(recipe.corpus) | {"seed": recipe.seed}
    settings.pop("path")  # Its content counts, not where it lies.
    return _artifact(recipe, "corpus", "", settings, {}, {}, contents)


def _distributions(
    recipe: Recipe, name: str, corpus: Artifact, models: dict[str, ModelFiles], within: str = ""
) -> Artifact:
    model = recipe.models()[name]
    settings = _section(recipe.distributions)
    settings["engine"] = _section(model.engine or recipe.distributions.engine)
    settings["template"] = model.template or settings["template"]
    needed = {"model": models[name]}
    if settings["template"] == "pivot":
        needed["pivot"] = models["pivot"]
    return _artifact(recipe, "distributions", f"{within}/{name}".lstrip("/"), settings, {"corpus": corpus}, needed)


def _groups(recipe: Recipe) -> dict[str, list[str]]:
    """The fused sets by name, and the sources of each."""
    names = [source.name for source in recipe.sources]
    return {"multi": names} if recipe.fused.mode == "multi" else {name: [name] for name in names}


def _answers(recipe: Recipe, distributions: dict[str, Artifact]) -> dict[str, Artifact]:
    """What each source answers anew; which chats it knows best is judged among the models of its fused set."""
    assert recipe.answers is not None
    found = {}
    for members in _groups(recipe).values():
        inputs = {name: distributions[name] for name in ["pivot", *members]}
        inputs["corpus"] = distributions["pivot"].inputs["corpus"]
        for name in members:
            scored = distributions[name]
            settings = _section(recipe.answers) | {"seed": recipe.seed}
            settings |= {key: scored.settings[key] for key in ("engine", "template", "max_length")}
            found[f"answers/{name}"] = _artifact(recipe, "answers", name, settings, inputs, scored.models)
    return found


def _fused(recipe: Recipe, distributions: dict[str, Artifact], models: dict[str, ModelFiles]) -> dict[str, Artifact]:
    fused = {}
    for label, members in _groups(recipe).items():
        inputs = {name: distributions[name] for name in ["pivot", *members]}
        inputs["corpus"] = distributions["pivot"].inputs["corpus"]
        used = {name: models[name] for name in ["pivot", *members]}
        fused[label] = _artifact(recipe, "fused", label, _section(recipe.fused), inputs, used)
    return fused


def _fused_answers(
    recipe: Recipe, answers: dict[str, Artifact], models: dict[str, ModelFiles]
) -> dict[str, dict[str, Artifact]]:
    """By fused set, what its sources answered. Its models number the choices as those of the set do."""
    return {
        group: {
            place: _artifact(
                recipe,
                "fused",
                place,
                _section(recipe.fused),
                {"corpus": answers[place]} | {by: answers[f"{place}/{by}"] for by in ("pivot", name)},
                {model: models[model] for model in ["pivot", *members]},
            )
            for place, name in ((f"answers/{name}", name) for name in members)
            if place in answers
        }
        for group, members in _groups(recipe).items()
    }


class _Round(NamedTuple):
    """Targets that train side by side, and what they start from.

    Attributes:
        targets: Those that a fused set teaches, by its name.
        controls: The control arms that train beside them; all are in the first round.
        base: What the targets' deltas are taken from where it is not the pivot; None without the SFT control.
        held: What `base` says of the training chats, where the targets start from it.
    """

    targets: dict[str, Artifact]
    controls: dict[str, Artifact]
    base: Artifact | None
    held: Artifact | None


def _rounds(
    recipe: Recipe, fused: dict[str, Artifact], answers: dict[str, dict[str, Artifact]], scored: Artifact
) -> list[_Round]:
    """The targets of every round; the SFT control is among the controls of the first, though it may come before it."""
    # Where a target starts shows in its inputs, and its round where there are several.
    settings = {key: value for key, value in _section(recipe.targets).items() if key not in ("start", "rounds")}
    settings, count = settings | {"seed": recipe.seed}, recipe.targets.rounds
    untaught = {key: value for key, value in settings.items() if key not in _OF_TEACHING}
    models = {"pivot": scored.models["model"]}
    control = {"fused": next(iter(fused.values())), "pivot": scored}
    sft = _artifact(recipe, "targets", "sft", untaught, control, models)
    base = sft if "sft" in recipe.targets.controls else None
    start = _start(recipe, scored, base)
    arms = {name: untaught if name == "longer" else settings for name in recipe.targets.controls if name != "sft"}
    controls = {"sft": sft} if base else {}
    controls |= {name: _artifact(recipe, "targets", name, how, control | start, models) for name, how in arms.items()}
    found: list[_Round] = []
    for number in range(1, count + 1):
        own = settings | ({"round": number, "rounds": count} if count > 1 else {})
        place = "" if number == count else f"round-{number}/"
        needs = {name: {"fused": made} | answers[name] | start for name, made in fused.items()}
        targets = {name: _artifact(recipe, "targets", place + name, own, needs[name], models) for name in fused}
        found.append(_Round(targets, {} if found else controls, base, start.get("held")))
        if number < count:
            base = _merged(recipe, found[-1], f"round-{number}")
            start = _start(recipe, scored, base)
    return found


def _start(recipe: Recipe, scored: Artifact, base: Artifact | None) -> dict[str, Artifact]:
    """What targets start from where it is not the pivot, and what it says of the chats, which it reads as the pivot."""
    if base is None or recipe.targets.start == "pivot":
        return {}
    models = {**scored.models, "model": trained_model(str(base), base.folder)}
    inputs = {"corpus": scored.inputs["corpus"], "start": base}
    return {"start": base, "held": _artifact(recipe, "distributions", base.name, scored.settings, inputs, models)}


def _merged(recipe: Recipe, merging: _Round, name: str = "") -> Artifact:
    settings = _section(recipe.merged) | {"seed": recipe.seed}
    base = {"sft": merging.base} if recipe.merged.base == "sft" and merging.base is not None else {}
    models = {"pivot": next(iter(merging.targets.values())).models["pivot"]}
    if not name:
        return _artifact(recipe, "merged", "", settings, merging.targets | base, models)
    # Between rounds; it is no result, so it lies with the targets, in float32 whatever is asked of the merged model.
    made = _artifact(recipe, "merged", name, settings | {"dtype": "float32"}, merging.targets | base, models)
    beside = next(iter(merging.targets.values())).folder
    return replace(made, folder=join(beside.rpartition("/")[0], "merged"))


def _in_order(rounds: list[_Round]) -> list[Artifact]:
    """Everything that is trained, with what must be scored or merged between; what can run side by side together."""
    found: list[Artifact] = []
    for number, each in enumerate(rounds):
        together = [*each.targets.values(), *each.controls.values()]
        if number and each.base is not None:
            found.append(each.base)
        if each.held is not None:
            found += [made for made in together if made is each.base]
            found.append(each.held)
        found += [made for made in together if each.held is None or made is not each.base]
    return found


def _report(recipe: Recipe, inputs: dict[str, Artifact], models: dict[str, ModelFiles], need_inputs: bool) -> Artifact:
    settings, files = _section(recipe.report), {}
    if recipe.judge is not None:
        hidden = {"base_url", "api_key_variable", "questions"}  # Where the judge is, not what it is.
        settings["judge"] = {key: value for key, value in _section(recipe.judge).items() if key not in hidden}
        files["judge.questions"] = recipe.judge.questions
    if recipe.evaluate is not None:
        settings["evaluate"] = _section(recipe.evaluate)
        files |= _task_files(recipe.evaluate)
    missing = [f"{label}: no file {uri}. Check the path." for label, uri in files.items() if not exists(uri)]
    if missing and need_inputs:
        raise RecipeError(missing[0])
    contents = {"missing": missing[0]} if missing else {label: _content_hash(uri) for label, uri in files.items()}
    return _artifact(recipe, "report", "", settings, inputs, models, contents)


def _task_files(evaluate: Evaluate) -> dict[str, str]:
    """The files that benchmarks read: data of local tasks, and everything in the folder of task files."""
    files = {}
    for task in evaluate.tasks:
        if isinstance(task, LocalTask):
            files[f"evaluate.tasks.{task.name}"] = task.path
            files |= {f"evaluate.tasks.{task.name}.few_shot": task.few_shot_path} if task.few_shot_path else {}
    if evaluate.folder:
        names = [name for name in list_files(evaluate.folder, recursive=True) if "__pycache__" not in name]
        files |= {f"evaluate.folder/{name}": join(evaluate.folder, name) for name in names}
        files |= {} if exists(evaluate.folder) else {"evaluate.folder": evaluate.folder}
    return files


def _artifact(
    recipe: Recipe,
    stage: str,
    name: str,
    settings: Mapping[str, Any],
    inputs: dict[str, Artifact],
    models: Mapping[str, ModelFiles],
    contents: dict[str, str] | None = None,
) -> Artifact:
    # Absolute, for Ray Train's workers run in folders of their own.
    folder = join(absolute(recipe.folder), f"{_NUMBERS[stage]}_{stage}", *([name] if name else []))
    return Artifact(stage, name, folder, settings, inputs, models, contents or {})


def _section(section: Section) -> dict[str, Any]:
    """A recipe section as plain data without the settings that cannot change results."""
    return {key: value for key, value in section.model_dump(mode="json").items() if key not in _PLACEMENT}


def _find_or_miss(reference: str) -> ModelFiles:
    try:
        return find_model(reference)
    except RecipeError as error:
        return ModelFiles(reference, "", "", {"missing": str(error)})


def _file_label(recipe: Recipe, uri: str) -> str:
    return uri.removeprefix(recipe.corpus.path).lstrip("/") or "chats"


def _content_hash(uri: str) -> str:
    place = locate(uri)
    return file_hash(place.path) if place.is_local else stamp(uri)
