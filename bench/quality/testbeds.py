"""Testbed T: small models made on the spot, in as many shapes as the questions need."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fusion_ray.demo.making import recipe_text
from fusion_ray.demo.plans import DEMO, DOMAINS, DemoPlan, ModelPlan

_PIVOT = DEMO.models[-1]
_SPECIALISTS = DEMO.models[:-1]
_GENERALIST = ModelPlan("generalist", "qwen2", "byte_bpe", "prompter", DOMAINS, 500_000)
_RANDOM = ModelPlan("random", "llama", "byte_bpe", "chatml", DOMAINS, 1)
_LARGE = {"hidden_size": 160, "layers": 4, "tokens": 400_000}


@dataclass(frozen=True)
class Testbed:
    """What is fused.

    Attributes:
        seed: Of texts, models and training.
        sources: How many: the three specialists in the demo's order, then a generalist of their size.
        shared_vocabulary: One tokenizer of 1,024 tokens in all models, instead of one kind and size in each.
        pivot: `small`, the demo's, or `large`.
        strength: Factor on the tokens that every source is trained on.
        rows: Fusion chats of each domain.
        random_source: Add a source that has learned nothing.
    """

    seed: int = 0
    sources: int = 3
    shared_vocabulary: bool = False
    pivot: str = "small"
    strength: float = 1.0
    rows: int = 400
    random_source: bool = False

    def plan(self) -> DemoPlan:
        """The models and texts of this testbed."""
        sources = [replace(s, tokens=round(s.tokens * self.strength)) for s in (*_SPECIALISTS, _GENERALIST)]
        sources = sources[: self.sources] + [_RANDOM] * self.random_source
        pivot = replace(_PIVOT, **_LARGE) if self.pivot == "large" else _PIVOT
        models = (*sources, pivot)
        if self.shared_vocabulary:
            shared = {"vocabulary": "byte_bpe", "style": "headers", "vocabulary_size": 1024}
            models = tuple(replace(model, **shared, vocabulary_domains=DOMAINS) for model in models)
        return replace(DEMO, fusion_chats=self.rows, models=models)


def recipe_of(testbed: Testbed, folder: Path) -> dict[str, Any]:
    """The recipe of a testbed that lies in a folder, as plain data: the demo's, with these models."""
    data: dict[str, Any] = yaml.safe_load(recipe_text("demo", folder, testbed.seed))
    sources = testbed.plan().models[:-1]
    data["sources"] = [{"name": model.name, "model": f"{folder.as_posix()}/models/{model.name}"} for model in sources]
    return data
