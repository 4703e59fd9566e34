"""Talking to a model in the terminal: where an answer ends, and what an empty line does."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from toys.models import byte_level_tokenizer, save_toy

from fusion_ray.cli import chat as chat_module


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
