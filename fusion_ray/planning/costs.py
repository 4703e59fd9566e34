"""What each stage will read, write and take: the arithmetic of a plan.

Every rate is either measured by an earlier manifest of this very artifact in the run folder, or stated in the table
below. Stated rates are for planning, good to a factor of two or three.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fusion_ray.errors import FusionRayError
from fusion_ray.pipeline.status import Status
from fusion_ray.planning.sizes import ANSWER_SHARE, Cluster, CorpusSize, ModelSize
from fusion_ray.recipe import PlainStore, Recipe, SampledStore, VllmEngine
from fusion_ray.storage.artifacts import Artifact, Manifest, read_manifest
from fusion_ray.storage.run_folder import STAGES

# --- stated rates ------------------------------------------------------------------------------------------------
SCORING_SHARE_OF_PEAK = 0.25  # Of a GPU's peak: prefill with the log-probabilities of every position.
WRITING_SHARE_OF_PEAK = 0.03  # Of a GPU's peak: decoding is bound by memory, some hundred sequences at a time.
TRAINING_SHARE_OF_PEAK = 0.35  # Of a GPU's peak: packed rows, ZeRO over NVLink.
CPU_FLOPS = 90e9  # Of one core: SmolLM2-135M in bfloat16 scores 450-1,000 tokens/s on two cores.
ROWS_PER_S = 2_000  # Corpus, one core: parse, hash, write.
POSITIONS_PER_S = 100_000  # Fused, one core: decode, align (bench/alignment.py: 1e6 alone), choose, encode.
MERGED_BYTES_PER_S = 500e6  # Merged, one core: bytes read in each pass of the method (bench/merge.py: 450e6-1,360e6).
START_S = 60.0  # To start an engine or a training group, once an artifact.
# -------------------------------------------------------------------------------------------------------------------

_BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2, "pivot": 2}


@dataclass(frozen=True)
class Cost:
    """What making one artifact takes; 0 for what is done.

    Attributes:
        artifact: Such as `distributions/math`.
        rows: Rows read.
        tokens: Tokens through a model or an alignment; 0 where bytes are what counts.
        bytes_written: On the run folder, checkpoints included.
        wall_s: With the whole cluster at its disposal.
        gpus: GPUs it holds meanwhile.
        rate: Where the time comes from: `measured`, `stated`, or why there is none.
        model: The recipe's model that scores or answers, for these two stages.
        wave: How many artifacts of its stage must be made before it, one after the other.
    """

    stage: str
    artifact: str
    rows: int
    tokens: float
    bytes_written: float
    wall_s: float | None
    gpus: float
    rate: str
    model: str = ""
    wave: int = 0

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours, or None where the time is not known."""
        return None if self.wall_s is None else self.wall_s * self.gpus / 3600


def estimate_costs(
    recipe: Recipe, statuses: list[Status], corpus: CorpusSize, models: dict[str, ModelSize | None], cluster: Cluster
) -> list[Cost]:
    """One cost for every artifact, in the order of the pipeline; done ones cost nothing."""
    costing = _Costing(recipe, corpus, models, cluster)
    costs = [costing.done(s.artifact) if s.state == "done" else costing.cost(s.artifact) for s in statuses]
    return [replace(cost, wave=wave) for cost, wave in zip(costs, _waves(statuses), strict=True)]


def bytes_per_answer_token(recipe: Recipe) -> float:
    """Of a distributions shard; a straight line through 25.8 bytes at k = 10 and 104.5 at k = 50 (bench/store.py)."""
    store = recipe.distributions.store
    k = store.draws if isinstance(store, SampledStore) else recipe.distributions.top_k
    return 8.0 + 8.0 * k if isinstance(store, PlainStore) else 6.1 + 1.97 * k


