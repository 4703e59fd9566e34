"""What the report keeps on disk while it is made, so that a run that was stopped makes only what is missing."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from fusion_ray.on_ray import streams
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import Distributions
from fusion_ray.report.evaluated_models import EvaluatedModel
from fusion_ray.storage.filesystem import exists, read_bytes, write_bytes


def read_kept(uri: str, fingerprint: str) -> Any | None:
    """What `keep` has written there for this very fingerprint; None where it must be made (again)."""
    try:
        found = json.loads(read_bytes(uri)) if exists(uri) else {}
    except ValueError:
        return None  # A damaged file counts as not made.
    return found.get("content") if isinstance(found, dict) and found.get("fingerprint") == fingerprint else None


def keep(uri: str, fingerprint: str, content: Any) -> None:
    """Write plain data and the fingerprint of all that it depends on, whole or not at all."""
    kept = {"fingerprint": fingerprint, "content": content}
    write_bytes(uri, (json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode())


def make_missing(
    models: Sequence[EvaluatedModel],
    read: Callable[[EvaluatedModel], Any | None],
    make: Callable[[EvaluatedModel], Any],
    write: Callable[[EvaluatedModel, Any], None],
    settings: Distributions,
    tell: Tell,
    what: str,
) -> dict[str, Any]:
    """Make something of every model for which it is not kept yet, each in a task that can load a model.

    Args:
        models: The models.
        read: What is kept of one, or None.
        make: Runs in the task; returns plain data.
        write: Keeps it.
        settings: What a task asks for.
        tell: Receives progress.
        what: What is made, in words for progress.

    Returns:
        By the models' labels, in their order.
    """
    found = {model.label: read(model) for model in models}
    todo = {model.label: model for model in models if found[model.label] is None}

    def work(model: EvaluatedModel) -> dict[str, Any]:
        return {"label": model.label, "made": make(model)}

    for done, result in enumerate(streams.stream_with_models(list(todo.values()), work, settings), start=1):
        label = result["label"]
        found[label] = result["made"]
        write(todo[label], result["made"])
        tell(Progress("report", done, len(todo) + 1, f"{what} of {label}"))
    return found
