"""Which rows are chats, and why the others are not."""

from typing import Any

import pytest

from fusion_ray.corpus.row_formats import messages_of, unread_fields
from fusion_ray.recipe import Columns

SAID = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "Plain.", "messages": None}, [{"role": "text", "content": "Plain."}]),
        ({"text": "Plain.", "messages": SAID}, SAID),
        ({"messages": SAID}, SAID),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, SAID),
    ],
)
def test_a_row_of_any_shape_becomes_messages(row: dict[str, Any], expected: list[dict[str, str]]) -> None:
    assert messages_of(row) == (expected, None)


@pytest.mark.parametrize("point", [0xD800, 0xDABC, 0xDFFF])
def test_every_lone_surrogate_is_refused_and_their_neighbours_are_not(point: int) -> None:
    row = {"text": f"a{chr(point)}b"}
    assert messages_of(row)[1] == "lone surrogates: the text is not valid Unicode"
    assert messages_of({"text": "\ud7ff\ue000"})[1] is None


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": "Hi"}, "a message is not a role and a content"),
        ({"messages": [], "title": "Hi"}, "nothing to read in messages"),
        ({"title": "Hi"}, "no conversation in the row"),
        ({"messages": ["Hi"]}, "a message is not a role and a content"),
        ({"messages": SAID[:1]}, "no answer: no assistant turn with text in it"),
        ({"messages": [SAID[0], {"role": "assistant", "content": ""}]}, "no answer"),
        (
            {"messages": [SAID[0], {"role": "assistant", "content": None}]},
            "a message of role assistant has no text content",
        ),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "unknown role 'narrator'"),
        ({"text": ""}, "no answer"),
    ],
)
def test_a_row_that_is_no_chat_says_why(row: dict[str, Any], reason: str) -> None:
    assert reason in str(messages_of(row)[1])


ASKED = "What is 2 + 2?"
SHAPES: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({"conversation": [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Hello"}]},
     [("user", "Hi"), ("assistant", "Hello")]),
    ({"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
     [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello")]),
    ({"messages": [{"role": "developer", "content": "Be kind."}, {"role": "bot", "content": "Hello"}]},
     [("system", "Be kind."), ("assistant", "Hello")]),
    ({"prompt": ASKED, "completion": "4"}, [("user", ASKED), ("assistant", "4")]),
    ({"prompt": [{"role": "user", "content": ASKED}], "completion": [{"role": "assistant", "content": "4"}]},
     [("user", ASKED), ("assistant", "4")]),
    ({"prompt": ASKED, "chosen": "4", "rejected": "5"}, [("user", ASKED), ("assistant", "4")]),
    ({"prompt": [{"role": "user", "content": ASKED}],
      "chosen": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "4"}]},
     [("user", ASKED), ("assistant", "4")]),
    ({"prompt": ASKED, "chosen": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "4"}]},
     [("user", ASKED), ("assistant", "4")]),
    ({"chosen": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "4"}], "rejected": []},
     [("user", ASKED), ("assistant", "4")]),
    ({"prompt": ASKED, "response": "4"}, [("user", ASKED), ("assistant", "4")]),
    ({"question": ASKED, "answer": "4", "system": "Count."},
     [("system", "Count."), ("user", ASKED), ("assistant", "4")]),
    ({"instruction": "Add.", "input": "2 and 2", "output": "4"}, [("user", "Add.\n\n2 and 2"), ("assistant", "4")]),
    ({"instruction": "Add.", "input": "", "output": "4", "text": "### Add."}, [("user", "Add."), ("assistant", "4")]),
    ({"text": "All of it.", "conversations": [{"from": "gpt", "value": "Hello"}]}, [("assistant", "Hello")]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), SHAPES)
def test_the_shapes_that_people_have_become_turns(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    messages, reason = messages_of(row)
    assert reason is None
    assert [(message["role"], message["content"]) for message in messages] == expected


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}, "calls a tool"),
        ({"from": "function_call", "value": "{}"}, "calls a tool"),
        ({"role": "assistant", "content": "Hello", "weight": 0}, "weight"),
        ({"role": "assistant", "content": "Hello", "train": False}, "not to be trained on"),
        ({"role": "assistant", "content": [{"type": "text", "text": None}]}, "no text content"),
        ({"from": ["human"], "value": "Hi"}, "unknown role"),
    ],
)
def test_what_would_be_taught_wrongly_is_refused_by_name(turn: dict[str, Any], reason: str) -> None:
    _, found = messages_of({"messages": [*SAID, turn]})
    assert found is not None and reason in found


