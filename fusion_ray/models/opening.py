"""From a recipe's `engine` section to a running engine: a scorer, or a generator."""

from collections.abc import Callable

from fusion_ray.errors import EngineError
from fusion_ray.models.generator import Generator
from fusion_ray.models.scorer import DrawSettings, Scorer
from fusion_ray.recipe import Distributions, Model, OpenAIEngine, Recipe, SampledStore, TransformersEngine, VllmEngine

OpenScorer = Callable[[Model, Distributions, str], Scorer]


def open_scorer(model: Model, settings: Distributions, folder: str) -> Scorer:
    """Start the engine that a recipe asks for, for one of its models.

    Args:
        model: The model's part of the recipe.
        settings: The recipe's distributions section.
        folder: Where the model's files lie.
    """
    store = settings.store
    return make_scorer(
        model.engine or settings.engine,
        folder,
        top_k=settings.top_k,
        sampling=DrawSettings(store.draws, store.seed) if isinstance(store, SampledStore) else None,
        max_length=settings.max_length,
        threads=max(1, int(settings.cpus_per_actor)),
        trust_remote_code=model.trust_remote_code,
    )


def make_scorer(
    engine: TransformersEngine | VllmEngine | OpenAIEngine,
    folder: str,
    top_k: int,
    *,
    sampling: DrawSettings | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    threads: int | None = None,
) -> Scorer:
    """Start the engine that the recipe asks for, with the model of `folder`.

    Args:
        engine: The recipe's engine section.
        folder: Hugging Face model folder; the remote engine reads only its tokenizer.
        top_k: Entries to keep at each position; with `sampling`, draws are kept in their place.
        max_length: Longest sequence that will be asked for; vLLM reserves memory for it.
        trust_remote_code: Run model code that lies in the folder.
        threads: Threads of this process's torch; None leaves them as they are.

    Raises:
        EngineError: The folder or settings cannot give a scorer, the engine is not installed, or cannot draw.
    """
    if isinstance(engine, TransformersEngine):
        from fusion_ray.models.transformers import TransformersScorer

        return TransformersScorer(
            folder, top_k, engine, sampling=sampling, trust_remote_code=trust_remote_code, threads=threads
        )
    if isinstance(engine, VllmEngine):
        from fusion_ray.models.vllm import VllmScorer

        return VllmScorer(
            folder,
            top_k,
            engine,
            max_length=max_length,
            sampling=sampling,
            trust_remote_code=trust_remote_code,
            threads=threads,
        )
    if sampling:
        raise EngineError(
            f"engine {engine.kind}: draws need the whole distribution at every position, and a server gives the "
            "largest entries only. Set the engine to vllm or transformers, or distributions.store to compact."
        )
    from fusion_ray.models.openai import OpenAIScorer

    return OpenAIScorer(folder, top_k, engine, trust_remote_code=trust_remote_code)


def trained_engine(recipe: Recipe) -> TransformersEngine | VllmEngine:
    """The engine that scored the pivot; behind a server it cannot load other models, so then Transformers."""
    engine = recipe.pivot.engine or recipe.distributions.engine
    return TransformersEngine() if isinstance(engine, OpenAIEngine) else engine


def make_generator(
    engine: TransformersEngine | VllmEngine | OpenAIEngine,
    folder: str,
    *,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    threads: int | None = None,
) -> Generator:
    """Start the engine that scores this model, for writing; see `make_scorer` for the arguments.

    Raises:
        EngineError: The folder or the settings cannot give a generator, or the engine is not installed.
    """
    if isinstance(engine, TransformersEngine):
        from fusion_ray.models.transformers import TransformersGenerator

        return TransformersGenerator(folder, max_length, engine, trust_remote_code=trust_remote_code)
    if isinstance(engine, VllmEngine):
        from fusion_ray.models.vllm import VllmGenerator

        return VllmGenerator(folder, max_length, engine, trust_remote_code=trust_remote_code, threads=threads)
    from fusion_ray.models.openai import OpenAIGenerator

    return OpenAIGenerator(engine)
