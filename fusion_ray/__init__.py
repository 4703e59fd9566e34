"""Fuse the knowledge of several chat LLMs of any architecture and tokenizer into one model, on Ray.

`import fusion_ray` is quick: what needs torch, Ray or pyarrow is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fusion_ray._version import __version__
from fusion_ray.errors import (
    AlignmentError,
    ArtifactError,
    ClusterError,
    CorruptArtifactError,
    DeadEngineError,
    EngineError,
    FusionRayError,
    MergeError,
    MethodError,
    MissingArtifactError,
    NonFiniteError,
    RecipeError,
    StaleArtifactError,
)

if TYPE_CHECKING:
    from fusion_ray.api import (
        Inspection,
        Plan,
        Progress,
        Recipe,
        RunReport,
        align,
        fusion_loss,
        inspect,
        load_recipe,
        merge,
        plan,
        push,
        run,
        soft_target,
        write_recipe,
    )

__all__ = [
    "AlignmentError",
    "ArtifactError",
    "ClusterError",
    "CorruptArtifactError",
    "DeadEngineError",
    "EngineError",
    "FusionRayError",
    "Inspection",
    "MergeError",
    "MethodError",
    "MissingArtifactError",
    "NonFiniteError",
    "Plan",
    "Progress",
    "Recipe",
    "RecipeError",
    "RunReport",
    "StaleArtifactError",
    "__version__",
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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fusion_ray' has no attribute '{name}'")
    return getattr(import_module("fusion_ray.api"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
