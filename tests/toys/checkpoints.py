"""Tiny checkpoints for merge tests: a pivot's tensors and targets that moved away from them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
}


def toy_tensors(seed: int = 0, layers: int = 2, hidden: int = 32, vocab: int = 40) -> dict[str, torch.Tensor]:
    """The tensors of a small Llama, float32."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    tensors = {"model.embed_tokens.weight": draw(vocab, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            tensors[f"{prefix}.self_attn.{name}_proj.weight"] = draw(hidden, hidden)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = draw(hidden * 3 // 2, hidden)
        tensors[f"{prefix}.mlp.up_proj.weight"] = draw(hidden * 3 // 2, hidden)
        tensors[f"{prefix}.mlp.down_proj.weight"] = draw(hidden, hidden * 3 // 2)
        tensors[f"{prefix}.input_layernorm.weight"] = 1 + draw(hidden)
        tensors[f"{prefix}.post_attention_layernorm.weight"] = 1 + draw(hidden)
    return tensors | {"model.norm.weight": 1 + draw(hidden), "lm_head.weight": draw(vocab, hidden)}


def moved(tensors: dict[str, torch.Tensor], seed: int, scale: float = 1e-3) -> dict[str, torch.Tensor]:
    """A target: every tensor moved at random, some more than others."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.rand(len(tensors), generator=generator) + 0.2
    return {
        name: tensor + torch.randn(tensor.shape, generator=generator) * scale * factor
        for (name, tensor), factor in zip(tensors.items(), factors, strict=True)
    }


def save_toy(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype = torch.bfloat16,
    config: dict[str, object] | None = None,
) -> str:
    """Write a model folder, with a stand-in for the tokenizer's files, and give its path."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {}}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return str(folder)
