"""`fusion-ray inspect` as it is printed: answers stand out, and data cannot steer the terminal."""

import json
from pathlib import Path

import pytest
from toys.models import byte_level_tokenizer, save_toy

from fusion_ray.cli import app as cli


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> str:
    model = save_toy(folder / "model", "llama", byte_level_tokenizer())
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel\x1b]0;X\x07lo."}]
    rows = [{"id": "good\x1b[2J", "messages": messages, "tools": [1]}, {"id": "bad", "messages": []}]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["fusion-ray", "inspect", model, str(folder / "chats.jsonl"), "--template", "chatml", *options]
    monkeypatch.setattr("sys.argv", asked)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_answers_stand_between_brackets_where_there_are_no_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = printed(monkeypatch, capsys, tmp_path)
    (answer,) = [line for line in shown.splitlines() if "⟧" in line and "⟦tok" not in line]
    assert answer.split("⟦")[1].replace("|", "").startswith("Hel\\x1b]0;X\\x07lo.")
    assert "not read: tools" in shown and "refused: nothing to read in messages" in shown
    assert "1 of 2 rows usable" in shown
    assert "\x1b" not in shown and "\x07" not in shown


def test_json_has_every_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (row,) = json.loads(printed(monkeypatch, capsys, tmp_path, "--row", "0", "--json"))["rows"]
    assert {"id", "domain", "reason", "messages", "dropped", "tokens"} <= row.keys()
    assert {"id", "text", "answer", "turn", "weight"} <= row["tokens"][0].keys()
    assert any(token["answer"] and token["turn"] == 0 for token in row["tokens"])
