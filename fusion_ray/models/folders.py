"""Hugging Face model folders: opened with clear errors, safetensors only, no remote code unless it is asked for."""

import json
from pathlib import Path
from typing import Any

from fusion_ray.errors import EngineError
from fusion_ray.recipe import TransformersEngine
from fusion_ray.storage.model_files import config_sections, text_config, why_no_tokenizer, why_no_weights

_DEFAULT = TransformersEngine()
_PROBE = "Größe e\u0301 \u212b 漢字 🎉 don't\n\n\tx_1 == 3.14159  # 2026 – ﬁn\r\n  THE end "


def load_tokenizer(folder: str, trust_remote_code: bool = False) -> Any:
    """Load the fast tokenizer of a model folder.

    Raises:
        EngineError: The folder has no tokenizer, or only a slow one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    _require_folder(folder)
    wrong = why_no_tokenizer(_names(folder))
    if wrong:
        raise EngineError(f"{folder} {wrong}. Copy the model's tokenizer files there.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        if not trust_remote_code and not _reads_as_saved(tokenizer, folder):
            # Transformers makes some kinds (Qwen2) by the model's type and drops what tokenizer.json says.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # Transformers raises many kinds, none of which names the folder.
        raise EngineError(f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}: {error}).") from error
    if not getattr(tokenizer, "is_fast", False):
        raise EngineError(
            f"{folder}: expected a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}. "
            "Convert it and save tokenizer.json beside it."
        )
    return tokenizer


def _reads_as_saved(tokenizer: Any, folder: str) -> bool:
    """Whether a tokenizer cuts a difficult text as the tokenizer.json beside it does."""
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    if not path.is_file() or not getattr(tokenizer, "is_fast", False):
        return True
    saved = Tokenizer.from_file(str(path)).encode(_PROBE, add_special_tokens=False).ids
    return bool(tokenizer(_PROBE, add_special_tokens=False)["input_ids"] == saved)


def load_model(
    folder: str,
    engine: TransformersEngine = _DEFAULT,
    *,
    trust_remote_code: bool = False,
    device: str | None = None,
) -> Any:
    """Load a causal language model for inference.

    Args:
        folder: Local folder with config.json and safetensors weights.
        engine: The recipe's engine section. `dtype: auto` is the checkpoint's own. `attention` is Transformers'
            `attn_implementation`; None leaves the choice to Transformers, except for models that cap their attention
            logits (Gemma 2): there it is `eager`, because all others silently leave the cap out.
        trust_remote_code: Run model code that lies in the folder.
        device: `cpu`, `cuda`, ...; None is a GPU where there is one.

    Raises:
        EngineError: The folder has no config or no safetensors weights, or Transformers cannot load it.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = read_config(folder)
    check_weights(folder)
    attention = engine.attention
    if attention is None and text_config(config).get("attn_logit_softcapping"):
        attention = "eager"
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if engine.dtype == "auto" else getattr(torch, engine.dtype),
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            **options,
        )
    except Exception as error:  # Transformers raises many kinds, few of which name the folder.
        raise EngineError(f"{folder}: the model cannot be loaded ({type(error).__name__}: {error}).") from error
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model.eval().requires_grad_(False).to(place)


def read_config(folder: str) -> dict[str, Any]:
    """Read config.json of a model folder as plain data.

    Raises:
        EngineError: There is no such folder, no config.json in it, or it is not JSON.
    """
    path = Path(folder) / "config.json"
    _require_folder(folder)
    if not path.is_file():
        raise EngineError(f"{folder}: it has no config.json, so it is not a Hugging Face model folder.")
    return _read_object(path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(found, dict):
        raise EngineError(f"{path}: expected an object, got {type(found).__name__}.")
    return found


def _require_folder(folder: str) -> None:
    if not Path(folder).is_dir():
        raise EngineError(f"{folder}: no such folder. Give the path of a Hugging Face model folder.")


def check_weights(folder: str) -> None:
    """Refuse folders without safetensors weights.

    Raises:
        EngineError: No weights, or only pickled ones.
    """
    wrong = why_no_weights(_names(folder))
    if wrong:
        raise EngineError(f"{folder} {wrong}.")


def _names(folder: str) -> list[str]:
    return [path.name for path in Path(folder).iterdir() if path.is_file()]


def end_tokens(folder: str, tokenizer: Any) -> frozenset[int]:
    """Tokens with which a model ends a text by its own settings: generation_config.json, config.json, its tokenizer.

    They need not be the token that a chat template ends a turn with: many base models have another one, and some models
    have several.

    Raises:
        EngineError: One of the two files is not JSON, or there is no config.json.
    """
    path = Path(folder) / "generation_config.json"
    sections = [_read_object(path)] if path.is_file() else []
    config = read_config(folder)
    sections += [*config_sections(config), {"eos_token_id": tokenizer.eos_token_id}]
    found: set[int] = set()
    for section in sections:
        ends = section.get("eos_token_id")
        found.update(ends if isinstance(ends, list) else [] if ends is None else [ends])
    return frozenset(found)


def longest_sequence(config: dict[str, Any]) -> int | None:
    """Longest sequence a model was made for, from its config.json; None where it names no limit.

    >>> longest_sequence({"max_position_embeddings": 2048})
    2048
    """
    for section in config_sections(config):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"):
            if isinstance(section.get(key), int):
                return int(section[key])
    return None
