"""Training one of the demo's models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_ray.demo.chats import Texts, all_chats
from fusion_ray.demo.plans import TINY, ModelPlan
from fusion_ray.demo.training import _batches, _cut, _pad, train_model

FEW = Texts(code="[a-c]*.py", packages=("jinja2",), languages=("english",), answer_bytes=(24, 120))


@pytest.mark.parametrize("plan", TINY.models, ids=lambda plan: plan.name)
def test_a_trained_model_is_read_back_with_its_own_tokenizer_and_has_learned(plan: ModelPlan, tmp_path: Path) -> None:
    few = [chat for chat in all_chats(FEW) if chat.domain in plan.domains][:80]
    chats = [{"domain": chat.domain, "messages": chat.messages()} for chat in few]
    losses: list[float] = []
    train_model(replace(plan, tokens=6000), chats, tmp_path, lambda _done, _total, loss: losses.append(loss))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    text = str(tokenizer.apply_chat_template(few[0].messages(), tokenize=False))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    with torch.no_grad():
        nll = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert nll < 0.9 * np.log(len(tokenizer))
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_every_row_is_seen_once_an_epoch_and_padding_is_no_label() -> None:
    rows = [np.full(length, length, dtype=np.int64) for length in range(3, 40)]
    plan = replace(TINY.models[0], tokens_per_step=64)
    seen: list[int] = []
    for ids_BT, labels_BT in _batches(rows, plan):
        assert ids_BT.size <= 64
        assert ((labels_BT == -100) == (ids_BT == 0)).all()
        seen += ids_BT[:, 0].tolist()
        if len(seen) == len(rows):
            break
    assert sorted(seen) == list(range(3, 40))


def test_batches_are_as_full_as_they_may_be_and_padding_is_not_counted_as_seen() -> None:
    rows = [np.full(length, 1, dtype=np.int64) for length in (4, 4, 4, 4, 8, 8)]
    assert _cut([0, 1, 2, 3, 4, 5], rows, 16) == [[0, 1, 2, 3], [4, 5]]
    assert _cut([0, 4], rows, 15) == [[0], [4]]
    ids_BT, labels_BT = _pad([rows[0], rows[4]])
    assert ids_BT.shape == (2, 8) and (labels_BT == -100).sum() == 4 == (ids_BT == 0).sum()
