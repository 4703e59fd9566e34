"""What makes merged weights a Hugging Face model folder: config, tokenizer, chat template, model card, weights.json.

config.json is written last: a folder without one is not a model, so a merge that was cut short is never loaded.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from fusion_ray.errors import MissingArtifactError
from fusion_ray.merged.execute import FileRecord
from fusion_ray.merged.plan import DTYPES
from fusion_ray.storage.filesystem import exists, join, list_files, read_bytes, write_bytes
from fusion_ray.storage.model_files import TOKENIZER_FILES
from fusion_ray.storage.run_folder import WEIGHTS

_NAMES_BY_DTYPE = {stored: name for name, stored in DTYPES.items()}
NEVER_COPIED_FROM_CONFIG = ("_name_or_path", "quantization_config")


@dataclass(frozen=True)
class Card:
    """What the model card says.

    Attributes:
        name: Title of the model.
        method: Name of the merge method.
        base_models: Folders or Hub ids of all models that went in, the pivot first.
        config: The merge configuration, plain data.
        scores: The score of each model as text, if there are any yet.
    """

    name: str
    method: str
    base_models: Sequence[str]
    config: Mapping[str, Any]
    scores: Mapping[str, str] = field(default_factory=dict)


def finish_folder(
    folder: str, donor: str, card: Card, records: Sequence[FileRecord], changes: Mapping[str, Any] | None = None
) -> None:
    """Add to a merged folder all but the weights and the tokenizer; call this last.

    Args:
        folder: The merged folder; its weights are there already.
        donor: Model folder whose config and generation config it takes.
        card: The model card.
        records: One for each file of weights.
        changes: Keys of config.json whose values differ from the donor's.
    """
    if not exists(join(donor, "config.json")):
        raise MissingArtifactError(f"{donor}: no config.json. Expected a Hugging Face model folder.")
    if exists(join(donor, "generation_config.json")):
        write_bytes(join(folder, "generation_config.json"), read_bytes(join(donor, "generation_config.json")))
    weights = {name: found for record in records for name, found in record.weights.items()}
    write_json(join(folder, WEIGHTS), {"method": card.method, "tensors": dict(sorted(weights.items()))})
    write_bytes(join(folder, "merge_config.yaml"), yaml.safe_dump(dict(card.config), sort_keys=False).encode())
    write_bytes(join(folder, "README.md"), render_card(card).encode())
    config = json.loads(read_bytes(join(donor, "config.json")))
    for key in NEVER_COPIED_FROM_CONFIG:
        config.pop(key, None)
    write_json(join(folder, "config.json"), config | dict(changes or {}))


def copy_tokenizer(donor: str, folder: str) -> None:
    """Copy the files of a model's tokenizer, its chat template included."""
    for name in list_files(donor):
        if name in TOKENIZER_FILES:
            write_bytes(join(folder, name), read_bytes(join(donor, name)))


def write_json(uri: str, data: Mapping[str, Any]) -> None:
    """Write plain data as JSON; NaN is an error."""
    write_bytes(uri, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def config_dtype(stored: str) -> dict[str, str]:
    """The config keys that say in which type the weights are stored; old readers look for `torch_dtype`.

    >>> config_dtype("BF16")
    {'dtype': 'bfloat16', 'torch_dtype': 'bfloat16'}
    """
    return {"dtype": _NAMES_BY_DTYPE[stored], "torch_dtype": _NAMES_BY_DTYPE[stored]}


def render_card(card: Card) -> str:
    """The model card: metadata that the Hub reads, then prose."""
    metadata = {
        "base_model": list(card.base_models),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "fusion_ray", "knowledge-fusion", card.method],
    }
    scores = "".join(f"| {model} | {score} |\n" for model, score in card.scores.items())
    table = f"\n## Held-out bits per byte\n\n| model | bits per byte |\n|---|---|\n{scores}" if scores else ""
    members = "".join(f"- {model}\n" for model in card.base_models)
    return (
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n# {card.name}\n\n"
        f"Merged with fusion_ray by the method `{card.method}` from:\n\n{members}\n"
        "`weights.json` holds the weight of every tensor and model.\n"
        f"{table}\n## Configuration\n\n```yaml\n{yaml.safe_dump(dict(card.config), sort_keys=False)}```\n"
    )
