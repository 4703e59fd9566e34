"""Testbed T: small models made on the spot, in as many shapes as the questions need."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fusion_ray.corpus.split import split_of
from fusion_ray.demo.making import recipe_text
from fusion_ray.demo.plans import DEMO, DOMAINS, DemoPlan, ModelPlan
from fusion_ray.recipe import Corpus

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
        sources: How many: the three specialists in the demo's order, then a generalist of their size. No other model
            depends on it.
        shared_vocabulary: One tokenizer of 1,024 tokens in all models, instead of one kind and size in each.
        pivot_vocabulary: Kind of the pivot's tokenizer, where it is to be another than it would be.
        architecture: Of all sources, instead of one in each.
        pivot: `small`, the demo's, or `large`.
        strength: Factor on the tokens that every source is trained on.
        rows: Fusion chats of each domain; no model has seen them.
        learn_from: Of these, at most so many of each domain beside the held-out ones, which stay the same.
        random_source: Add a source that has learned nothing.
    """

    seed: int = 0
    sources: int = 3
    shared_vocabulary: bool = False
    pivot_vocabulary: str | None = None
    architecture: str | None = None
    pivot: str = "small"
    strength: float = 1.0
    rows: int = 400
    learn_from: int | None = None
    random_source: bool = False

    def plan(self) -> DemoPlan:
        """The models and texts of this testbed. A model's seed is its place, so what is added stands at the end."""
        pivot = replace(_PIVOT, **_LARGE) if self.pivot == "large" else _PIVOT
        specialists = [self._trained_longer(model) for model in _SPECIALISTS]
        generalist = [self._trained_longer(_GENERALIST)] if self.sources > len(_SPECIALISTS) else []
        models = (*specialists, pivot, *generalist, *([_RANDOM] if self.random_source else []))
        if self.shared_vocabulary:
            shared = {"vocabulary": "byte_bpe", "style": "headers", "vocabulary_size": 1024}
            models = tuple(replace(model, **shared, vocabulary_domains=DOMAINS) for model in models)
        models = tuple(self._changed(model) for model in models)
        return replace(DEMO, fusion_chats=self.rows, models=models)

    def source_names(self) -> list[str]:
        """The sources, in the recipe's order."""
        taught = [model.name for model in (*_SPECIALISTS, _GENERALIST)][: self.sources]
        return [*taught, _RANDOM.name] if self.random_source else taught

    def _changed(self, model: ModelPlan) -> ModelPlan:
        if model.name == _PIVOT.name:
            return replace(model, vocabulary=self.pivot_vocabulary or model.vocabulary)
        return replace(model, architecture=self.architecture or model.architecture)

    def _trained_longer(self, model: ModelPlan) -> ModelPlan:
        return replace(model, tokens=round(model.tokens * self.strength))


def recipe_of(testbed: Testbed, folder: Path) -> dict[str, Any]:
    """The recipe of a testbed that lies in a folder, as plain data: the demo's, with these sources and chats."""
    data: dict[str, Any] = yaml.safe_load(recipe_text("demo", folder, testbed.seed))
    data["sources"] = [{"name": name, "model": f"{folder.as_posix()}/models/{name}"} for name in testbed.source_names()]
    data["merged"] = {"method": {"kind": "varm", "granularity": "matrix"}}  # See arms.py.
    if testbed.learn_from is not None:
        data["corpus"]["path"] = f"{folder.as_posix()}/chats-{testbed.learn_from}.jsonl"
    return data


def thin_chats(testbed: Testbed, folder: Path, corpus: Corpus) -> None:
    """Write the chats of a testbed that learns from fewer than it has: all held-out ones, the first of the others."""
    if testbed.learn_from is None:
        return
    left = dict.fromkeys(DOMAINS, testbed.learn_from)
    kept = []
    with (folder / "chats.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            chat = json.loads(line)
            if split_of(chat["id"], corpus, testbed.seed) != "heldout":
                left[chat["domain"]] -= 1
                if left[chat["domain"]] < 0:
                    continue
            kept.append(line)
    Path(corpus.path).write_text("".join(kept), encoding="utf-8")
