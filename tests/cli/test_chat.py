"""Talking to a model in the terminal: where an answer ends, and what an empty line does."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from toys.models import byte_level_tokenizer, save_toy

from fusion_ray.cli import chat as chat_module
from fusion_ray.models.folders import end_tokens, load_model, load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_toy(tmp_path_factory.mktemp("chat") / "m", "llama", byte_level_tokenizer(), extra_rows=0))


def talk(folder: Path, lines: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model says to each line."""
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    monkeypatch.setattr(chat_module, "out", Console(file=io.StringIO()))
    chat_module.chat(str(folder), max_tokens=5, temperature=0.0)
    return [line for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_an_empty_line_begins_anew_and_each_line_is_answered_after_those_before(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    once = talk(folder, "Hi\n", capsys, monkeypatch)
    assert once
    twice = talk(folder, "Hi\n\nHi\n", capsys, monkeypatch)
    assert twice == once * 2


def test_an_answer_ends_where_any_of_the_model_s_settings_ends_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    everything = list(range(len(byte_level_tokenizer())))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": everything}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    whole, cut = ("".join(talk(place, "Hi\n", capsys, monkeypatch)) for place in (folder, tmp_path))
    assert whole.startswith(cut) and len(cut) < len(whole)


def answer(folder: Path, *messages: str) -> str:
    """What the model says after some messages, user and assistant in turns, most probable token by token."""
    tokenizer, network = load_tokenizer(str(folder)), load_model(str(folder))
    chat = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(messages)]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    ends = end_tokens(str(folder), tokenizer)
    made: list[int] = []
    while len(made) < 5 and not ends & set(made):
        made.append(int(network(torch.cat([ids, torch.tensor([made], dtype=torch.long)], 1)).logits[0, -1].argmax()))
    return str(tokenizer.decode(made, skip_special_tokens=True))


def test_each_answer_follows_from_all_that_was_said_and_from_nothing_else(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = answer(folder, "Hi")
    second = answer(folder, "Hi", first, "Ho")
    third = answer(folder, "Hi", first, "Ho", second, "He")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\nHo\nHe\n"))
    monkeypatch.setattr(chat_module, "out", Console(file=io.StringIO()))
    chat_module.chat(str(folder), max_tokens=5, temperature=0.0)
    said = "".join(capsys.readouterr().out.split())
    assert said == "".join((first + second + third).split()) and len({first, second, third}) > 1


def test_with_a_temperature_answers_are_drawn(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, found = "Hi\n\n" * 4, []
    for temperature in (0.0, 1.5):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        monkeypatch.setattr(chat_module, "out", Console(file=io.StringIO()))
        chat_module.chat(str(folder), max_tokens=5, temperature=temperature)
        said = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
        found.append(len(set(said)))
    assert found[0] == 1 < found[1]
