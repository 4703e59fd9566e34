"""Which artifacts a recipe asks for, and what each is made from.

    corpus
      -> distributions/MODEL                       every model reads the corpus
      -> answers/SOURCE                            if asked: each source answers the chats it knows best anew
           -> distributions/answers/SOURCE/MODEL   read by its author and by the pivot
      -> fused/SOURCE, fused/answers/SOURCE        aligned to the pivot's tokens; who teaches is chosen
      -> targets/sft and the other control arms    the pivot trained without teachers, or by others
    then once, or in each of R rounds, from the control (or the pivot):
      -> distributions/sft, distributions/round-N  what the model that targets start from says: their anchor
      -> targets/SOURCE, targets/round-N/SOURCE    one target for each fused set
      -> merged, merged/round-N                    which the next round starts from
    -> report

With `fused.mode: multi` there is one fused set and one target, `multi`, for all sources.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fusion_ray.corpus.files import chat_files
from fusion_ray.errors import RecipeError
from fusion_ray.recipe import TEACHING, UNTAUGHT_ARMS, Evaluate, LocalTask, Recipe
from fusion_ray.storage.artifacts import Artifact
from fusion_ray.storage.filesystem import absolute, exists, join, list_files, locate, stamp
from fusion_ray.storage.model_files import ModelFiles, file_hash, find_model, trained_model

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
    artifacts = _Graph(recipe, need_inputs).artifacts()
    folders = [artifact.folder for artifact in artifacts]
    assert len(set(folders)) == len(folders), "two artifacts share a folder"
    return artifacts


class _Round(NamedTuple):
    """Targets that train side by side, what they start from and what they become.

    Attributes:
        start: The trained model that they start from; None where that is the pivot.
        anchor: What it says of the training chats.
        targets: One for each fused set.
        merged: What they are merged into.
    """

    start: Artifact | None
    anchor: Artifact | None
    targets: list[Artifact]
    merged: Artifact


class _Graph:
    """Makes the artifacts of one recipe."""

    def __init__(self, recipe: Recipe, need_inputs: bool) -> None:
        find = find_model if need_inputs else _find_or_miss
        self.recipe, self.need_inputs = recipe.resolved, need_inputs
        self.run = absolute(recipe.folder)  # Ray Train's workers run in folders of their own.
        self.models = {name: find(model.model) for name, model in recipe.models().items()}
        names = [source.name for source in recipe.sources]
        # The fused sets by name, and the sources of each.
        self.groups = {"multi": names} if recipe.fused.mode == "multi" else {name: [name] for name in names}

    def artifacts(self) -> list[Artifact]:
        """All of them, in the order in which they are made."""
        corpus = self.corpus()
        scores = {name: self.distributions(corpus, name) for name in self.models}
        answers = self.answers(scores) if self.recipe.answers else {}
        rescored = {name: self.rescored(chats) for name, chats in answers.items()}
        fused = [self.fused(scores, group) for group in self.groups]
        fused_answers = {name: self.fused_answers(answers[name], rescored[name]) for name in answers}
        sft = self.control("sft", scores["pivot"], fused[0])
        rounds = list(self.rounds(fused, fused_answers, scores["pivot"], sft))
        made = [corpus, *scores.values(), *answers.values()]
        made += [again for both in rescored.values() for again in both]
        made += [*fused, *fused_answers.values(), *self.trained(rounds, scores["pivot"], fused[0], sft)]
        return [*made, rounds[-1].merged, self.report([*made, rounds[-1].merged])]

    def _artifact(self, stage: str, **fields: Any) -> Artifact:
        return Artifact(run=self.run, stage=stage, **fields)

    # --- the chats, and what models say of them ----------------------------------------------------------------

    def corpus(self) -> Artifact:
        """The chats that people bring."""
        corpus = self.recipe.corpus
        try:
            uris = chat_files(corpus.path)
            contents = {uri.removeprefix(corpus.path).lstrip("/") or "chats": _content_hash(uri) for uri in uris}
        except RecipeError as error:
            if self.need_inputs:
                raise
            contents = {"missing": str(error)}
        return self._artifact("corpus", settings=corpus.deciding() | {"seed": self.recipe.seed}, contents=contents)

    def distributions(self, chats: Artifact, name: str, **fields: Any) -> Artifact:
        """What one model says of some chats."""
        model, section = self.recipe.models()[name], self.recipe.distributions
        template = model.template or section.template
        settings = section.deciding() | {"template": template}
        settings["engine"] = (model.engine or section.engine).deciding()
        files = {"model": self.models[name]} | ({"pivot": self.models["pivot"]} if template == "pivot" else {})
        return self._artifact(
            "distributions", model=name, settings=settings, inputs=(chats,), models=files, **fields
        )  # fmt: skip

    def answers(self, scores: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """By source, what it answers anew; which chats it knows best is judged among the models of its fused set."""
        assert self.recipe.answers is not None
        found = {}
        for members in self.groups.values():
            inputs = self._scored_chats(scores, members)
            for name in members:
                own = scores[name].settings
                settings = self.recipe.answers.deciding() | {"seed": self.recipe.seed}
                settings |= {key: own[key] for key in ("engine", "template", "max_length")}
                files = scores[name].models
                found[name] = self._artifact("answers", source=name, settings=settings, inputs=inputs, models=files)
        return found

    def rescored(self, answers: Artifact) -> list[Artifact]:
        """What the pivot and their author say of the answers."""
        author = answers.source
        return [self.distributions(answers, name, role="answers", source=author) for name in ("pivot", author)]

    def _scored_chats(self, scores: Mapping[str, Artifact], members: list[str]) -> tuple[Artifact, ...]:
        return (scores["pivot"].chats, *(scores[name] for name in ["pivot", *members]))

    # --- who teaches what --------------------------------------------------------------------------------------

    def fused(self, scores: Mapping[str, Artifact], group: str) -> Artifact:
        """A fused set of the corpus."""
        members = self.groups[group]
        return self._fused(self._scored_chats(scores, members), members, source=group)

    def fused_answers(self, answers: Artifact, rescored: list[Artifact]) -> Artifact:
        """A fused set of what a source answered. Its models number the choices as those of its group's set do."""
        members = next(members for members in self.groups.values() if answers.source in members)
        return self._fused((answers, *rescored), members, source=answers.source, role="answers")

    def _fused(self, inputs: tuple[Artifact, ...], members: list[str], **fields: Any) -> Artifact:
        files = {name: self.models[name] for name in ["pivot", *members]}
        return self._artifact("fused", settings=self.recipe.fused.deciding(), inputs=inputs, models=files, **fields)

    # --- what is trained and merged ----------------------------------------------------------------------------

    def rounds(
        self, fused: list[Artifact], answers: Mapping[str, Artifact], pivot: Artifact, sft: Artifact
    ) -> Iterator[_Round]:
        """The rounds of training one after the other; each starts from what the one before was merged into."""
        count = self.recipe.targets.rounds
        start = sft if self.recipe.targets.start == "sft" else None
        base = sft if self.recipe.merged.base == "sft" else None
        for number in range(1, count + 1):
            between = number if number < count else 0
            anchor = None if start is None else self.anchor(start, pivot)
            part = {"round": number, "rounds": count} if count > 1 else {}
            begins = [made for made in (start, anchor) if made is not None]
            targets = [
                self._trained(
                    made.source,
                    (made, *(answers[name] for name in self.groups[made.source] if name in answers), *begins),
                    settings=self._training() | part,
                    round=between,
                )
                for made in fused
            ]
            merged = self.merged(targets, base, between)
            yield _Round(start, anchor, targets, merged)
            start = base = merged

    def control(
        self, arm: str, pivot: Artifact, fused: Artifact, start: Artifact | None = None, anchor: Artifact | None = None
    ) -> Artifact:
        """A control arm; it learns from the rows of the first fused set, and starts as the targets do."""
        begins = [made for made in (start, anchor) if made is not None]
        settings = self._training(taught=arm not in UNTAUGHT_ARMS)
        return self._trained(arm, (fused, pivot, *begins), settings=settings, role="control")

    def _trained(self, model: str, inputs: tuple[Artifact, ...], **fields: Any) -> Artifact:
        return self._artifact("targets", model=model, inputs=inputs, models={"pivot": self.models["pivot"]}, **fields)

    def _training(self, *, taught: bool = True) -> dict[str, Any]:
        """The settings of a training, without where it starts, which its inputs say, and without its rounds."""
        settings = self.recipe.targets.deciding(without=None if taught else TEACHING)
        return {key: value for key, value in settings.items() if key not in ("start", "rounds")} | {
            "seed": self.recipe.seed
        }

    def anchor(self, start: Artifact, pivot: Artifact) -> Artifact:
        """What a trained model says of the training chats; it reads them as the pivot does."""
        model = start.model or "merged"
        files = {**pivot.models, "model": trained_model(str(start), start.folder)}
        return self._artifact(
            "distributions", role="anchor", model=model, round=start.round, settings=pivot.settings,
            inputs=(pivot.chats, start), models=files,
        )  # fmt: skip

    def merged(self, targets: list[Artifact], base: Artifact | None, between: int) -> Artifact:
        """What targets are merged into; between rounds in float32, whatever is asked of the merged model."""
        settings = self.recipe.merged.deciding() | {"seed": self.recipe.seed}
        settings |= {"dtype": "float32"} if between else {}
        inputs = (*targets, *([base] if base is not None else []))
        files = {"pivot": self.models["pivot"]}
        return self._artifact("merged", round=between, settings=settings, inputs=inputs, models=files)

    def trained(self, rounds: list[_Round], pivot: Artifact, fused: Artifact, sft: Artifact) -> Iterator[Artifact]:
        """Everything that is trained, with what must be merged or scored in between. What can train side by side stands
        together: the SFT control stands before the targets that start from it, else beside them.
        """
        first, *later = rounds
        arms = [arm for arm in self.recipe.targets.controls if arm != "sft"]
        controls = [sft] if "sft" in self.recipe.targets.controls else []
        controls += [self.control(arm, pivot, fused, first.start, first.anchor) for arm in arms]
        if first.anchor is not None:
            yield sft
            yield first.anchor
        yield from first.targets
        yield from (made for made in controls if made is not first.start)
        for each in later:
            assert each.start is not None and each.anchor is not None
            yield each.start
            yield each.anchor
            yield from each.targets

    # --- the report --------------------------------------------------------------------------------------------

    def report(self, made: list[Artifact]) -> Artifact:
        """The report over everything that was made."""
        recipe, files = self.recipe, {}
        settings = recipe.report.deciding()
        if recipe.judge is not None:
            settings["judge"] = recipe.judge.deciding()
            files["judge.questions"] = recipe.judge.questions
        if recipe.evaluate is not None:
            settings["evaluate"] = recipe.evaluate.deciding()
            files |= _task_files(recipe.evaluate)
        missing = [f"{label}: no file {uri}. Check the path." for label, uri in files.items() if not exists(uri)]
        if missing and self.need_inputs:
            raise RecipeError(missing[0])
        hashes = {label: _content_hash(uri) for label, uri in files.items()} if not missing else {"missing": missing[0]}
        return self._artifact("report", settings=settings, inputs=tuple(made), models=self.models, contents=hashes)


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


def _find_or_miss(reference: str) -> ModelFiles:
    try:
        return find_model(reference)
    except RecipeError as error:
        return ModelFiles(reference, "", "", {"missing": str(error)})


def _content_hash(uri: str) -> str:
    place = locate(uri)
    return file_hash(place.path) if place.is_local else stamp(uri)
