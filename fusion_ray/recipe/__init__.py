"""The configuration of a run: one YAML file, read into frozen objects, a section a file; no torch, no ray."""

from fusion_ray.recipe.answers import Answers
from fusion_ray.recipe.corpus import Columns, Corpus
from fusion_ray.recipe.distributions import (
    Actors,
    CompactStore,
    Distributions,
    PlainStore,
    SampledStore,
    Store,
)
from fusion_ray.recipe.engines import Dtype, Engine, OpenAIEngine, TransformersEngine, VllmEngine
from fusion_ray.recipe.fused import AvgCE, BytesAlign, DtwAlign, Fused, MinCE
from fusion_ray.recipe.loading import load_recipe, parse_recipe
from fusion_ray.recipe.merged import Merged
from fusion_ray.recipe.models import Model, Source
from fusion_ray.recipe.recipe import Recipe, is_reserved
from fusion_ray.recipe.report import Evaluate, HarnessTask, Judge, LocalTask, Report
from fusion_ray.recipe.section import PLACEMENT, TEACHING, Section
from fusion_ray.recipe.targets import CONTROL_ARMS, UNTAUGHT_ARMS, Adapter, ControlArm, EarlyStop, Offload, Targets

__all__ = [
    "CONTROL_ARMS",
    "PLACEMENT",
    "TEACHING",
    "UNTAUGHT_ARMS",
    "Actors",
    "Adapter",
    "Answers",
    "AvgCE",
    "BytesAlign",
    "Columns",
    "CompactStore",
    "ControlArm",
    "Corpus",
    "Distributions",
    "DtwAlign",
    "Dtype",
    "EarlyStop",
    "Engine",
    "Evaluate",
    "Fused",
    "HarnessTask",
    "Judge",
    "LocalTask",
    "Merged",
    "MinCE",
    "Model",
    "Offload",
    "OpenAIEngine",
    "PlainStore",
    "Recipe",
    "Report",
    "SampledStore",
    "Section",
    "Source",
    "Store",
    "Targets",
    "TransformersEngine",
    "VllmEngine",
    "is_reserved",
    "load_recipe",
    "parse_recipe",
]  # fmt: skip