def test_weights_of_what_is_never_learnt_and_whole_weights_change_nothing() -> None:
    turns = [SAID[0] | {"weight": 0, "train": False}, SAID[1] | {"weight": 1.0, "train": True}]
    assert messages_of({"messages": turns}) == (SAID, None)


def test_an_empty_question_of_a_pair_is_refused_and_not_left_out() -> None:
    prompt = [{"role": "user", "content": None}]
    assert "no text content" in str(messages_of({"prompt": prompt, "completion": "Hello"})[1])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": 7}, "a message is not a role and a content"),
        ({"chosen": "4"}, "nothing to read in chosen: no text and no messages there"),
        ({"instruction": "Add."}, "nothing to read in instruction: no text and no messages there"),
        ({"output": "4", "text": 7}, "nothing to read in output, text: no text and no messages there"),
        ({"messages": [{"role": "assistant", "content": ["x"]}]},
         "a message of role assistant has no text content, but ['x']"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image", "text": "x"}]}]},
         "a message of role assistant has no text content, but [{'type': 'image', 'text': 'x'}]"),
        ({"messages": [{"role": "assistant", "content": "x", "function_call": {"name": "f"}}]},
         "an assistant message calls a tool, which cannot be read yet"),
        ({"messages": [{"role": 7, "content": "x", "weight": 0}]},
         "unknown role 7; expected one of system, user, assistant, tool, text"),
        ({"instruction": ["Add."], "output": "4"}, "a message of role user has no text content, but [['Add.']]"),
    ],
)  # fmt: skip
def test_a_refused_row_says_the_whole_reason(row: dict[str, Any], reason: str) -> None:
    assert messages_of(row)[1] == reason


@pytest.mark.parametrize("system", ["", None, 7, ["Be kind."]])
def test_only_a_text_is_a_system_prompt(system: Any) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello")]
    for row in (
        {"prompt": "Hi", "completion": "Hello"},
        {"conversations": SAID},
        {"instruction": "Hi", "output": "Hello"},
    ):
        messages, reason = messages_of(row | {"system": system})
        assert ([(message["role"], message["content"]) for message in messages], reason) == (turns, None)


def test_every_field_that_nobody_reads_is_named_once_wherever_it_stands() -> None:
    turns = [{"from": "human", "value": "Hi", "role": "x"}, {"role": "assistant", "content": "Hello", "name": "a"}]
    row = {
        "id": 1,
        "topic": "t",
        "system": "s",
        "conversations": turns,
        "rating": 0,
        "note": "",
        "tags": [],
        "more": {},
    }
    assert unread_fields(row, Columns(domain="topic")) == ("rating", "conversations[].role", "conversations[].name")
    assert unread_fields(row | {"system": ""})[:2] == ("topic", "rating")
    assert unread_fields({"messages": SAID, "system": "s"}) == ("system",)
    assert unread_fields({"title": "x", "messages": "Hi"}) == ("title",)
    assert unread_fields({"title": "x"}) == ("title",)
    rows = ({"question": "a", "answer": "b"}, {"instruction": "a", "input": "c", "output": "b"}, {"text": "a"})
    for one in rows:
        assert unread_fields(one | {"messages": None}) == ()
        assert unread_fields(one | {"system": "s"}) == (("system",) if "text" in one else ())


NAMED = Columns(prompt="ask", answer="reply", id="key", domain="topic")


@pytest.mark.parametrize(
    "row",
    [
        {"ask": "Hi", "reply": "Hello."},
        {"ask": [{"role": "user", "content": "Hi"}], "reply": "Hello."},
        {"ask": "Hi", "reply": [{"role": "assistant", "content": "Hello."}]},
        {"ask": "Hi", "reply": "Hello.", "messages": [{"role": "user", "content": "Not this one."}]},
    ],
)
def test_columns_that_the_recipe_names_are_read_and_no_others(row: dict[str, Any]) -> None:
    asked = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert messages_of(row, NAMED) == (asked, None)
    assert unread_fields(row | {"key": 1, "topic": "x", "note": "y"}, NAMED) == (*list(row)[2:], "note")
    assert messages_of(row | {"system": "Be brief."}, NAMED)[0][0] == {"role": "system", "content": "Be brief."}


def test_a_row_without_the_named_columns_says_which_it_has() -> None:
    for row in ({"question": "Hi", "answer": "Hello."}, {"question": "Hi", "ask": "", "reply": "x"}, {}):
        messages, reason = messages_of(row, NAMED)
        assert not messages and f"the row has {', '.join(row) or 'no columns'}" in str(reason)
        assert "nothing to read in ask and reply, which corpus.columns names" in str(reason)
