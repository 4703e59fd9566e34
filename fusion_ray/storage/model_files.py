"""What is known of model folders without loading them: which files there are, what they hold, what is refused.

A model is a folder here, one in a store, or a Hub id; it is fingerprinted by content.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from fusion_ray.errors import RecipeError
from fusion_ray.storage.filesystem import absolute, join, list_files, sha256_of_file, stamp
from fusion_ray.storage.node_cache import fetch_folder
from fusion_ray.storage.run_folder import MANIFEST

# Everything that belongs to a model besides its weights.
BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.py")
_NEEDED = (*BESIDE_WEIGHTS, "*.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# One of these makes a tokenizer.
_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model", "tekken.json"
)  # fmt: skip
# All that a tokenizer may consist of, its chat template included.
TOKENIZER_FILES = frozenset(
    {
        *_TOKENIZERS, "special_tokens_map.json", "added_tokens.json", "vocab.txt", "merges.txt", "chat_template.jinja",
        "chat_template.json", "preprocessor_config.json", "processor_config.json",
    }
)  # fmt: skip


def why_no_tokenizer(names: Iterable[str]) -> str:
    """What is wrong with a folder of these files that has no tokenizer; empty where it has one."""
    return "" if set(names) & set(_TOKENIZERS) else f"has no tokenizer (looked for {', '.join(_TOKENIZERS)})"


def why_no_weights(names: Iterable[str]) -> str:
    """What is wrong with a folder of these files that has no safetensors weights; empty where it has."""
    names = sorted(names)
    if any(name.endswith(".safetensors") for name in names):
        return ""
    pickled = [name for name in names if any(fnmatch(name, pattern) for pattern in _PICKLES)]
    if pickled:
        return (
            f"holds only pickled weights ({pickled[0]}), which can run code when opened and are never read. Convert "
            "them once, in a place you trust: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    return "has no weights (expected model.safetensors, or model-00001-of-0000N.safetensors with their index)"


def config_sections(config: Mapping[str, Any]) -> list[Any]:
    """The parts of a config.json that say something of the language model: all of it, and `text_config` within."""
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, dict) else [config]


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of the language model; of models that also see, that is in `text_config`.

    >>> text_config({"model_type": "gemma3", "text_config": {"vocab_size": 7}})["vocab_size"]
    7
    """
    return {key: value for section in config_sections(config) for key, value in section.items()}


@dataclass(frozen=True)
class ModelFiles:
    """A model: where it was found, and what it is.

    Attributes:
        reference: As the recipe names it.
        place: Where the driver found its files: a folder of its machine, or the URI of one in a store.
        revision: Commit of a Hub model; else empty.
        hashes: A hash by file name: everything that can change what the model computes.
    """

    reference: str
    place: str
    revision: str
    hashes: Mapping[str, str]

    @property
    def folder(self) -> str:
        """A folder of this machine that holds the files; a node that has none fetches them first.

        Raises:
            RecipeError: The model is a folder of another machine.
        """
        if not self.place or Path(self.place).is_dir():
            return self.place
        if self.revision:
            return str(_find_on_hub(f"{self.reference.partition('@')[0]}@{self.revision}"))
        if "://" in self.place:
            return str(fetch_folder(self.place, _NEEDED))
        raise RecipeError(
            f"model '{self.reference}': {self.place} is no folder of this node. On a cluster give a shared folder, a "
            "folder in a bucket (s3://, gs://) or a Hub id."
        )

    @property
    def readable(self) -> str:
        """Where this machine can read the files by URI; only a Hub model may have to be fetched for it first."""
        return self.place if "://" in self.place else self.folder

    @cached_property
    def fingerprint(self) -> str:
        """One hash over all files; the place they lie in does not matter."""
        return hashlib.sha256(json.dumps(dict(self.hashes), sort_keys=True).encode()).hexdigest()[:16]


def trained_model(name: str, folder: str) -> ModelFiles:
    """A model that this run made, by the URI of its folder; its manifest says what it is."""
    return ModelFiles(name, absolute(folder), "", {})


def find_model(reference: str) -> ModelFiles:
    """Resolve a folder, the URI of a folder in a store, `org/name` or `org/name@revision` to files, once.

    Raises:
        RecipeError: No such folder or Hub model, or a folder without config, tokenizer or safetensors weights.
    """
    if "://" in reference:
        return _find_in_store(reference)
    path, revision = Path(reference).expanduser(), ""
    if not path.is_dir():
        path = _find_on_hub(reference)
        revision = path.name
    folder = path.absolute()
    files = sorted(file for pattern in _NEEDED for file in folder.glob(pattern) if file.name != MANIFEST)
    _check_files({file.name for file in folder.iterdir()}, str(folder), reference)
    return ModelFiles(reference, str(folder), revision, {file.name: file_hash(file) for file in files})


def _find_in_store(uri: str) -> ModelFiles:
    """A model folder in a store: small files by content, weights by size and time: `plan` must not download them."""
    folder = uri.rstrip("/")
    names = list_files(folder)
    if not names:
        raise RecipeError(f"model '{uri}': nothing there. Expected a folder with config.json, tokenizer and weights.")
    _check_files(set(names), folder, uri)
    needed = [name for name in names if any(fnmatch(name, pattern) for pattern in _NEEDED) and name != MANIFEST]
    hashes = {
        name: stamp(join(folder, name)) if name.endswith(".safetensors") else sha256_of_file(join(folder, name))
        for name in needed
    }
    return ModelFiles(uri, folder, "", hashes)


def _find_on_hub(reference: str) -> Path:
    name, _, revision = reference.partition("@")
    looks_local = reference.startswith((".", "/", "~")) or reference.count("/") != 1
    if looks_local:
        raise RecipeError(
            f"model '{reference}': no such folder. Expected a folder with config.json, a tokenizer and *.safetensors, "
            "or a Hub id such as 'org/name@revision'."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_NEEDED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise RecipeError(
            f"model '{reference}': neither a folder here nor a model that the Hub gave ({type(error).__name__}). "
            "Check the spelling, your network and access rights, or give a local folder."
        ) from error
    return folder


def _check_files(names: set[str], folder: str, reference: str) -> None:
    if "config.json" not in names:
        raise RecipeError(f"model '{reference}': {folder} has no config.json. Expected a Hugging Face model folder.")
    wrong = why_no_tokenizer(names) or why_no_weights(names)
    if wrong:
        raise RecipeError(f"model '{reference}': {folder} {wrong}.")


def file_hash(path: str | Path) -> str:
    """sha256 of a local file, computed once per (path, size, mtime): weights are large, and `plan` must be quick."""
    file = Path(path)
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()
    root = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "fusion_ray" / "hashes"
    entry = root / key
    if entry.is_file():
        return entry.read_text()
    digest = sha256_of_file(str(file))
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest)
        temporary.replace(entry)
    except OSError:
        return digest  # A cache that cannot be written only costs time.
    return digest
