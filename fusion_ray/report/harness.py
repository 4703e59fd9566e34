"""Run lm-evaluation-harness on one model folder, with Transformers or vLLM; plain data comes back."""

from importlib import metadata
from typing import Any

from fusion_ray.errors import EngineError, FusionRayError, RecipeError
from fusion_ray.models.folders import check_weights, load_model, load_tokenizer
from fusion_ray.recipe import Evaluate, LocalTask, TransformersEngine, VllmEngine
from fusion_ray.report.harness_tasks import per_document, task_config


def run_harness(
    folder: str,
    engine: TransformersEngine | VllmEngine,
    settings: Evaluate,
    *,
    seed: int = 0,
    trust_remote_code: bool = False,
    threads: int | None = None,
) -> dict[str, Any]:
    """Run the recipe's tasks on one model.

    Args:
        folder: Hugging Face model folder.
        engine: What runs the model.
        settings: The recipe's evaluate section.
        seed: Of the harness's choices (few-shot examples, sampling).
        trust_remote_code: Run model code that lies in the folder.
        threads: Threads of vLLM's CPU build.

    Returns:
        By task and group of tasks: `metrics` by name, `higher_is_better`, `documents`, and `values`, by metric the
        document-wise sums and counts (empty for groups).

    Raises:
        RecipeError: A task is unknown, or its data cannot be read.
        EngineError: The extra `eval` is not installed, or model or harness failed.
    """
    harness = _import_harness()
    manager, tasks = _collect_tasks(settings)
    model = _make_model(folder, engine, settings, trust_remote_code, threads)
    try:
        found = harness.simple_evaluate(
            model=model, tasks=tasks, task_manager=manager, num_fewshot=settings.few_shot, limit=settings.limit,
            apply_chat_template=settings.chat_template, batch_size=settings.batch_size, bootstrap_iters=0,
            log_samples=True, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed,
            fewshot_random_seed=seed,
        )  # fmt: skip
    except FusionRayError:
        raise
    except Exception as error:  # Tasks are written by many people, and raise errors of any kind.
        raise EngineError(
            f"{folder}: lm-evaluation-harness failed ({type(error).__name__}: {error}). Tasks of the Hub need a "
            "network, or their data in the cache of `datasets`."
        ) from error
    return {name: _describe(name, metrics, found) for name, metrics in found["results"].items()}


def _import_harness() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise EngineError(
            f"evaluate: lm-evaluation-harness cannot be imported ({error}). Install the extra 'eval'."
        ) from error
    return lm_eval


def _collect_tasks(settings: Evaluate) -> tuple[Any, list[Any]]:
    """The harness's index of tasks, and which to run; its own thousands are read only where one is asked for."""
    from lm_eval.tasks import TaskManager

    local = [task for task in settings.tasks if isinstance(task, LocalTask)]
    named = [task.name for task in settings.tasks if not isinstance(task, LocalTask)]
    manager = TaskManager(include_path=settings.folder, include_defaults=False)
    if any(name not in manager.all_tasks for name in named):
        manager = TaskManager(include_path=settings.folder)
    unknown = [name for name in named if name not in manager.all_tasks]
    if unknown:
        raise RecipeError(
            f"evaluate.tasks: lm-evaluation-harness has no task '{unknown[0]}', nor has evaluate.folder "
            f"({settings.folder or 'not given'}). `lm_eval ls tasks` lists its own."
        )
    return manager, [*named, *(task_config(task, settings.chat_template) for task in local)]


def _make_model(
    folder: str,
    engine: TransformersEngine | VllmEngine,
    settings: Evaluate,
    trust_remote_code: bool,
    threads: int | None,
) -> Any:
    tokenizer = load_tokenizer(folder, trust_remote_code)
    if isinstance(engine, VllmEngine):
        from fusion_ray.models.vllm import harness_arguments

        check_weights(folder)
        arguments = harness_arguments(folder, engine, settings.max_length, trust_remote_code, threads)
        return _import_vllm_model().VLLM(**arguments, batch_size=settings.batch_size)
    from lm_eval.models.huggingface import HFLM

    model = load_model(folder, engine, trust_remote_code=trust_remote_code)
    return HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size, max_length=settings.max_length,
        device=str(model.device),
    )  # fmt: skip


def _import_vllm_model() -> Any:
    """The harness's module for vLLM, which asks for a distribution `vllm`: the CPU build goes by another name."""
    import vllm

    real = metadata.version

    def version(distribution_name: str) -> str:
        return str(vllm.__version__) if distribution_name == "vllm" else real(distribution_name)

    metadata.version = version
    try:
        from lm_eval.models import vllm_causallms
    finally:
        metadata.version = real
    vllm_causallms.version = version
    return vllm_causallms


def _describe(name: str, metrics: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """One task's results without the harness's times and paths."""
    numbers = {
        key.removesuffix(",none"): float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and "," in key and "_stderr" not in key
    }
    samples = found.get("samples", {}).get(name, [])
    better = found.get("higher_is_better", {}).get(name, {})
    return {
        "metrics": numbers,
        "higher_is_better": {key: better.get(key.partition(",")[0]) for key in numbers},
        "documents": len({sample["doc_id"] for sample in samples}),
        "values": {key: values for key in numbers if (values := _values(key, samples))},
    }


def _values(key: str, samples: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """A metric's value for every document, in order; nothing where one has none."""
    metric, _, filtered = key.partition(",")
    chosen = [sample for sample in samples if sample["filter"] == (filtered or "none")]
    found = [per_document(sample.get(metric)) for sample in sorted(chosen, key=lambda sample: sample["doc_id"])]
    return [pair for pair in found if pair is not None] if all(found) else []
