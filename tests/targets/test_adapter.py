"""Adapters beside a model's layers, and their merge back into the weights."""

from pathlib import Path

import pytest
import torch
from toys.models import byte_level_tokenizer, save_toy
from transformers import AutoModelForCausalLM

from fusion_ray.recipe import Adapter
from fusion_ray.targets.adapter import add_adapter, merged_weights


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_our_merge_equals_pefts(tmp_path: Path, architecture: str, kind: str) -> None:
    from peft.tuners.lora import LoraLayer
    from transformers import GPT2Config

    torch.manual_seed(0)
    if architecture == "gpt2":  # Its layers keep their weights transposed.
        model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=2))
    else:
        folder = save_toy(tmp_path, architecture, byte_level_tokenizer(300))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    names = {name for name, _ in model.named_parameters()}
    add_adapter(model, Adapter(kind=kind, rank=4), seed=0)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1) if "magnitude" not in name else weight.data.mul_(1.1)
    ours = {name: weight.clone() for name, weight in merged_weights(model, lambda _, weight: weight.detach())}
    assert ours.keys() == names
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert len(layers) > 4
    for name, layer in layers.items():
        layer.merge()
        torch.testing.assert_close(ours[f"{name}.weight"], layer.get_base_layer().weight.detach(), rtol=1e-5, atol=1e-6)
