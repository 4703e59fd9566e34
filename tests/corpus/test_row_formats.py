"""Which rows are chats, and why the others are not."""

from typing import Any

import pytest

from fusion_ray.corpus.row_formats import messages_of

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
        ({"messages": "Hi"}, "no 'messages', 'conversations' or 'text' in the row"),
        ({"messages": ["Hi"]}, "a message is not a role and a content"),
        ({"messages": SAID[:1]}, "no answer: no assistant turn with text in it"),
        ({"messages": [SAID[0], {"role": "assistant", "content": ""}]}, "no answer"),
        ({"messages": [SAID[0], {"role": "assistant", "content": None}]}, "a assistant message has no text content"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "unknown role 'narrator'"),
        ({"text": ""}, "no answer"),
    ],
)
def test_a_row_that_is_no_chat_says_why(row: dict[str, Any], reason: str) -> None:
    assert reason in str(messages_of(row)[1])
