"""Write a trained model as the folder that users of the Hub expect: config, tokenizer, sharded safetensors."""

import json
import shutil
from pathlib import Path

import torch

from fusion_ray.storage.model_files import BESIDE_WEIGHTS, config_sections
from fusion_ray.storage.run_folder import MANIFEST
from fusion_ray.targets.deepspeed import Engine

_OF_WEIGHTS = ("config.json", MANIFEST, "model.safetensors.index.json")


def export_model(engine: Engine, pivot_folder: str, folder: Path, *, dtype: str, shard_gib: float = 5.0) -> None:
    """Save the float32 masters as `dtype`, with the pivot's tokenizer, chat template and generation config.

    All workers must call this together; the first one writes, and holds the whole model in its memory.

    Args:
        engine: What was trained.
        pivot_folder: Where the pivot's files lie.
        folder: Where to write; made if needed.
        dtype: Of the weights on disk.
        shard_gib: Largest size of one safetensors file.
    """
    first = torch.distributed.get_rank() == 0
    wanted = getattr(torch, dtype)
    weights = {name: weight.to("cpu", wanted) for name, weight in engine.full_weights() if first}
    if not first:
        return
    model = engine.student.model
    weights |= {
        name: buffer.cpu() for name, buffer in model.state_dict().items() if name in dict(model.named_buffers())
    }
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=weights, max_shard_size=int(shard_gib * 2**30))
    _declare_dtype(folder / "config.json", dtype)
    for pattern in BESIDE_WEIGHTS:
        for path in Path(pivot_folder).glob(pattern):
            if path.name not in _OF_WEIGHTS:
                shutil.copyfile(path, folder / path.name)


def _declare_dtype(path: Path, dtype: str) -> None:
    # Transformers notes the dtype that the model computed in, and would load the weights as that.
    config = json.loads(path.read_text())
    for section in config_sections(config):
        if "dtype" in section:
            section["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
