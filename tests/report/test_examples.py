"""Sample prompts, greedy answers, and what becomes of shards that do not belong together."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from toys.models import byte_level_tokenizer, save_toy
from toys.report import EVIL, make_heldout

from fusion_ray.chat import choose_template
from fusion_ray.corpus.row_formats import CORPUS_SCHEMA
from fusion_ray.distributions.score import DISTRIBUTIONS_SCHEMA, RenderSettings, render_rows
from fusion_ray.errors import ArtifactError, CorruptArtifactError
from fusion_ray.models.folders import load_model
from fusion_ray.models.transformers import TransformersGenerator
from fusion_ray.report.heldout import compare_shard, join_shards
from fusion_ray.report.numbers import measure
from fusion_ray.report.samples import make_prompt, pick_documents


def _chats(*messages: list[dict[str, str]]) -> pa.Table:
    rows = [{"id": f"r{i}", "domain": "d", "messages": found, "reason": None} for i, found in enumerate(messages)]
    return pa.Table.from_pylist(rows, schema=CORPUS_SCHEMA)


def _rendered(chats: pa.Table) -> pa.Table:
    tokenizer = byte_level_tokenizer()
    return render_rows(chats, tokenizer, RenderSettings(choose_template("native", tokenizer), 200, "cut"))


def _scored(chats: pa.Table, logprob: float = -1.0) -> pa.Table:
    rows: list[dict[str, Any]] = _rendered(chats).to_pylist()
    for row in rows:
        n = sum(row["turn_lengths"])
        row |= {"real_logprobs": [logprob] * n, "topk_ids": [0] * n, "topk_logprobs": [logprob] * n}
    return pa.Table.from_pylist(rows, schema=DISTRIBUTIONS_SCHEMA)


TWO_TURNS = [
    {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"}, {"role": "assistant", "content": "four and more"},
]  # fmt: skip
TEXT = [{"role": "text", "content": "A text without any turns, all of it answer."}]


def test_a_prompt_is_all_that_comes_before_the_last_answer() -> None:
    chats = _chats(TEXT, TWO_TURNS)
    prompt = make_prompt(chats, _rendered(chats), 1)
    assert prompt.messages == TWO_TURNS[:3]
    assert prompt.gold == "four and more"
    tokenizer = byte_level_tokenizer()
    text = tokenizer.decode(prompt.input_ids)
    assert text.endswith("<|im_start|>assistant\n")
    assert prompt.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_of_plain_text_the_first_half_is_the_prompt() -> None:
    chats = _chats(TEXT)
    prompt = make_prompt(chats, _rendered(chats), 0)
    shown = prompt.messages[0]["content"]
    assert shown + prompt.gold == TEXT[0]["content"]
    assert 0 < len(shown) < len(TEXT[0]["content"])
    assert byte_level_tokenizer().decode(prompt.input_ids[1:]) == shown


def test_documents_are_picked_from_all_domains_in_turn_and_by_seed() -> None:
    heldout = make_heldout()
    picked = pick_documents(heldout, 4, seed=1)
    domains = [heldout.scores.domains_N[heldout.ids.index(identity)] for identity in picked]
    assert sorted(domains) == sorted([EVIL, "code"] * 2)
    assert picked == pick_documents(heldout, 4, seed=1)
    assert picked != pick_documents(heldout, 4, seed=2)


def test_greedy_answers_are_the_most_probable_tokens_one_by_one(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    folder = save_toy(tmp_path / "m", "llama", tokenizer, extra_rows=0)
    ids = np.array(tokenizer("What is 2 squared?").input_ids)
    (text,) = TransformersGenerator(folder).generate([ids], max_tokens=5, end_ids=[])
    model = load_model(folder)
    grown = ids.tolist()
    for _ in range(5):
        grown.append(int(model(torch.tensor([grown])).logits[0, -1].argmax()))
    assert text == tokenizer.decode(grown[len(ids) :], skip_special_tokens=True)


def test_rows_that_a_model_could_not_score_are_left_out_for_all() -> None:
    chats = _chats(TWO_TURNS, TEXT)
    broken = _scored(chats).to_pylist()
    broken[1] = {"id": "r1", "reason": "not finite"}
    tables = {"pivot": _scored(chats, -2.0), "merged": pa.Table.from_pylist(broken, schema=DISTRIBUTIONS_SCHEMA)}
    heldout = join_shards(tables, [compare_shard(chats, tables)])
    assert heldout.ids == ("r0",)
    assert heldout.places == ((0, 0),)
    assert heldout.left_out == {"r1": "merged: not finite"}
    assert heldout.scores.row("pivot") == pytest.approx(2 * heldout.scores.row("merged"))
    assert heldout.scores.bytes_N.tolist() == [len("two") + len("four and more")]


def test_a_run_without_held_out_chats_says_what_to_raise() -> None:
    with pytest.raises(ArtifactError, match=r"held-out split is empty.*Raise corpus.heldout"):
        measure(join_shards(["pivot", "merged"], []), 100, 0)


def test_scores_of_other_rows_are_refused() -> None:
    chats = _chats(TWO_TURNS, TEXT)
    other = _scored(chats).take([1, 0])
    with pytest.raises(CorruptArtifactError, match="row 0: the corpus has 'r0', the scores of pivot have 'r1'"):
        compare_shard(chats, {"pivot": other})
