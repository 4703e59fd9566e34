"""The tiny demo for integration tests: real text, four real models of different tokenizers, trained in seconds."""

from dataclasses import dataclass
from pathlib import Path

from fusion_ray.demo import prepare
from fusion_ray.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Toys:
    """A tiny demo folder and its recipe, whose runs go beside it."""

    folder: Path
    recipe_path: Path
    recipe: Recipe


def make_toys(folder: Path, seed: int = 0) -> Toys:
    """Make chats, three specialists, a pivot and the recipe in `folder`; its runs go to `folder/runs`."""
    path = prepare(folder / "tiny", seed=seed, size="tiny")
    return Toys(folder, path, load_recipe(path, (f"runs={folder / 'runs'}",)))