class _Costing:
    def __init__(
        self, recipe: Recipe, corpus: CorpusSize, models: dict[str, ModelSize | None], cluster: Cluster
    ) -> None:
        self.recipe = recipe
        self.corpus = corpus
        self.models = models
        self.cluster = cluster
        self.heldout = recipe.corpus.heldout
        self.fused_share = 1.0 - recipe.corpus.heldout
        self.train_share = 1.0 - recipe.corpus.heldout - recipe.corpus.validation
        # Assumed: all models win equally often.
        rivals = len(recipe.sources) + 1 if recipe.fused.mode == "multi" else 2
        self.answers_per_chat = recipe.answers.per_chat / rivals if recipe.answers else 0.0

    def done(self, artifact: Artifact) -> Cost:
        return Cost(artifact.stage, str(artifact), 0, 0.0, 0.0, 0.0, 0.0, "done")

    def cost(self, artifact: Artifact) -> Cost:
        found = {
            "corpus": self._corpus,
            "distributions": self._distributions,
            "answers": self._answers,
            "fused": self._fused,
            "targets": self._targets,
            "merged": self._merged,
            "report": self._report,
        }[artifact.stage](artifact)
        return self._as_measured(artifact, found)

    def _as_measured(self, artifact: Artifact, cost: Cost) -> Cost:
        """The time that an earlier making of this artifact took, for as many rows as there are now."""
        before = _earlier(artifact)
        rows = before.rows if before and before.rows else 0
        if before is None or not rows or not cost.rows:
            return cost
        wall = before.seconds * cost.rows / rows
        return replace(cost, wall_s=wall, rate="measured")

    def _corpus(self, artifact: Artifact) -> Cost:
        rows = self.corpus.rows
        return Cost("corpus", str(artifact), rows, 0.0, self.corpus.tokens * 2, rows / ROWS_PER_S, 0.0, "stated")

    def _distributions(self, artifact: Artifact) -> Cost:
        shares = {"answers": self.train_share * self.answers_per_chat, "anchor": self.train_share}
        share, name = shares.get(artifact.role, 1.0), artifact.recipe_model
        tokens = self.corpus.tokens * share
        written = tokens * (4 + ANSWER_SHARE * bytes_per_answer_token(self.recipe))
        wall = self._scoring_s(tokens, self.models[name], name)
        gpus = self._scoring_gpus()
        rate = "stated" if wall is not None else "size unknown"
        rows = int(self.corpus.rows * share)
        return Cost("distributions", str(artifact), rows, tokens, written, wall, gpus, rate, name)

    def _answers(self, artifact: Artifact) -> Cost:
        share = self.train_share * self.answers_per_chat
        rows, tokens = int(self.corpus.rows * share), self.corpus.tokens * share * ANSWER_SHARE
        slower = SCORING_SHARE_OF_PEAK / WRITING_SHARE_OF_PEAK
        wall = self._scoring_s(tokens * slower, self.models[artifact.source], artifact.source)
        written, rate = self.corpus.tokens * share * 2, "stated" if wall is not None else "size unknown"
        gpus = self._scoring_gpus()
        return Cost("answers", str(artifact), rows, tokens, written, wall, gpus, rate, artifact.source)

    def _scoring_gpus(self) -> float:
        settings = self.recipe.distributions
        if not settings.gpus_per_actor:
            return 0.0
        actors = min(settings.actors.max, int(self.cluster.gpus // settings.gpus_per_actor))
        return max(1, actors) * settings.gpus_per_actor

    def _scoring_s(self, tokens: float, size: ModelSize | None, name: str) -> float | None:
        if size is None:
            return None
        work = 2 * size.active * tokens
        settings = self.recipe.distributions
        if self._scoring_gpus():
            engine = self.recipe.models()[name].engine or settings.engine
            used = engine.tensor_parallel if isinstance(engine, VllmEngine) else 1
            busy = self._scoring_gpus() / settings.gpus_per_actor * min(used, settings.gpus_per_actor)
            return START_S + work / (busy * self.cluster.gpu.flops * SCORING_SHARE_OF_PEAK)
        cores = min(self.cluster.cpus, max(1, settings.cpus_per_actor) * settings.actors.max)
        return START_S / 6 + work / (cores * CPU_FLOPS)

    def _fused(self, artifact: Artifact) -> Cost:
        share = self.train_share * self.answers_per_chat if artifact.role == "answers" else self.fused_share
        rows = int(self.corpus.rows * share)
        positions = self.corpus.tokens * share * ANSWER_SHARE
        k = self.recipe.fused.top_k or self.recipe.distributions.top_k
        written = self.corpus.tokens * share * 4 + positions * (8 + 3.5 * k)
        cores = max(1, self.cluster.cpus // max(1, self.recipe.fused.cpus_per_task))
        wall = positions * (len(artifact.scores) - 1) / (POSITIONS_PER_S * cores)  # All but the pivot.
        return Cost("fused", str(artifact), rows, positions, written, wall, 0.0, "stated")

    def _targets(self, artifact: Artifact) -> Cost:
        settings, size = self.recipe.targets, self.models["pivot"]
        answering = len(artifact.inputs_of("fused", "answers"))
        share = self.train_share * (1.0 + self.answers_per_chat * answering)
        rows = int(self.corpus.rows * share)
        tokens = self.corpus.tokens * share * settings.epochs / artifact.settings.get("rounds", 1)
        gpus = settings.workers * settings.gpus_per_worker
        if size is None:
            return Cost("targets", str(artifact), rows, tokens, 0.0, None, gpus, "size unknown")
        work = (8 if settings.gradient_checkpointing else 6) * size.active * tokens
        if gpus:
            wall = START_S + work / (gpus * self.cluster.gpu.flops * TRAINING_SHARE_OF_PEAK)
        else:
            cores = min(self.cluster.cpus, settings.workers * settings.cpus_per_worker)
            wall = START_S / 6 + work / (cores * CPU_FLOPS)
        written = size.parameters * (_BYTES_OF[settings.save_dtype] + checkpoint_bytes_per_weight(self.recipe))
        return Cost("targets", str(artifact), rows, tokens, written, wall, gpus, "stated")

    def _merged(self, artifact: Artifact) -> Cost:
        size = self.models["pivot"]
        if size is None:
            return Cost("merged", str(artifact), 0, 0.0, 0.0, None, 0.0, "size unknown")
        read = size.parameters * (2 + _BYTES_OF[self.recipe.targets.save_dtype] * len(artifact.inputs))
        written = size.parameters * _BYTES_OF[self.recipe.merged.dtype]
        files = max(1.0, written / (self.recipe.merged.shard_gib * 2**30))
        passes = self.recipe.merged.method.passes
        wall = read * passes / (MERGED_BYTES_PER_S * min(self.cluster.cpus, files))
        return Cost("merged", str(artifact), 0, 0.0, written, wall, 0.0, "stated")

    def _report(self, artifact: Artifact) -> Cost:
        trained = sum(made.stage == "targets" and not made.round for made in artifact.inputs) + 1  # And merged.
        rows = int(self.corpus.rows * self.heldout)
        tokens = self.corpus.tokens * self.heldout * trained
        one = self._scoring_s(tokens / trained, self.models["pivot"], "pivot")
        wall = None if one is None else one * trained
        rate = "stated" if wall is not None else "size unknown"
        return Cost("report", str(artifact), rows, tokens, tokens * 12, wall, self._scoring_gpus(), rate)


def checkpoint_bytes_per_weight(recipe: Recipe) -> int:
    """A training checkpoint: Adam's two moments and the master in float32, and the weights in their own type.

    Under `keep: best` the best weights and masters come on top.
    """
    model = 4 + (2 if recipe.targets.dtype == "bfloat16" else 4)
    return 8 + model * (2 if recipe.targets.keep == "best" else 1)


def _earlier(artifact: Artifact) -> Manifest | None:
    try:
        return read_manifest(artifact.folder)
    except FusionRayError:
        return None


def by_stage(costs: list[Cost], side_by_side: dict[str, int]) -> list[Cost]:
    """Sums over the artifacts of each stage; those of one wave share their time as far as they run side by side."""
    sums = []
    for stage in STAGES:
        those = [cost for cost in costs if cost.stage == stage and cost.rate != "done"]
        if not those:
            continue
        waves = [[c.wall_s for c in those if c.wave == wave] for wave in sorted({cost.wave for cost in those})]
        wall = _sum_known([_wall_of_wave(walls, side_by_side.get(stage, 1)) for walls in waves])
        hours = sum(cost.gpu_hours or 0.0 for cost in those)
        gpus = hours * 3600 / wall if wall else 0.0
        rates = sorted({cost.rate for cost in those})
        written = sum(cost.bytes_written for cost in those)
        tokens = sum(cost.tokens for cost in those)
        rows = sum(cost.rows for cost in those)
        sums.append(Cost(stage, f"{len(those)} of {stage}", rows, tokens, written, wall, gpus, ", ".join(rates)))
    return sums


def _wall_of_wave(walls: list[float | None], side_by_side: int) -> float | None:
    total = _sum_known(walls)
    if total is None:
        return None
    together = max(1, min(side_by_side, len(walls)))
    return max(total / together, *(wall for wall in walls if wall is not None))


def _sum_known(walls: list[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [wall for wall in walls if wall is not None]
    return sum(known) if len(known) == len(walls) else None


def _waves(statuses: list[Status]) -> Iterator[int]:
    """For each artifact, the length of the longest chain of its own stage before it; inputs come first in the list."""
    chains: dict[str, Counter[str]] = {}
    for artifact in (status.artifact for status in statuses):
        before: Counter[str] = Counter()
        for made in artifact.inputs:
            before |= chains[str(made)]  # The longest of each stage.
        yield before[artifact.stage]
        chains[str(artifact)] = before + Counter([artifact.stage])
