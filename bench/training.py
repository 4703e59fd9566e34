"""The packed training loop beside the same model trained with every row padded, in real tokens a second.

    python bench/training.py

The chats are real text (bench/chats.py) in SmolLM2's tokens; the model is a random Llama of 5 million parameters
outside its embeddings, so that a run takes minutes on two cores. Padded steps use Transformers' own loss. Also
measured: what DeepSpeed and our loop add to a step of a tiny model.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from chats import chats
from measurement import Measurement, report
from real_models import real_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from fusion_ray.recipe import Targets
from fusion_ray.targets.packing import plan_epoch, share_of_padding
from fusion_ray.targets.rows import TrainingRows
from fusion_ray.targets.trainer import Trainer

K, LONGEST = 10, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=48)
    rows = _rows(chats()[: parser.parse_args().rows])
    with tempfile.TemporaryDirectory() as folder:
        compare_with_padding(rows, folder)
        measure_overhead(folder)


def compare_with_padding(rows: TrainingRows, folder: str) -> None:
    """Real tokens a second of one epoch of four steps."""
    model = _save_model(Path(folder) / "model", hidden_size=256, num_hidden_layers=6, vocab_size=49_152)
    tokens = int(rows.lengths_N.sum())
    settings = _settings(tokens_per_step=-(-tokens // 4))
    history = Trainer(model, settings, seed=0).fit(rows)
    ours = tokens / sum(line.tokens / line.tokens_per_s for line in history)
    case = f"{len(rows)} chats, 5 M parameters, float32"
    for name, width in (("padded to the batch's longest", 0), (f"padded to {LONGEST}", LONGEST)):
        peer = _padded_tokens_per_s(model, rows, width)
        report(Measurement("training", case, "real tokens/s", ours, peer, name, ours / peer))
    plan = plan_epoch(rows.lengths_N, tokens_per_step=-(-tokens // 4), tokens_per_batch=4096, seed=0, epoch=0)
    full = 100 * (1 - share_of_padding(plan, rows.lengths_N))
    padded = 100 * rows.lengths_N.mean() / LONGEST
    goal = ">= 95 %"
    report(
        Measurement(
            "training", case, "% real tokens", full, padded, f"padded to {LONGEST}", full / padded, goal, full >= 95
        )
    )


def _padded_tokens_per_s(folder: str, rows: TrainingRows, width: int, batch: int = 4) -> float:
    """Four rows a batch, right-padded; each batch is a step's worth of gradients, and every third batch an update."""
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    started = time.perf_counter()
    numbers = list(range(len(rows)))
    taken = numbers if width == 0 else numbers[: 2 * batch]  # Full width is slow: two batches tell enough.
    for start in range(0, len(taken), batch):
        ids = [torch.from_numpy(rows[n].input_ids.astype(np.int64)) for n in taken[start : start + batch]]
        length = width or max(map(len, ids))
        ids_BT = torch.stack([torch.nn.functional.pad(row, (0, length - len(row))) for row in ids])
        mask_BT = torch.stack([torch.arange(length) < len(row) for row in ids])
        labels_BT = ids_BT.masked_fill(~mask_BT, -100)
        model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT, use_cache=False).loss.backward()
        if start % (3 * batch) == 0:
            optimizer.step()
            optimizer.zero_grad()
    return int(rows.lengths_N[taken].sum()) / (time.perf_counter() - started)


def measure_overhead(folder: str, repeats: int = 15) -> None:
    """Milliseconds of a step of a one-million-parameter model: our loop under DeepSpeed, and bare PyTorch."""
    path = _save_model(Path(folder) / "tiny", hidden_size=128, num_hidden_layers=4, vocab_size=2000)
    random = np.random.default_rng(0)
    rows = _rows_of([random.integers(0, 2000, 128) for _ in range(8 * repeats)])
    model = AutoModelForCausalLM.from_pretrained(path).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    ids_BT = torch.from_numpy(np.stack([rows[n].input_ids for n in range(8)])).long()
    bare = []
    for _ in range(repeats):
        started = time.perf_counter()
        model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bare.append(time.perf_counter() - started)
    for stage in (0, 2):
        history = Trainer(path, _settings(tokens_per_step=1024, zero_stage=stage), seed=0).fit(rows)
        ours = 1000 * statistics.median(line.tokens / line.tokens_per_s for line in history)
        peer = 1000 * statistics.median(bare)
        case = f"step of 1 M parameters, 8 x 128 tokens, ZeRO {stage}"
        report(Measurement("training", case, "ms", ours, peer, "bare PyTorch, gold only", ours / peer))


def _settings(**changes: object) -> Targets:
    plain = {"dtype": "float32", "zero_stage": 0, "epochs": 1, "tokens_per_batch": 4096, "learning_rate": 1e-4}
    return Targets.model_validate(plain | changes)


def _save_model(folder: Path, **shape: int) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        intermediate_size=3 * shape["hidden_size"], num_attention_heads=4, tie_word_embeddings=True, **shape
    )
    shutil.rmtree(folder, ignore_errors=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def _rows(conversations: list[list[dict[str, str]]]) -> TrainingRows:
    tokenizer = AutoTokenizer.from_pretrained(real_model("smollm2"))
    encoded = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in conversations]
    return _rows_of([np.array(ids[:LONGEST]) for ids in encoded])


def _rows_of(sequences: list[np.ndarray]) -> TrainingRows:
    """Every token but the first is an answer token, taught by K kept tokens."""
    made = []
    for number, ids in enumerate(sequences):
        n = len(ids) - 1
        kept_TK = (ids[1:, None] + np.arange(K)) % 2000
        row = {"id": str(number), "input_ids": ids, "turn_starts": [1], "turn_lengths": [n], "chosen": np.ones(n, int)}
        row |= {"topk_ids": kept_TK.ravel(), "topk_logprobs": np.full(n * K, np.log(0.9 / K)), "bits_per_byte": [1.0]}
        made.append(row | {"domain": "", "reason": None})
    return TrainingRows([pa.Table.from_pylist(made)], max_length=LONGEST)


if __name__ == "__main__":
    main()
