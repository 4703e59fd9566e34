"""A merged folder is a model: Transformers loads it, tied or not, in one file or several, and it generates."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fusion_ray.merging.execute import merge_to_folder
from fusion_ray.merging.folder import Card, finish_folder
from fusion_ray.merging.plan import plan_merge
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
