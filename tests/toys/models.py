"""Small real tokenizers and tiny random models, made on the spot from configs: nothing is downloaded or stored."""

from functools import lru_cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from fusion_ray.recipe import TransformersEngine

FLOAT32 = TransformersEngine(dtype="float32")


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant roles are known') }}{% endif %}{% endfor %}"
)


def texts() -> list[str]:
    """English prose and code of the Python documentation, and a little of other scripts."""
    return [
        *list(topics.values())[:60],
        "Größe, naïve, 漢字かな交じり文, Ελληνικά, 🎉🎊 done.",
        "x == 0x1F\n\n\treturn x\n",
    ]


@lru_cache
def byte_level_tokenizer(size: int = 600, normalizer: Any = None) -> PreTrainedTokenizerFast:
    """A GPT-2 or Qwen-like byte-level BPE with ChatML."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if normalizer == "NFC":
        tokenizer.normalizer = normalizers.NFC()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    return fast


@lru_cache
def sentencepiece_tokenizer(size: int = 700) -> PreTrainedTokenizerFast:
    """A Llama-2-like BPE: word-start marks, a space before the text, byte fallback, `[INST]` turns."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, show_progress=False, limit_alphabet=80, max_token_length=12
    )
    tokenizer.train_from_iterator(" ".join(texts()).split(" "), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=_without_added_bytes(tokenizer), bos_token="<s>", eos_token="</s>")
    fast.add_special_tokens({"unk_token": "<unk>"})
    fast.chat_template = LLAMA2
    return fast


@lru_cache
def unigram_tokenizer(size: int = 500) -> PreTrainedTokenizerFast:
    """A T5-like Unigram that normalises (NFKC) and has no byte fallback; no chat template."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


ARCHITECTURES = ("llama", "qwen2", "gpt_neox", "gemma2", "cohere", "granite")


def toy_config(architecture: str, vocab_size: int, **changes: Any) -> AutoConfig:
    """A config of two layers of width 64 with heads of width 32 (vLLM refuses 16)."""
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,  # peaked distributions: random weights of the usual size give nearly flat ones
    }
    grouped = {"num_key_value_heads": 1, "head_dim": 32}
    match architecture:
        case "llama":
            return LlamaConfig(**{**shape, **grouped, **changes})
        case "qwen2":
            return Qwen2Config(**{**shape, "num_key_value_heads": 1, "tie_word_embeddings": True, **changes})
        case "gpt_neox":
            return GPTNeoXConfig(**{**shape, **changes})
        case "gemma2":
            caps = {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 32, "sliding_window": 32}
            return Gemma2Config(**{**shape, **grouped, **caps, **changes})
        case "cohere":
            return CohereConfig(**{**shape, "num_key_value_heads": 1, "logit_scale": 0.25, **changes})
        case "granite":
            return GraniteConfig(**{**shape, "num_key_value_heads": 1, "logits_scaling": 2.0, **changes})
    raise ValueError(architecture)


def save_toy(folder: Path, architecture: str, tokenizer: Any, extra_rows: int = 24, **changes: Any) -> str:
    """Write a random model and its tokenizer; `extra_rows` pad the output head past the tokenizer, as Qwen's do."""
    torch.manual_seed(sum(map(ord, architecture)))
    config = toy_config(architecture, len(tokenizer) + extra_rows, **changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _without_added_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Bytes are ordinary entries of the vocabulary, not added tokens: keep only the true specials as added."""
    import json

    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))
