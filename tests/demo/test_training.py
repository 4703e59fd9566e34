"""Training one of the demo's models."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_ray.demo import training
from fusion_ray.demo.chats import Texts, all_chats
from fusion_ray.demo.plans import TINY, ModelPlan
from fusion_ray.demo.training import _batches, _cut, _loss, _pad, build_model, fit, train_model
from fusion_ray.demo.vocabularies import STYLES, TRAINERS, as_hugging_face

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


class OneBias(torch.nn.Module):
    """Says the same everywhere, and remembers what it said whenever it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(4))
        self.asked: list[float] = []

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        self.asked.append(self.bias[1].item())
        return SimpleNamespace(logits=self.bias.expand(*input_ids.shape, 4))


def test_the_learning_rate_rises_over_four_percent_and_falls_to_a_fiftieth_by_a_cosine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=itertools.count(0.0, 0.6).__next__))
    model, told = OneBias(), []
    plan = replace(TINY.models[0], tokens=1_000, tokens_per_step=10, learning_rate=1e-4)
    fit(model, [np.ones(10, dtype=np.int64)] * 7, plan, lambda *seen: told.append(seen))  # type: ignore[arg-type]
    assert len(model.asked) == 100
    # Adam moves a weight by the learning rate in each update, as long as its gradient stays the same.
    moved = np.diff([*model.asked, model.bias[1].item()]) / 1e-4
    done = np.arange(100) / 100
    rate = np.minimum(1, (done + 0.004) / 0.04) * (0.02 + 0.49 * (1 + np.cos(math.pi * done)))
    assert moved == pytest.approx(rate, rel=0.01)
    assert (moved[0], moved[4], moved[50]) == pytest.approx((0.1, 0.996, 0.51), rel=0.02)
    # Told once more than a second has passed, which here is every second update, and at the end.
    assert [seen for seen, _, _ in told] == [*range(20, 1_000, 20), 1_000]
    assert {total for _, total, _ in told} == {1_000}
    assert told[0][2] == pytest.approx(math.log(4), rel=0.01)


def test_no_more_is_told_than_is_to_be_seen() -> None:
    told: list[Any] = []
    plan = replace(TINY.models[0], tokens=15, tokens_per_step=10)
    fit(OneBias(), [np.ones(10, dtype=np.int64)], plan, lambda *seen: told.append(seen[:2]))  # type: ignore[arg-type]
    assert told[-1] == (15, 15)


def test_the_loss_is_of_each_token_by_those_before_it_without_padding() -> None:
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [5.0, 5.0]], [[1.0, 0.0], [3.0, 1.0], [0.0, 9.0]]])
    labels = torch.tensor([[0, 1, 0], [1, 1, -100]])
    model = lambda input_ids, use_cache: SimpleNamespace(logits=logits)  # type: ignore[assignment]  # noqa: ARG005, E731
    chances = torch.log_softmax(logits, -1)
    expected = -(chances[0, 0, 1] + chances[0, 1, 0] + chances[1, 0, 1]) / 3
    assert _loss(model, labels, labels).item() == pytest.approx(expected.item())  # type: ignore[arg-type]


def test_rows_of_like_length_go_together_within_each_five_hundred_and_twelve() -> None:
    rows = [np.full(3 + n % 50, 1 + n, dtype=np.int64) for n in range(1_100)]
    plan = replace(TINY.models[0], tokens_per_step=200, seed=3)

    padding: list[int] = []

    def epoch(plan: ModelPlan) -> list[int]:
        seen: list[int] = []
        for ids_BT, labels_BT in _batches(rows, plan):
            assert ids_BT.size <= 200
            padding.append(int((labels_BT == -100).sum()))
            seen += (ids_BT[:, 0] - 1).tolist()
            if len(seen) == len(rows):
                break
        return seen

    first = epoch(plan)
    assert sorted(first) == list(range(1_100))
    assert sum(padding) < 0.05 * sum(map(len, rows))
    assert first == epoch(plan) != epoch(replace(plan, seed=4))


@pytest.mark.parametrize("plan", TINY.models, ids=lambda plan: plan.name)
def test_a_model_has_the_shape_of_its_plan(plan: ModelPlan) -> None:
    style = STYLES[plan.style]
    tokenizer = as_hugging_face(TRAINERS["byte_bpe"](["the cat sat on the mat"] * 3, 300, style), style)
    model = build_model(plan, tokenizer)
    config, neox = model.config, plan.architecture == "gpt_neox"
    assert (config.model_type, config.vocab_size, config.hidden_size) == (plan.architecture, len(tokenizer), 64)
    assert config.intermediate_size == (256 if neox else 192)
    assert (config.num_hidden_layers, config.num_attention_heads) == (2, 2)
    assert config.max_position_embeddings == 256
    assert config.tie_word_embeddings is not neox
    assert neox or config.num_key_value_heads == 2
    own = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == own
    made = model.generation_config
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id, made.max_new_tokens) == (*own, 128)


def test_a_model_learns_from_its_own_domains_and_its_words_may_come_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def see_texts(texts: list[str], size: int, style: Any) -> Any:
        given["texts"] = list(texts)
        return TRAINERS["byte_bpe"](given["texts"], size, style)

    monkeypatch.setitem(TRAINERS, "seen", see_texts)
    monkeypatch.setattr(training, "fit", lambda _model, rows, *_: given.update(rows=rows))
    chats = [
        {"domain": name, "messages": [{"role": "user", "content": name}, {"role": "assistant", "content": "x" * n}]}
        for name, n in (("code", 5), ("law", 3), ("art", 900))
    ]
    plan = replace(TINY.models[0], vocabulary="seen", domains=("code", "art"), max_length=40)
    for words, expected in (((), "code art"), (("law",), "law")):
        train_model(replace(plan, vocabulary_domains=words), chats, tmp_path, lambda *_: None)
        names = expected.split()
        texts = [text for name in names for text in (name, "x" * {"code": 5, "law": 3, "art": 900}[name])]
        assert given["texts"] == texts + ["user\n", "assistant\n"] * len(names)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        first, second = given["rows"]
        assert tokenizer.decode(first).startswith("<|im_start|>user\ncode<|im_end|>\n<|im_start|>assistant\nxxxxx")
        assert len(second) <= 40 and first.dtype == np.int64
