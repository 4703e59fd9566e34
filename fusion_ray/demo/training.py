"""Train one small model from scratch on one domain, and save it as an ordinary Hugging Face folder.

Runs as a process of its own, `python -m fusion_ray.demo.training JOB.json`, on one thread: two such processes side
by side use two cores better than two threads in one do. It prints one JSON line per report.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion_ray.demo.plans import ModelPlan

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Report = Callable[[int, int, float], None]


def train_model(plan: ModelPlan, chats: list[dict[str, Any]], folder: Path, report: Report) -> None:
    """Train tokenizer and model on those chats that are of the plan's domains and save both to `folder`.

    Args:
        chats: Rows of a file of chats: `domain`, and `messages` with role and content.
        report: Called about once a second with the tokens seen, the tokens to see, and the loss in nats per token.
    """
    import torch

    from fusion_ray.demo.vocabularies import STYLES, TRAINERS, as_hugging_face

    style = STYLES[plan.style]
    read = _conversations(chats, plan.vocabulary_domains or plan.domains)
    texts = [message["content"] for chat in read for message in chat] + ["user\n", "assistant\n"] * len(read)
    trained = TRAINERS[plan.vocabulary](texts, plan.vocabulary_size, style)
    tokenizer = as_hugging_face(trained, style)
    torch.manual_seed(plan.seed)
    model = build_model(plan, tokenizer)
    rows = [_render(tokenizer, chat)[: plan.max_length] for chat in _conversations(chats, plan.domains)]
    fit(model, rows, plan, report)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_model(plan: ModelPlan, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """A freshly initialised model of the plan's shape for this tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": plan.hidden_size,
        "intermediate_size": plan.hidden_size * (4 if plan.architecture == "gpt_neox" else 3),
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.hidden_size // plan.head_dim,
        "max_position_embeddings": 2 * plan.max_length,
        "tie_word_embeddings": plan.architecture != "gpt_neox",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if plan.architecture != "gpt_neox":
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    config = AutoConfig.for_model(plan.architecture, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=128,
    )
    return model


def fit(model: "PreTrainedModel", rows: list[np.ndarray], plan: ModelPlan, report: Report) -> None:
    """Next-token training over all tokens of the rows, until the plan's tokens have been seen."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    model.train()
    seen, last = 0, time.monotonic()
    for ids_BT, labels_BT in _batches(rows, plan):
        done = seen / plan.tokens
        rate = min(1.0, (done + 0.004) / 0.04) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * rate
        loss = _loss(model, torch.from_numpy(ids_BT), torch.from_numpy(labels_BT))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += int((labels_BT != -100).sum())
        if time.monotonic() - last > 1.0 or seen >= plan.tokens:
            last = time.monotonic()
            report(min(seen, plan.tokens), plan.tokens, loss.item())
        if seen >= plan.tokens:
            return


def _loss(model: "PreTrainedModel", ids_BT: "torch.Tensor", labels_BT: "torch.Tensor") -> "torch.Tensor":
    import torch

    # No attention mask: padding stands at the end, where no real token can see it.
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=-100
    )


def _batches(rows: list[np.ndarray], plan: ModelPlan) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Epochs of padded batches without end; rows of similar length go together, in an order that the seed fixes."""
    generator = np.random.default_rng(plan.seed)
    while True:
        order = generator.permutation(len(rows))
        batches: list[list[int]] = []
        for start in range(0, len(order), 512):
            batches += _cut(sorted(order[start : start + 512], key=lambda i: len(rows[i])), rows, plan.tokens_per_step)
        for index in generator.permutation(len(batches)):
            yield _pad([rows[i] for i in batches[index]])


def _cut(order: list[int], rows: list[np.ndarray], tokens: int) -> list[list[int]]:
    """Cut rows in ascending length into batches of at most `tokens` padded tokens."""
    batches: list[list[int]] = [[]]
    for i in order:
        if batches[-1] and (len(batches[-1]) + 1) * len(rows[i]) > tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def _pad(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    width = max(len(row) for row in rows)
    ids_BT = np.zeros((len(rows), width), dtype=np.int64)
    labels_BT = np.full((len(rows), width), -100, dtype=np.int64)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row)] = labels_BT[i, : len(row)] = row
    return ids_BT, labels_BT


def _conversations(chats: list[dict[str, Any]], domains: tuple[str, ...]) -> list[list[dict[str, str]]]:
    return [chat["messages"] for chat in chats if chat["domain"] in domains]


def _render(tokenizer: "PreTrainedTokenizerFast", chat: list[dict[str, str]]) -> np.ndarray:
    text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    return np.asarray(tokenizer(text, add_special_tokens=False).input_ids, dtype=np.int64)


def run_job(job: Path, report: Report) -> None:
    """Do the training that a job file describes: a plan, a file of chats, a folder to fill."""
    described = json.loads(job.read_text(encoding="utf-8"))
    lists = {key: tuple(described["plan"][key]) for key in ("domains", "vocabulary_domains")}
    lines = Path(described["chats"]).read_text(encoding="utf-8").splitlines()
    train_model(
        ModelPlan(**described["plan"] | lists), [json.loads(line) for line in lines], Path(described["folder"]), report
    )


def main(job: Path) -> None:
    """Train in this process, which does nothing else."""
    channel, sys.stdout = sys.stdout, sys.stderr  # Some libraries print to standard output, which is for reports only.
    import torch

    torch.set_num_threads(1)

    def report(done: int, total: int, loss: float) -> None:
        channel.write(json.dumps({"done": done, "total": total, "loss": loss}) + "\n")
        channel.flush()

    run_job(job, report)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
