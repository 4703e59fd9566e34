"""Find the files of a model, a local folder or a Hub id, and fingerprint them by content."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fusion_ray.errors import RecipeError
from fusion_ray.storage.filesystem import sha256_of_file

_NEEDED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine's disk.

    Attributes:
        reference: As the recipe names it.
        folder: Where its files lie.
        revision: Commit of a Hub model; empty for a local folder.
        hashes: sha256 by file name: everything that can change what the model computes.
    """

    reference: str
    folder: str
    revision: str
    hashes: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """One hash over all files; the place they lie in does not matter."""
        return hashlib.sha256(json.dumps(dict(self.hashes), sort_keys=True).encode()).hexdigest()[:16]


def find_model(reference: str) -> ModelFiles:
    """Resolve `path`, `org/name` or `org/name@revision` to files on disk, once.

    Raises:
        RecipeError: No such folder or Hub model, or a folder without config, tokenizer or safetensors weights.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        folder, revision = path.absolute(), ""
    else:
        folder, revision = _find_on_hub(reference)
    _check_files(folder, reference)
    files = sorted(file for pattern in _NEEDED for file in folder.glob(pattern) if file.name != "MANIFEST.json")
    hashes = {file.name: file_hash(file) for file in files}
    return ModelFiles(reference, str(folder), revision, hashes)


def _find_on_hub(reference: str) -> tuple[Path, str]:
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
    return folder, folder.name


def _check_files(folder: Path, reference: str) -> None:
    if not (folder / "config.json").is_file():
        raise RecipeError(f"model '{reference}': {folder} has no config.json. Expected a Hugging Face model folder.")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise RecipeError(f"model '{reference}': {folder} has no tokenizer (looked for {', '.join(_TOKENIZER_FILES)}).")
    if any(folder.glob("*.safetensors")):
        return
    if any(file for pattern in _PICKLES for file in folder.glob(pattern)):
        raise RecipeError(
            f"model '{reference}': {folder} holds only pickled weights, which can run code when opened and are "
            "refused. Convert them to safetensors first (save_pretrained of a current Transformers does)."
        )
    raise RecipeError(f"model '{reference}': {folder} has no *.safetensors weights.")


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
