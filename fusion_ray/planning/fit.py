"""What will not fit: GPU memory by stage and parallelism, GPUs and CPUs, the object store, the disk."""

from fusion_ray.pipeline.graph import NO_HELDOUT
from fusion_ray.planning.costs import Cost, checkpoint_bytes_per_weight
from fusion_ray.planning.sizes import ANSWER_SHARE, Cluster, CorpusSize, ModelSize
from fusion_ray.recipe import OpenAIEngine, Recipe, VllmEngine

_GIB = 2**30
_CONTEXT_GIB = 1.5  # CUDA's own, and what fragmentation leaves unused.
_LARGEST_VOCABULARY = 262_144
_IN_FLIGHT = 3  # Blocks of one actor in the object store: the one in work, the next, the one that is done.


def find_problems(
    recipe: Recipe, corpus: CorpusSize, models: dict[str, ModelSize | None], costs: list[Cost], cluster: Cluster
) -> list[str]:
    """One sentence for each thing that does not fit, with what to change; empty when all does."""
    making = {cost.stage for cost in costs if cost.rate != "done"}
    names = {cost.model for cost in costs if cost.stage == "distributions" and cost.rate != "done"}
    problems: list[str] = []
    if "distributions" in making:
        problems += _scoring_room(recipe, cluster)
        problems += [p for name in names for p in _scoring_memory(recipe, name, models[name], cluster)]
        problems += _object_store(recipe, corpus, cluster)
    if "targets" in making:
        problems += _training_room(recipe, cluster) + _training_memory(recipe, models["pivot"], cluster)
    if "report" in making and not recipe.corpus.heldout:
        problems.append(NO_HELDOUT)
    return problems + _disk(recipe, costs, cluster)


