"""The forecast of a run: what it takes by stage, in money if asked, and what will not fit."""

from dataclasses import asdict, dataclass
from typing import Any

from fusion_ray.pipeline.status import Status
from fusion_ray.planning.costs import Cost, by_stage, estimate_costs
from fusion_ray.planning.fit import distributions_side_by_side, find_problems, targets_side_by_side
from fusion_ray.planning.sizes import Cluster, CorpusSize, ModelSize, corpus_size, model_sizes
from fusion_ray.recipe import Recipe


@dataclass(frozen=True)
class Forecast:
    """What a plan says besides what is to do.

    Attributes:
        stages: Sums over what is still to make, stage by stage.
        costs: The same for every artifact.
        problems: What will not fit, and what to change.
        price_per_gpu_hour: In any currency; None where none was given.
    """

    cluster: Cluster
    corpus: CorpusSize
    models: dict[str, ModelSize | None]
    costs: list[Cost]
    stages: list[Cost]
    problems: list[str]
    price_per_gpu_hour: float | None

    @property
    def wall_s(self) -> float | None:
        """From beginning to end; None where a stage's time is not known."""
        walls = [stage.wall_s for stage in self.stages]
        return None if None in walls else sum(wall or 0.0 for wall in walls)

    @property
    def gpu_hours(self) -> float:
        """Over all stages whose time is known."""
        return sum(stage.gpu_hours or 0.0 for stage in self.stages)

    @property
    def money(self) -> float | None:
        """GPU-hours times the price."""
        return None if self.price_per_gpu_hour is None else self.gpu_hours * self.price_per_gpu_hour

    def plain(self) -> dict[str, Any]:
        """As data that JSON can hold."""
        data = asdict(self) | {"wall_s": self.wall_s, "gpu_hours": self.gpu_hours, "money": self.money}
        if data["cluster"]["disk_gib"] == float("inf"):
            data["cluster"]["disk_gib"] = None
        for stage, made in zip(data["stages"], self.stages, strict=True):
            stage["gpu_hours"] = made.gpu_hours
        return data


def forecast(
    recipe: Recipe,
    statuses: list[Status],
    cluster: Cluster,
    *,
    rows: int | None = None,
    tokens_per_row: float | None = None,
    price_per_gpu_hour: float | None = None,
) -> Forecast:
    """Say what making everything that is not done will take.

    Args:
        recipe: The run.
        statuses: From `pipeline.status.list_statuses`.
        cluster: What it may use.
        rows: Rows of the corpus, where it is not here to be counted.
        tokens_per_row: Likewise.
        price_per_gpu_hour: Adds money.
    """
    corpus = corpus_size(recipe, statuses, rows, tokens_per_row)
    models = model_sizes(recipe, statuses)
    costs = estimate_costs(recipe, statuses, corpus, models, cluster)
    together = {
        "distributions": distributions_side_by_side(recipe, cluster),
        "answers": distributions_side_by_side(recipe, cluster),
        "targets": targets_side_by_side(recipe, cluster),
    }
    problems = find_problems(recipe, corpus, models, costs, cluster)
    return Forecast(cluster, corpus, models, costs, by_stage(costs, together), problems, price_per_gpu_hour)
