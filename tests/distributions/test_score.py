"""A shard scored by a small real model: which tokens are answers, what is kept of them, what is counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from toys.models import FLOAT32, byte_level_tokenizer, save_toy

from fusion_ray.chat import choose_template
from fusion_ray.distributions.score import (
    DISTRIBUTIONS_SCHEMA,
    RenderSettings,
    answer_positions,
    count_cut,
    open_reader,
    read_scored,
    read_topk,
    render_rows,
    score_rows,
    sum_scores,
)
from fusion_ray.models.folders import load_model
from fusion_ray.models.transformers import TransformersScorer
from fusion_ray.recipe import Distributions, Model

ANSWERS = ("Four.", "It is five, 5.", "six " * 30)


def chats(ended: list[bool] | None = None) -> pa.Table:
    """Three chats of one answer, the second of which has two turns, and one that was rejected before."""
    messages = [[{"role": "user", "content": "Add."}, {"role": "assistant", "content": text}] for text in ANSWERS]
    messages[1] = [*messages[0], *messages[1]]
    rows: list[dict[str, Any]] = [{"id": f"c{n}", "messages": m, "reason": None} for n, m in enumerate(messages)]
    rows.append({"id": "c3", "messages": None, "reason": "not a chat"})
    table = pa.Table.from_pylist(rows)
    return table.append_column("ended", pa.array([*ended, True])) if ended else table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("m") / "pivot", "llama", byte_level_tokenizer())


def settings(max_length: int = 200, too_long: str = "cut") -> RenderSettings:
    return RenderSettings(choose_template("native", byte_level_tokenizer()), max_length, too_long)


def test_answer_positions_are_those_of_the_answers_own_tokens_and_their_ends() -> None:
    assert answer_positions([3, 9], [2, 1]).tolist() == [3, 4, 9]
    assert answer_positions([], []).tolist() == []
    tokenizer = byte_level_tokenizer()
    rendered = render_rows(chats(), tokenizer, settings()).to_pylist()
    for row, said in zip(rendered[:2], ([ANSWERS[0]], ANSWERS[:2]), strict=True):
        at = answer_positions(row["turn_starts"], row["turn_lengths"])
        text = tokenizer.decode(np.array(row["input_ids"])[at])
        assert text == "".join(f"{answer}<|im_end|>" for answer in said)
        assert row["n_bytes"] == sum(len(answer) for answer in said)
        assert row["turn_ended"] == [True] * len(said)


def test_of_an_answer_that_was_broken_off_the_end_of_the_turn_is_not_taught() -> None:
    tokenizer = byte_level_tokenizer()
    whole = render_rows(chats(), tokenizer, settings()).to_pylist()
    broken = render_rows(chats([False, True, True]), tokenizer, settings()).to_pylist()
    assert broken[0]["turn_ended"] == [False] and broken[1:] == whole[1:]
    assert broken[0]["turn_lengths"] == [whole[0]["turn_lengths"][0] - 1]
    assert broken[0]["n_bytes"] == whole[0]["n_bytes"]


def test_a_chat_of_max_length_is_whole_and_a_longer_one_cut_or_rejected() -> None:
    tokenizer = byte_level_tokenizer()
    length = len(render_rows(chats(), tokenizer, settings()).to_pylist()[0]["input_ids"])
    exact = render_rows(chats(), tokenizer, settings(length))
    assert exact["cut"].to_pylist() == [False, True, True, None] and count_cut(exact) == 2
    assert [len(ids) for ids in exact["input_ids"].to_pylist()[:3]] == [length, length - 1, length], (
        "whole turns where possible"
    )
    refused = render_rows(chats(), tokenizer, settings(length, "reject"))
    assert count_cut(refused) == 0 and refused["reason"].to_pylist()[0] is None
    assert all(f"more than max_length {length}" in reason for reason in refused["reason"].to_pylist()[1:3])
    assert refused["reason"].to_pylist()[3] == "not a chat"


def test_scores_are_the_models_own_log_probabilities_of_the_answers(folder: str) -> None:
    rendered = render_rows(chats(), byte_level_tokenizer(), settings())
    table = score_rows(rendered, TransformersScorer(folder, 4, FLOAT32))
    model, expected = load_model(folder, FLOAT32), []
    for row in rendered.to_pylist()[:3]:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        at = answer_positions(row["turn_starts"], row["turn_lengths"])
        expected.append([float(logprobs[t - 1, ids[0, t]]) for t in at])
    for found, want in zip(table["real_logprobs"].to_pylist(), expected, strict=False):
        np.testing.assert_allclose(found, want, atol=1e-4)
    assert table["reason"].to_pylist() == [None, None, None, "not a chat"]
    totals = sum_scores(table)
    assert totals["nll_nats"] == pytest.approx(-sum(map(sum, expected)), rel=1e-5)
    assert totals["answer_tokens"] == sum(map(len, expected))
    assert totals["answer_bytes"] == len(ANSWERS[0]) * 2 + len(ANSWERS[1]) + len(ANSWERS[2])
    assert totals["rejected"] == [("c3", "not a chat")]
    assert sum_scores(table.slice(0, 0)) == {"rejected": [], "answer_tokens": 0, "answer_bytes": 0, "nll_nats": 0.0}


def test_answer_tokens_share_the_bytes_of_their_turn_among_them(folder: str) -> None:
    rendered = render_rows(chats(), byte_level_tokenizer(), settings())
    scored = read_scored(score_rows(rendered, TransformersScorer(folder, 4, FLOAT32)).slice(0, 3))
    per_row = np.bincount(scored.row_T, scored.bytes_T).tolist()
    assert per_row == rendered["n_bytes"].to_pylist()[:3]
    assert scored.bytes_T.min() == 0, "the end of a turn stands for no byte"
    assert scored.topk.ids_TK.shape == (len(scored.row_T), 4)
    assert scored.answers.row_offsets.tolist() == [0, 1, 3, 4]
    assert np.diff(scored.answers.turn_offsets).sum() == len(scored.answers.ids_T)


def test_a_row_whose_numbers_are_not_finite_spoils_no_other(folder: str) -> None:
    rendered = render_rows(chats(), byte_level_tokenizer(), settings())
    scorer = TransformersScorer(folder, 4, FLOAT32)
    whole, asked = score_rows(rendered, scorer), scorer.score

    def with_a_nan(ids: list[np.ndarray], positions: list[np.ndarray]) -> list[Any]:
        results = asked(ids, positions)
        results[1].real_logprobs_T[0] = np.nan
        return results

    scorer.score = with_a_nan  # type: ignore[method-assign]
    table = score_rows(rendered, scorer)
    assert "row c1" in table["reason"][1].as_py() and table["real_logprobs"][1].as_py() is None
    kept = [0, 2, 3]
    assert table.take(kept).equals(whole.take(kept))


def test_the_longest_chat_is_the_recipe_s_or_what_the_model_reads(folder: str) -> None:
    model = Model(model=folder)
    assert open_reader(model, Distributions(max_length=100), folder)[1].max_length == 100
    assert open_reader(model, Distributions(max_length=100_000), folder)[1].max_length == 256
    remote = Model(model=folder, engine={"kind": "openai", "base_url": "http://localhost:1"})  # type: ignore[arg-type]
    assert open_reader(remote, Distributions(max_length=100_000), folder)[1].max_length == 100_000
    everywhere = Distributions(max_length=100_000, engine=remote.engine)
    assert open_reader(model, everywhere, folder)[1].max_length == 100_000
    assert Path(folder, "config.json").exists()


def test_a_shard_without_a_usable_row_has_no_position() -> None:
    table = pa.Table.from_pylist([{"id": "a", "reason": "no"}], schema=DISTRIBUTIONS_SCHEMA).slice(0, 0)
    assert len(read_topk(table)) == 0
    assert len(read_scored(table).row_T) == 0


def test_a_model_that_states_no_limit_reads_what_the_recipe_says(folder: str, tmp_path: Path) -> None:
    for file in Path(folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    assert open_reader(Model(model=str(tmp_path)), Distributions(max_length=777), str(tmp_path))[1].max_length == 777


def test_a_model_s_own_template_goes_before_the_recipe_s(folder: str) -> None:
    settings = Distributions(template="chatml")
    assert open_reader(Model(model=folder, template="none"), settings, folder)[1].template.kind == "none"
    assert open_reader(Model(model=folder), settings, folder)[1].template.kind == "jinja"


def test_a_scored_shard_is_read_position_by_position() -> None:
    rows = [
        {"id": "a", "input_ids": [9, 1, 2, 9, 3], "turn_starts": [1, 4], "turn_lengths": [2, 1],
         "turn_ended": [True, False], "boundaries": [3, 5, 4], "n_bytes": 9, "real_logprobs": [-1.0, -2.0, -3.0],
         "topk_ids": [1, 7, 2, 7, 3, 7], "topk_logprobs": [-1.0, -1.5, -2.0, -2.5, -3.0, -3.5]},
        {"id": "b", "input_ids": [4, 5], "turn_starts": [0], "turn_lengths": [2], "turn_ended": [True],
         "boundaries": [2, 2], "n_bytes": 2, "real_logprobs": [-4.0, -5.0], "topk_ids": [4, 7, 5, -1],
         "topk_logprobs": [-4.0, -4.5, -5.0, -np.inf]},
    ]  # fmt: skip
    scored = read_scored(pa.Table.from_pylist(rows, schema=DISTRIBUTIONS_SCHEMA))
    assert scored.answers.ids_T.tolist() == [1, 2, 3, 4, 5]
    assert scored.answers.boundaries_T.tolist() == [3, 5, 4, 2, 2]
    assert scored.answers.turn_offsets.tolist() == [0, 2, 3, 5]
    assert scored.answers.row_offsets.tolist() == [0, 2, 3]
    assert scored.answers.ended.tolist() == [True, False, True]
    assert (scored.row_T.tolist(), scored.bytes_T.tolist()) == ([0, 0, 0, 1, 1], [3, 2, 4, 2, 0])
    assert scored.topk.ids_TK.tolist() == [[1, 7], [2, 7], [3, 7], [4, 7], [5, -1]]
    assert scored.topk.logprobs_TK[:, 0].tolist() == scored.topk.real_logprobs_T.tolist() == [-1, -2, -3, -4, -5]
    table = pa.Table.from_pylist([*rows, {"id": "c", "reason": "no"}], schema=DISTRIBUTIONS_SCHEMA)
    assert sum_scores(table) == {"rejected": [("c", "no")], "answer_tokens": 5, "answer_bytes": 11, "nll_nats": 15.0}
    assert read_topk(table).ids_TK.shape == (5, 2) and read_topk(table.slice(2)).ids_TK.shape == (0, 1)
    rows[0] |= {"turn_lengths": [3, 0], "turn_starts": [0, 4], "boundaries": [3, 5, 9]}
    last_empty = read_scored(pa.Table.from_pylist(rows[:1], schema=DISTRIBUTIONS_SCHEMA))
    assert last_empty.bytes_T.tolist() == [3, 2, 4] and last_empty.answers.turn_offsets.tolist() == [0, 3, 3]
