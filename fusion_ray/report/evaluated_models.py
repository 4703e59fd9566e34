"""The models of a run as judge and benchmarks meet them: every one with its folder, its engine and its template."""

from typing import NamedTuple

from fusion_ray.models.opening import trained_engine
from fusion_ray.recipe import Engine, Model, Recipe
from fusion_ray.storage.artifacts import Artifact, model_folder
from fusion_ray.storage.model_files import ModelFiles, trained_model


class EvaluatedModel(NamedTuple):
    """A model that answers questions.

    Attributes:
        label: Its name in report.json.
        model: Its part of the recipe; trained models have the pivot's.
        files: Where its files lie.
        fingerprint: Changes when the model does.
        engine: What runs it.
    """

    label: str
    model: Model
    files: ModelFiles
    fingerprint: str
    engine: Engine

    @property
    def folder(self) -> str:
        """A folder of the node that asks."""
        return self.files.folder


def list_evaluated_models(recipe: Recipe, report: Artifact, models: dict[str, Artifact]) -> list[EvaluatedModel]:
    """Every model of the run.

    Args:
        recipe: The run.
        report: The report's artifact, which knows the model files of pivot and sources.
        models: By label, what each comes from: its distributions, or the stage that trained it.
    """
    evaluated = []
    for label, artifact in models.items():
        if artifact.stage == "distributions":
            model, files = recipe.models()[artifact.model], report.models[artifact.model]
            engine = model.engine or recipe.distributions.engine
            evaluated.append(EvaluatedModel(label, model, files, files.fingerprint, engine))
        else:
            trained = trained_model(label, model_folder(artifact))
            evaluated.append(EvaluatedModel(label, recipe.pivot, trained, artifact.fingerprint, trained_engine(recipe)))
    return evaluated