def targets_side_by_side(recipe: Recipe, cluster: Cluster) -> int:
    """How many targets train at once."""
    settings = recipe.targets
    if settings.side_by_side is not None:
        return settings.side_by_side
    if settings.gpus_per_worker:
        return max(1, int(cluster.gpus // (settings.gpus_per_worker * settings.workers)))
    return max(1, int(cluster.cpus // (settings.cpus_per_worker * settings.workers)))


def distributions_side_by_side(recipe: Recipe, cluster: Cluster) -> int:
    """How many models score at once, each with its largest pool."""
    settings = recipe.distributions
    if settings.gpus_per_actor:
        return max(1, int(cluster.gpus // (settings.gpus_per_actor * settings.actors.max)))
    return max(1, int(cluster.cpus // (max(settings.cpus_per_actor, 1) * settings.actors.max)))


def _scoring_room(recipe: Recipe, cluster: Cluster) -> list[str]:
    settings, problems = recipe.distributions, []
    for what, each, there in (
        ("GPUs", settings.gpus_per_actor, cluster.gpus),
        ("CPUs", settings.cpus_per_actor, cluster.cpus),
    ):
        if each * settings.actors.min > there:
            problems.append(
                f"distributions: {settings.actors.min} actors of {each:g} {what} need {each * settings.actors.min:g}, "
                f"the cluster has {there}. Lower distributions.actors.min or {what.lower()[:3]}s_per_actor."
            )
    return problems


def _scoring_memory(recipe: Recipe, name: str, size: ModelSize | None, cluster: Cluster) -> list[str]:
    settings = recipe.distributions
    engine = recipe.models()[name].engine or settings.engine
    if isinstance(engine, OpenAIEngine) or not settings.gpus_per_actor:
        return [] if size is None or isinstance(engine, OpenAIEngine) else _scoring_ram(recipe, name, size, cluster)
    split = engine.tensor_parallel if isinstance(engine, VllmEngine) else 1
    if 1 < split > settings.gpus_per_actor:
        return [
            f"distributions/{name}: tensor_parallel {split} needs as many GPUs in one actor, gpus_per_actor is "
            f"{settings.gpus_per_actor:g}. Raise distributions.gpus_per_actor."
        ]
    if size is None:
        return []
    share = engine.gpu_memory_share if isinstance(engine, VllmEngine) else 1.0
    room = cluster.gpu.memory_gib * share * min(1.0, settings.gpus_per_actor)
    needed = 2 * size.parameters / split / _GIB + logits_gib(engine.tokens_per_batch) + _CONTEXT_GIB
    if needed <= room:
        return []
    parallel = next((n for n in (2, 4, 8, 16) if n > split and _needs(size, engine, n) <= room), None)
    hint = f"tensor_parallel: {parallel} and gpus_per_actor: {parallel}" if parallel else "larger GPUs"
    return [
        f"distributions/{name}: {size.parameters / 1e9:.1f} B weights over {split} GPU(s) need {needed:.0f} GiB on "
        f"each, there are {room:.0f}. Use {hint}."
    ]


def _needs(size: ModelSize, engine: object, split: int) -> float:
    tokens = getattr(engine, "tokens_per_batch", 2048)
    return 2 * size.parameters / split / _GIB + logits_gib(tokens) + _CONTEXT_GIB


def _scoring_ram(recipe: Recipe, name: str, size: ModelSize, cluster: Cluster) -> list[str]:
    needed = 4 * size.parameters * recipe.distributions.actors.min / _GIB + 1.0
    if needed <= cluster.memory_gib:
        return []
    return [
        f"distributions/{name}: {size.parameters / 1e9:.1f} B weights on CPUs need {needed:.0f} GiB of memory, there "
        f"are {cluster.memory_gib:.0f}. Use GPUs (distributions.gpus_per_actor) or fewer actors."
    ]


def logits_gib(tokens: int) -> float:
    """Float32 logits of one chunk at most, over the largest vocabulary in use; engines chunk to 2,048 positions."""
    return min(tokens, 2048) * _LARGEST_VOCABULARY * 4 / _GIB


def _object_store(recipe: Recipe, corpus: CorpusSize, cluster: Cluster) -> list[str]:
    rendered = recipe.corpus.shard_rows * corpus.tokens_per_row * (4 + 4 * ANSWER_SHARE)
    needed = rendered * recipe.distributions.actors.max * _IN_FLIGHT / _GIB
    if needed <= cluster.object_store_gib:
        return []
    return [
        f"distributions: shards of {rendered / 2**20:.0f} MiB for {recipe.distributions.actors.max} actors need "
        f"{needed:.1f} GiB of object store, there are {cluster.object_store_gib:.1f}. Lower corpus.shard_rows or "
        "actors.max, or start Ray with more --object-store-memory."
    ]


def _training_room(recipe: Recipe, cluster: Cluster) -> list[str]:
    settings, problems = recipe.targets, []
    for what, each, there in (
        ("GPUs", settings.gpus_per_worker, cluster.gpus),
        ("CPUs", settings.cpus_per_worker, cluster.cpus),
    ):
        if each * settings.workers > there:
            problems.append(
                f"targets: {settings.workers} workers of {each:g} {what} need {each * settings.workers:g}, the cluster "
                f"has {there}. Lower targets.workers, or add nodes."
            )
    return problems


def training_gib(recipe: Recipe, parameters: float) -> float:
    """Memory of one worker while it trains.

    Weights, float32 gradients, masters and Adam's moments, divided as the ZeRO stage says (1 divides the optimizer, 2
    the gradients, 3 the weights), and the activations of one batch of a model of usual shape: layers L with
    12 L (128 L)^2 weights, 34 bytes a token, layer and hidden unit, or 2 where they are recomputed. An adapter of rank
    r trains 2 r / (128 L) as many weights.
    """
    settings, workers = recipe.targets, recipe.targets.workers
    low = settings.dtype == "bfloat16"
    stage = max(settings.zero_stage, 1) if low else settings.zero_stage
    weights = 2 if low else 4
    layers = max(1.0, (parameters / (12 * 128**2)) ** (1 / 3))
    hidden = 128 * layers
    trained = min(1.0, 2 * settings.adapter.rank / hidden) if settings.adapter else 1.0
    state = trained * 4 / (workers if stage >= 2 else 1)
    if not settings.offload.parameters:
        state += weights / (workers if stage == 3 else 1)
    if not settings.offload.optimizer:
        state += trained * ((4 if low else 0) + 8) / (workers if stage >= 1 else 1)
    per_token = hidden * (2 * layers + 34 if settings.gradient_checkpointing else 34 * layers)
    activations = settings.tokens_per_batch * per_token * weights / 2
    head = 512 * _LARGEST_VOCABULARY * 4 * 2  # Logits and their gradient, a chunk of positions at a time.
    return (parameters * state + activations + head) / _GIB


def _training_memory(recipe: Recipe, size: ModelSize | None, cluster: Cluster) -> list[str]:
    if size is None:
        return []
    settings = recipe.targets
    needed = training_gib(recipe, size.parameters)
    if settings.gpus_per_worker:
        room, where = cluster.gpu.memory_gib * min(1.0, settings.gpus_per_worker) - _CONTEXT_GIB, "GPU"
    else:
        room, where = cluster.memory_gib / settings.workers, "worker's share of the memory"
    if needed <= room:
        return []
    return [
        f"targets: {size.parameters / 1e9:.1f} B weights under ZeRO {settings.zero_stage} with {settings.workers} "
        f"workers need {needed:.0f} GiB each, a {where} has {room:.0f}. {_lighter(recipe, size, room)}"
    ]


def _lighter(recipe: Recipe, size: ModelSize, room: float) -> str:
    """The cheapest change with which training fits."""
    settings = recipe.targets
    changes: tuple[dict[str, object], ...] = (
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "zero_stage": 3},
        {"gradient_checkpointing": True, "zero_stage": 3, "tokens_per_batch": 2048},
        {"gradient_checkpointing": True, "zero_stage": 3, "tokens_per_batch": 2048, "offload.optimizer": True},
    )
    for change in changes:
        fields = {key: value for key, value in change.items() if "." not in key}
        if len(fields) < len(change):
            fields["offload"] = settings.offload.model_copy(update={"optimizer": True})
        lighter = recipe.model_copy(update={"targets": settings.model_copy(update=fields)})
        if training_gib(lighter, size.parameters) <= room:
            return "Set " + ", ".join(f"targets.{key}={value}" for key, value in change.items()) + "."
    return "Use more workers or larger GPUs."


def _disk(recipe: Recipe, costs: list[Cost], cluster: Cluster) -> list[str]:
    needed = sum(cost.bytes_written for cost in costs) / _GIB
    if needed <= cluster.disk_gib:
        return []
    return [
        f"disk: the run writes about {needed:,.0f} GiB to {recipe.folder} (training checkpoints of "
        f"{checkpoint_bytes_per_weight(recipe)} bytes a weight included), {cluster.disk_gib:,.0f} are free. Set `runs` "
        "to a larger disk or a bucket."
    ]
