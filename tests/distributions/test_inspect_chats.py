"""What inspect shows of a row: its tokens as the stages have them, and what was left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys.models import byte_level_tokenizer, save_toy, sentencepiece_tokenizer

from fusion_ray import api
from fusion_ray.chat import choose_template, render
from fusion_ray.corpus.row_formats import UNNAMED
from fusion_ray.distributions.inspect_chats import InspectedRow, inspect_rows, pick_rows
from fusion_ray.distributions.score import RenderSettings
from fusion_ray.errors import RecipeError

CHAT: dict[str, Any] = {
    "id": "a",
    "domain": "talk",
    "tools": ["search"],
    "messages": [
        {"role": "user", "content": "Hi", "weight": 0},
        {"role": "assistant", "content": "Hel\x1blo, naïve 漢字 🎉"},
        {"role": "user", "content": "Bye", "name": ""},
        {"role": "assistant", "content": "Bye then."},
    ],
}


def inspect(row: Any, max_length: int = 999) -> InspectedRow:
    tokenizer = byte_level_tokenizer()
    settings = RenderSettings(choose_template("chatml", tokenizer), max_length, "cut")
    (found,) = inspect_rows([row], tokenizer, settings)
    return found


def test_answer_tokens_are_those_that_are_scored_and_their_text_is_the_answer() -> None:
    found = inspect(CHAT)
    rendered = render(byte_level_tokenizer(), CHAT["messages"], "chatml")
    assert [token.id for token in found.tokens] == rendered.input_ids.tolist()
    assert np.flatnonzero([token.answer for token in found.tokens]).tolist() == rendered.positions.tolist()
    assert [token.weight for token in found.tokens] == [float(token.answer) for token in found.tokens]
    for turn, message in enumerate(CHAT["messages"][1::2]):
        text = "".join(token.text for token in found.tokens if token.turn == turn and not token.end)
        assert text == message["content"]
    assert sum(token.end for token in found.tokens) == 2


def test_fields_that_nobody_reads_are_named_and_empty_ones_are_not() -> None:
    assert inspect(CHAT).dropped == ["tools", "messages[].weight"]
    assert inspect({"text": "Once.", "source": "book", "note": None}).dropped == ["source"]


def test_what_is_beyond_the_longest_length_is_counted() -> None:
    whole = inspect(CHAT)
    cut = inspect(CHAT, max_length=len(whole.tokens) - 8)
    assert cut.left_out == len(whole.tokens) - len(cut.tokens) >= 8
    assert cut.tokens[-1].answer


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "nothing to read in messages"),
        ("chats.jsonl line 3: not JSON", "line 3"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no answer"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: Any, reason: str) -> None:
    found = inspect(row)
    assert found.reason is not None and reason in found.reason
    assert found.tokens == [] and json.loads(json.dumps(found.plain()))["reason"] == found.reason


def test_a_row_is_found_by_its_number_or_its_id(tmp_path: Path) -> None:
    rows = [CHAT | {"id": str(number)} for number in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:7]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[7:]))

    def pick(**which: Any) -> list[Any]:
        asked = {"row": None, "identity": None, "count": 10, "columns": UNNAMED} | which
        return pick_rows(str(tmp_path), **asked)

    assert [row["id"] for row in pick()] == [str(number) for number in range(10)]
    assert pick(row=8) == pick(identity="8") == [rows[8]]
    for which, said in (({"row": 12}, "no row 12"), ({"identity": "x"}, "no row with the id 'x'")):
        with pytest.raises(RecipeError, match=said):
            pick(**which)


def test_a_source_is_aligned_turn_by_turn_or_says_why_not(tmp_path: Path) -> None:
    pivot = save_toy(tmp_path / "pivot", "llama", byte_level_tokenizer())
    source = save_toy(tmp_path / "source", "gpt_neox", sentencepiece_tokenizer())
    chat = [CHAT["messages"][2], CHAT["messages"][3]]
    (found,) = api.inspect(pivot, [{"messages": chat}], source=source, template="chatml")
    assert found.groups is not None and found.problem is None
    for side in ("pivot", "source"):
        text = "".join(token.token for group in found.groups for token in getattr(group, side))
        assert "Bye then." in text
    (refused,) = api.inspect(pivot, [{"messages": []}], source=source, template="chatml")
    assert refused.groups is None and refused.row.reason is not None


@pytest.mark.parametrize("chats", [{"messages": []}, 7, None, [CHAT, 7], ["line"]])
def test_what_are_no_rows_is_refused(chats: Any) -> None:
    with pytest.raises(RecipeError, match="inspect: "):
        pick_rows(chats, row=None, identity=None, count=1, columns=UNNAMED)


@pytest.mark.parametrize(
    ("row", "identity", "count", "found"),
    [
        (None, None, 1, [0]),
        (None, None, 2, [0, 1]),
        (None, None, 9, [0, 1, 2]),
        (0, None, 9, [0]),
        (2, None, 1, [2]),
        (None, "b", 9, [1]),
        (2, "b", 9, [1]),
        (None, None, 0, "0 rows were asked for; expected at least 1"),
        (3, None, 1, r"no row 3 \(they count from 0\) in these chats"),
        (None, "d", 1, "no row with the id 'd' in these chats"),
    ],
)
def test_rows_are_picked_by_count_or_number_or_id(
    row: int | None, identity: str | None, count: int, found: Any
) -> None:
    rows = [{"id": name, "text": "x"} for name in "abc"]
    if isinstance(found, list):
        picked = pick_rows(rows, row=row, identity=identity, count=count, columns=UNNAMED)
        assert picked == [rows[number] for number in found]
        return
    with pytest.raises(RecipeError, match=found):
        pick_rows(rows, row=row, identity=identity, count=count, columns=UNNAMED)


def test_no_rows_at_all_is_said() -> None:
    with pytest.raises(RecipeError, match=r"inspect: no rows in these chats\."):
        pick_rows([], row=None, identity=None, count=1, columns=UNNAMED)


def test_a_row_is_shown_whole_with_every_token_in_its_place() -> None:
    tokenizer = byte_level_tokenizer()
    settings = RenderSettings(choose_template("none", tokenizer), 5, "reject")
    rows = [{"id": "a", "text": "ab"}, {"id": "b", "text": "Once upon a time."}, "c.json line 2: bad"]
    short, long, bad = inspect_rows(rows, tokenizer, settings)
    messages = [{"role": "text", "content": "ab"}]
    assert short[:6] == ("a", "all", None, messages, [], 0)
    kept = short.rendered
    assert kept is not None and kept.turns[0].ended
    assert "".join(token.text for token in short.tokens if token.answer and not token.end) == "ab"
    last = len(kept.input_ids) - 1
    for place, token in enumerate(short.tokens):
        answer = place >= kept.turns[0].start
        assert token[2:] == (answer, 0 if answer else None, place == last, 1.0 if answer else 0.0)
    assert long[3:] == ([{"role": "text", "content": rows[1]["text"]}], [], 0, [], None)  # type: ignore[index]
    assert long.reason is not None and long.reason.endswith("tokens, more than max_length 5")
    assert bad[1:] == (None, "c.json line 2: bad", [], [], 0, [], None)
    plain = short.plain()
    assert plain.pop("tokens") == [token._asdict() for token in short.tokens]
    assert plain == {"id": "a", "domain": "all", "reason": None, "messages": messages, "dropped": [], "left_out": 0}
