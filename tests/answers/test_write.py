"""Answering anew: which chats, what is asked, what is drawn from the model, and what of it is kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from toys.fused import scored_shard
from toys.models import FLOAT32, byte_level_tokenizer, save_toy, sentencepiece_tokenizer

from fusion_ray.answers.write import _Wanted, answer_anew
from fusion_ray.chat import choose_template
from fusion_ray.corpus.row_formats import ANSWERS_SCHEMA
from fusion_ray.distributions.mince import best_known
from fusion_ray.distributions.score import DISTRIBUTIONS_SCHEMA, open_reader, render_rows, score_rows
from fusion_ray.errors import EngineError, RecipeError
from fusion_ray.fused.fuse import Fuser
from fusion_ray.models.folders import end_tokens, load_model, load_tokenizer
from fusion_ray.models.generator import Completion, DecodingOptions, Generator
from fusion_ray.models.transformers import TransformersGenerator, TransformersScorer, _drawing
from fusion_ray.recipe import Answers, Distributions, Fused, Model, parse_recipe


def test_a_source_knows_best_what_it_alone_fits_best_byte_for_byte() -> None:
    tables = {
        "pivot": scored_shard(([-4.0], 4), ([-1.0, -1.0], 4), ([-4.0], 4), None, ([float("nan")], 4), None),
        "one": scored_shard(([-3.0], 4), ([-1.0, -1.0], 4), ([-3.0], 4), ([-1.0], 4), ([-9.0], 4), None),
        "two": scored_shard(([-3.5], 4), ([-4.0], 4), ([-1.0, -1.0], 2), None, ([-9.0], 2), None),
    }
    assert best_known(tables, "one").tolist() == [0, 2, 3, 4]
    assert best_known(tables, "two").tolist() == []
    assert best_known(tables, "pivot").tolist() == [1]
    assert best_known({"pivot": scored_shard(), "one": scored_shard()}, "one").tolist() == []


# --- what is drawn ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("answers") / "m", "llama", byte_level_tokenizer(), extra_rows=40)


def draw(folder: str, prompts: list[list[int]], seeds: list[int], **more: Any) -> list[Completion]:
    settings: dict[str, Any] = {"max_tokens": 1, "end_ids": [], "temperature": 1.0} | more
    ids = [np.array(prompt, dtype=np.int32) for prompt in prompts]
    return TransformersGenerator(folder, engine=FLOAT32).sample(ids, seeds=seeds, **settings)


def test_what_is_drawn_is_distributed_as_the_model_says_and_never_a_padding_row(folder: str) -> None:
    generator, prompt, n = TransformersGenerator(folder, engine=FLOAT32), [3, 5, 7], 3000
    drawn = generator._continue(  # type: ignore[attr-defined]
        [np.array(prompt)] * n, 1, [], _drawing(0.5, list(range(n)), len(byte_level_tokenizer()))
    )[:, 0]
    size = len(byte_level_tokenizer())
    with torch.no_grad():
        logits = load_model(folder, FLOAT32)(torch.tensor([prompt])).logits[0, -1]
    assert len(logits) > size > drawn.max()
    expected = torch.softmax(logits[:size] / 0.5, -1).double().numpy()
    found = np.bincount(drawn, minlength=size) / n
    spread = np.sqrt(expected * (1 - expected) / n)
    assert np.abs(found - expected).max() < 5 * spread.max()
    likely = expected > 20 / n
    assert likely.sum() >= 3
    assert np.all(np.abs(found - expected)[likely] < 5 * spread[likely])


def test_what_is_drawn_for_a_prompt_does_not_depend_on_the_others(folder: str) -> None:
    prompts = [[3, 5, 7], [9, 2], [3, 5, 8], [4, 4, 4], [8] * 40, [7]]
    everything = list(range(len(byte_level_tokenizer())))
    settings: dict[str, Any] = {"max_tokens": 6, "end_ids": everything[::6]}
    alone = [draw(folder, [prompt], [seed], **settings)[0] for seed, prompt in enumerate(prompts)]
    assert draw(folder, prompts, [0, 1, 2, 3, 4, 5], **settings) == alone
    assert any(written.ended for written in alone) and not all(written.ended for written in alone)


def groups(folder: str, lengths: list[int], max_length: int) -> list[list[int]]:
    generator = TransformersGenerator(folder, max_length, engine=FLOAT32)
    return list(generator._together([np.zeros(length, dtype=np.int32) for length in lengths], 6))


def test_prompts_of_all_lengths_are_continued_together_but_for_those_with_less_room(folder: str) -> None:
    assert groups(folder, [3, 10, 2, 17, 18, 17, 14], 20) == [[2, 0, 1, 6], [3, 5], [4]]
    assert [len(found) for found in groups(folder, [94] * 100, 200)] == [81, 19]  # 8,192 tokens and no more.
    prompts = [np.array(prompt, dtype=np.int32) for prompt in ([3, 5], [4] * 17, [6] * 18)]
    settings: dict[str, Any] = {"end_ids": [], "temperature": 1.0, "seeds": [0, 1, 2]}
    generator = TransformersGenerator(folder, 20, engine=FLOAT32)
    limited = generator.sample(prompts, max_tokens=6, **settings)
    for row, room in enumerate((6, 3, 2)):
        free = TransformersGenerator(folder, engine=FLOAT32).sample(prompts, max_tokens=room, **settings)
        assert limited[row] == free[row]


def test_the_output_head_is_given_no_slice_for_which_torch_would_copy_it(folder: str) -> None:
    generator, seen = TransformersGenerator(folder, engine=FLOAT32), []
    head = generator._model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    prompts = [np.array([3, 5, 7], dtype=np.int32)] * 2
    generator.sample(prompts, max_tokens=2, end_ids=[], temperature=1.0, seeds=[0, 1])
    assert seen and all(seen)


def test_a_model_that_reads_padding_as_text_gets_prompts_of_one_length(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, RecurrentGemmaConfig

    torch.manual_seed(0)
    config = RecurrentGemmaConfig(
        vocab_size=len(byte_level_tokenizer()), hidden_size=32, lru_width=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=48, block_types=["recurrent", "attention"], attention_window_size=32,
    )  # fmt: skip
    folder = str(tmp_path)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    assert groups(folder, [3, 2, 3], 20) == [[1], [0, 2]]


def test_an_answer_that_does_not_end_says_so_and_one_that_ends_stops_there(folder: str) -> None:
    everything = list(range(len(byte_level_tokenizer())))
    whole = draw(folder, [[3, 5], [4, 6]], [0, 1], max_tokens=3)
    assert [written.ended for written in whole] == [False, False]
    assert draw(folder, [[3, 5], [4, 6]], [0, 1], max_tokens=3, end_ids=everything) == [Completion("", True)] * 2
    (long,) = draw(folder, [[3, 5]], [0], max_tokens=9, end_ids=[])
    assert whole[0].text and long.text.startswith(whole[0].text)


def test_what_is_written_does_not_depend_on_the_models_own_generation_config(folder: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    own = {"repetition_penalty": 5.0, "suppress_tokens": list(range(100))}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(own))
    for settings in ({"max_tokens": 9}, {"max_tokens": 9, "temperature": 0.1, "end_ids": [2]}):
        assert draw(str(tmp_path / "m"), [[3, 5, 7], [4]], [0, 1], **settings) == draw(
            folder, [[3, 5, 7], [4]], [0, 1], **settings
        )
    greedy = [
        TransformersGenerator(place, engine=FLOAT32).generate([np.array([3, 5, 7])], max_tokens=9, end_ids=[])
        for place in (folder, str(tmp_path / "m"))
    ]
    assert greedy[0] == greedy[1]


def test_an_answer_ends_where_the_model_itself_ends_a_text_whatever_the_template_says(
    folder: str, tmp_path: Path
) -> None:
    (whole,) = draw(folder, [[3, 5, 7]], [0], max_tokens=9, end_ids=[])
    assert not whole.ended
    shutil.copytree(folder, tmp_path / "m")
    ids = byte_level_tokenizer().encode(whole.text, add_special_tokens=False)
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": [ids[4], 10**6]}))
    (cut,) = draw(str(tmp_path / "m"), [[3, 5, 7]], [0], max_tokens=9, end_ids=[])
    assert cut.ended and whole.text.startswith(cut.text) and len(cut.text) < len(whole.text)


def test_the_end_tokens_of_a_model_are_those_of_all_of_its_settings(folder: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "text_config": {"eos_token_id": [8, 9]}}))
    assert end_tokens(str(tmp_path), tokenizer) == {7, 8, 9, tokenizer.eos_token_id} - {None}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [11, 7]}))
    assert end_tokens(str(tmp_path), tokenizer) == {7, 8, 9, 11, tokenizer.eos_token_id} - {None}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(EngineError, match=r"generation_config\.json: not valid JSON"):
        end_tokens(str(tmp_path), tokenizer)


# --- what is asked and kept --------------------------------------------------------------------------------------


class Scripted(Generator):
    """A generator that says what it is told to, and remembers what it was asked."""

    max_length = 200

    def __init__(self, *written: Completion) -> None:
        self.written, self.asked = list(written), []  # type: ignore[var-annotated]

    def _write(self, prompts: Any, how: DecodingOptions) -> list[Completion]:
        self.asked.append((list(prompts), how._asdict()))
        return self.written

    def close(self) -> None:
        pass


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_one_answer_of_a_chat_is_given_anew_and_what_cannot_be_used_is_counted() -> None:
    chats = [
        {"id": "a", "domain": "x", "messages": [user("One?"), assistant("1"), user("Two?"), assistant("2")]},
        {"id": "b", "domain": "y", "messages": [{"role": "text", "content": "plain"}]},
        {"id": "c", "domain": "y", "messages": [user("o " * 400), assistant("1")]},
        {"id": "d", "domain": "y", "messages": [assistant("I speak first")]},
        {"id": "e", "domain": "y", "messages": [user("E?"), assistant("e")]},
    ]
    said = [Completion(" new ", True), Completion(" on and on\N{REPLACEMENT CHARACTER}", False)]
    tokenizer, generator = byte_level_tokenizer(), Scripted(*said, Completion("  ", True), Completion("again", True))
    template = choose_template("native", tokenizer)
    settings = Answers(per_chat=2, max_tokens=7, temperature=0.9)
    rows, counts = answer_anew(chats, tokenizer, template, generator, settings, 0)
    assert counts == {"asked": 6, "unaskable": 2, "unfinished": 1, "empty": 1}
    assert [(row["id"], row["domain"], row["messages"][-1], row["ended"]) for row in rows] == [
        ("a#0", "x", assistant("new"), True),
        ("a#1", "x", assistant("on and on"), False),
        ("e#1", "y", assistant("again"), True),
    ]
    assert rows[0]["messages"][:-1] in (chats[0]["messages"][:1], chats[0]["messages"][:3])
    ((prompts, more),) = generator.asked
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in rows[0]["messages"][:-1])
    assert tokenizer.decode(prompts[0]) == text + "<|im_start|>assistant\n"
    assert len(set(more["seeds"])) == 4
    assert (more["max_tokens"], more["temperature"]) == (7, 0.9)
    assert more["end_ids"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    others = answer_anew(chats, tokenizer, template, again := Scripted(*generator.written), settings, 1)
    assert again.asked[0][1]["seeds"] != more["seeds"] and others[1] == counts
    dropping = settings.model_copy(update={"unfinished": "drop"})
    fewer, same = answer_anew(chats, tokenizer, template, generator, dropping, 0)
    assert (fewer, same) == ([row for row in rows if row["ended"]], counts)


def test_nothing_to_answer_asks_the_model_nothing() -> None:
    tokenizer, generator = byte_level_tokenizer(), Scripted()
    rows, counts = answer_anew([], tokenizer, choose_template("native", tokenizer), generator, Answers(), 0)
    assert (rows, sum(counts.values()), generator.asked) == ([], 0, [])


# --- fused, and the recipe ---------------------------------------------------------------------------------------


def test_an_answer_s_row_has_its_author_s_number_or_a_reason(tmp_path: Path) -> None:
    folders = {
        "pivot": save_toy(tmp_path / "pivot", "llama", sentencepiece_tokenizer()),
        "other": save_toy(tmp_path / "other", "qwen2", byte_level_tokenizer()),
        "author": save_toy(tmp_path / "author", "gpt_neox", byte_level_tokenizer()),
    }
    texts = ("The answer is 42.", "def f(x):\n    return x + 1", "漢字 🎉", "no", "It was a dark night. " * 4)
    rows = [
        {"id": f"{n}#0", "domain": "d", "messages": [user("Say it."), assistant(text)], "reason": None, "ended": n != 1}
        for n, text in enumerate(texts)
    ]
    chats = pa.Table.from_pylist(rows, schema=ANSWERS_SCHEMA)
    tables = {}
    for name in ("pivot", "author"):
        tokenizer, settings = open_reader(Model(model=folders[name]), Distributions(), folders[name])
        scorer = TransformersScorer(folders[name], 5, FLOAT32)
        tables[name] = score_rows(render_rows(chats, tokenizer, settings), scorer)
        assert [row[-1] for row in tables[name]["turn_ended"].to_pylist()] == [n != 1 for n in range(len(texts))]
    unlikely = tables["author"]["real_logprobs"].to_pylist()
    unlikely[0] = [value - 50 for value in unlikely[0]]
    place = DISTRIBUTIONS_SCHEMA.get_field_index("real_logprobs")
    tables["author"] = tables["author"].set_column(
        place, "real_logprobs", pa.array(unlikely, DISTRIBUTIONS_SCHEMA.field(place).type)
    )
    fuser = Fuser(Fused(), folders)
    table, facts = fuser.fuse_answers(chats, tables)
    found = table.to_pylist()
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert facts["rejected"] == []
    rates = [(row["bits_per_byte"] or [0, 0, 1])[0::2] for row in fuser.fuse(chats, tables).table.to_pylist()]
    assert {rate[0] > rate[1] for rate in rates} == {True, False}
    for row, (pivot, author) in zip(found, rates, strict=True):
        if pivot <= author:
            assert row["reason"] == "the pivot fits it better" and row["chosen"] is None
        else:
            assert row["reason"] is None and set(row["chosen"]) <= {2, -1} and 2 in row["chosen"]
            assert np.isnan(row["bits_per_byte"][1])
    doubting, _ = Fuser(Fused.model_validate({"choose": {"trust": 0.5}}), folders).fuse_answers(chats, tables)
    known = [name for name in table.column_names if name != "bits_per_byte"]  # NaN is not equal to itself.
    assert doubting.select(known).equals(table.select(known))
    empty, _ = fuser.fuse_answers(chats.slice(0, 0), {name: table.slice(0, 0) for name, table in tables.items()})
    assert empty.schema == table.schema and len(empty) == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"answers": {"per_chats": 2}}, "did you mean 'per_chat'"),
        ({"answers": {"temperature": 0}}, "greater than 0"),
        ({"sources": [{"name": "answers", "model": "m"}]}, "the name 'answers' is reserved"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(change: dict[str, Any], expected: str) -> None:
    data = {"name": "x", "pivot": {"model": "p"}, "sources": [{"name": "s", "model": "m"}], "corpus": {"path": "c"}}
    assert parse_recipe(data | {"answers": {}}).answers == Answers()
    with pytest.raises(RecipeError, match=expected):
        parse_recipe(data | change)


def test_a_seed_gives_the_same_places_and_draws_from_version_to_version() -> None:
    """Of numbers made by this program; whoever runs a recipe again is to get the answers that it gave before."""
    turns = [[user(f"Q{n}?"), assistant(f"A{n}")] for n in range(4)]
    chat = {"id": "chat", "domain": "x", "messages": [message for turn in turns for message in turn]}
    wanted = [_Wanted(chat, sample, seed) for seed in (0, 1) for sample in range(4)]
    assert [want.before[-1]["content"] for want in wanted] == ["Q0?", "Q3?", "Q0?", "Q1?", "Q0?", "Q1?", "Q2?", "Q0?"]
    assert [want.seed for want in wanted[:4]] == [1100741552, 45610270, 929799524, 1206105896]
    assert [want.seed for want in wanted[4:]] == [1932821490, 525492182, 933164618, 1803819778]
    assert all(0 <= want.seed < 2**31 for want in wanted)
    assert [want.id for want in wanted[:2]] == ["chat#0", "chat#1"]


def test_an_answer_that_nothing_comes_before_is_never_given_anew() -> None:
    chat = {"id": "chat", "domain": "x", "messages": [assistant("I speak first"), user("Q?"), assistant("A")]}
    assert {len(_Wanted(chat, sample, 0).before) for sample in range(20)} == {2}
