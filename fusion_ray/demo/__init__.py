"""The demo: three small specialists and a generalist pivot, made from text on this machine, and chats to fuse on."""

from pathlib import Path

from fusion_ray.progress import Tell, silent


def prepare(folder: str | Path, seed: int = 0, progress: Tell = silent, size: str = "demo") -> Path:
    """Make the demo's chats, models and recipe; what an earlier call made from the same settings stays.

    Args:
        folder: Where everything goes: `recipe.yaml`, `chats.jsonl`, `models/NAME/`.
        seed: Decides which chats train the models and which are for fusion, and every model's beginning.
        size: `demo`, or `tiny` for models that are trained in seconds and know little.

    Returns:
        Path of the recipe.

    Raises:
        RecipeError: A package whose text is needed is not installed, or no such size.
        EngineError: A model's training failed.
    """
    from fusion_ray.demo.making import make  # Opens tokenizers and more; the command line's --help must not.

    return make(Path(folder), seed, progress, size)
