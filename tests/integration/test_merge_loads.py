"""A merged folder is a model: Transformers and vLLM load it, tied or not, in one file or several, and it generates."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys.models import byte_level_tokenizer, save_toy
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fusion_ray.merged.execute import merge_to_folder
from fusion_ray.merged.folder import Card, copy_tokenizer, finish_folder
from fusion_ray.merged.plan import plan_merge
from fusion_ray.storage.checkpoints import open_checkpoint


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("file_bytes", [1 << 30, 20_000])
def test_a_merged_folder_loads_and_generates(tmp_path: Path, tied: bool, file_bytes: int) -> None:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    for seed, name in enumerate(("pivot", "math", "code")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    targets = {name: open_checkpoint(str(tmp_path / name)) for name in ("math", "code")}
    pivot, out = str(tmp_path / "pivot"), str(tmp_path / "out")
    plan = plan_merge(
        open_checkpoint(pivot), targets, method="varm", parameters={"granularity": "matrix"}, file_bytes=file_bytes
    )
    records = merge_to_folder(plan, out)
    finish_folder(out, pivot, Card("toy", "varm", ["pivot", "math", "code"], {}), records)
    model = AutoModelForCausalLM.from_pretrained(out)
    loaded = dict(model.named_parameters())
    for name, weights in {n: w for record in records for n, w in record.weights.items()}.items():
        assert weights is not None or torch.equal(loaded[name], torch.ones_like(loaded[name])), name  # Norms stay 1.
    generated = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert generated.shape[1] > 3


# vLLM changes torch for the whole process, so it gets one of its own.
GENERATE = """
import json, sys
from fusion_ray.models.vllm import VllmScorer
scorer = VllmScorer(sys.argv[1], 4, engine=VllmEngine(dtype="float32"), max_length=64, threads=1)
from vllm import SamplingParams
greedy = SamplingParams(max_tokens=12, temperature=0, detokenize=False, ignore_eos=True)
(made,) = scorer._engine.generate([{"prompt_token_ids": json.loads(sys.argv[2])}], greedy, use_tqdm=False)
print(json.dumps(list(made.outputs[0].token_ids)))
scorer.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_folder_generates_in_vllm_what_it_generates_in_transformers(tmp_path: Path, tied: bool) -> None:
    pivot = save_toy(tmp_path / "pivot", "llama", byte_level_tokenizer(), tie_word_embeddings=tied)
    targets = {}
    for seed, name in enumerate(("math", "code")):
        folder = save_toy(tmp_path / name, "llama", byte_level_tokenizer(), tie_word_embeddings=tied)
        torch.manual_seed(seed)
        tensors = load_file(Path(folder) / "model.safetensors")
        moved = {key: value + 0.05 * torch.randn_like(value) for key, value in tensors.items()}
        save_file(moved, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        targets[name] = open_checkpoint(folder)
    plan = plan_merge(
        open_checkpoint(pivot), targets, method="varm", parameters={"granularity": "matrix"}, file_bytes=100_000
    )
    out = str(tmp_path / "out")
    records = merge_to_folder(plan, out)
    copy_tokenizer(pivot, out)
    finish_folder(out, pivot, Card("toy", "varm", ["pivot", "math", "code"], {}), records)
    assert len(plan.files) > 1

    prompt = [9, 40, 71, 5]
    command = [sys.executable, "-c", GENERATE, out, json.dumps(prompt)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    model = AutoModelForCausalLM.from_pretrained(out)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
    assert json.loads(finished.stdout.splitlines()[-1]) == expected
    assert len(set(expected)) > 1
