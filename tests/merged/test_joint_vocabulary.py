"""Models with different vocabularies: every token of the output has the embedding that mergekit would give it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from toys.checkpoints import save_toy, toy_tensors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fusion_ray.errors import RecipeError
from fusion_ray.merged.from_yaml import merge_from_yaml

WORDS = {"a": ["<unk>", "red", "green", "blue"], "b": ["<unk>", "blue", "white", "red", "black"]}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Two models; row v of a model's embedding is filled with v + 1, and b's with ten times that."""
    ids = {name: {word: number for number, word in enumerate(words)} for name, words in WORDS.items()}
    return {
        name: save_model(tmp_path / name, words, scale)
        for scale, (name, words) in zip((1, 10), ids.items(), strict=True)
    }


def save_model(folder: Path, ids: dict[str, int], scale: float) -> str:
    rows = max(ids.values()) + 1
    tensors = toy_tensors(hidden=8, vocab=rows)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[key] = (torch.arange(rows) + 1.0)[:, None].expand(-1, 8) * scale
    made = save_toy(folder, tensors, torch.float32, {"vocab_size": rows})
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(made)
    return made


def merge(tmp_path: Path, folders: dict[str, str], base: str | None = "a", **rest: Any) -> dict[str, list[float]]:
    """First column of the merged input embedding by token; weights 0.5 and 0.5."""
    entries = [{"model": folder, "parameters": {"weight": 0.5}} for folder in folders.values()]
    document = {"merge_method": "linear", "models": entries} | ({"base_model": folders[base]} if base else {}) | rest
    path = tmp_path / "merge.yaml"
    path.write_text(yaml.safe_dump(document))
    out = tmp_path / "out"
    merge_from_yaml(path, str(out))
    column = load_file(out / "model.safetensors")["model.embed_tokens.weight"][:, 0].tolist()
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(column)
    vocabulary = AutoTokenizer.from_pretrained(out).get_vocab()
    used = max(vocabulary.values()) + 1
    padding = {"padding": column[used:]} if len(column) > used else {}
    return {token: [column[place]] for token, place in vocabulary.items()} | padding


def test_a_union_has_every_token_and_mixes_the_ones_both_have(tmp_path: Path, folders: dict[str, str]) -> None:
    found = merge(tmp_path, folders, tokenizer_source="union")
    assert set(found) == {"<unk>", "red", "green", "blue", "white", "black"}
    assert found["red"] == [(2 + 40) / 2]  # Row 1 of a and row 3 of b.
    assert found["blue"] == [(4 + 20) / 2]
    assert found["green"] == [3]  # Only a has it, so b takes a's.
    assert found["white"] == [30]


def test_the_bases_tokenizer_keeps_its_ids(tmp_path: Path, folders: dict[str, str]) -> None:
    found = merge(tmp_path, folders, tokenizer_source="base")
    assert found == {"<unk>": [5.5], "red": [21], "green": [3], "blue": [12]}


def test_another_models_tokenizer_can_be_taken(tmp_path: Path, folders: dict[str, str]) -> None:
    found = merge(tmp_path, folders, tokenizer_source=folders["b"])
    assert found == {"<unk>": [5.5], "red": [21], "blue": [12], "white": [30], "black": [50]}


def test_a_tokens_own_source_and_padding_are_obeyed(tmp_path: Path, folders: dict[str, str]) -> None:
    tokens = {
        "green": {"source": {"kind": "zero"}},
        "red": {"source": folders["a"], "force": True},
        "new": {"source": {"kind": "model_token", "model": folders["b"], "token": "white"}},
    }
    found = merge(tmp_path, folders, tokenizer={"source": "base", "tokens": tokens, "pad_to_multiple_of": 8})
    assert found["green"] == [(3 + 0) / 2]
    assert found["red"] == [2]
    assert found["new"] == [30]
    assert found["padding"] == pytest.approx([sum(v[0] for t, v in found.items() if t != "padding") / 5] * 3)


def test_tokens_whose_ids_come_after_a_gap_keep_their_embeddings(tmp_path: Path, folders: dict[str, str]) -> None:
    folders["a"] = save_model(tmp_path / "gap", {"<unk>": 0, "red": 1, "green": 2, "blue": 7}, 1)
    found = merge(tmp_path, folders, tokenizer_source="base")
    assert found == {"<unk>": [5.5], "red": [21], "green": [3], "blue": [(8 + 20) / 2]}


def test_a_tokenizer_of_no_model_is_refused(tmp_path: Path, folders: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="expected union, base or one of the models"):
        merge(tmp_path, folders, tokenizer_source="somewhere/else")
