"""Where answers stand in a written conversation and in its tokens, for templates that are a line of Python."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fusion_ray.chat.rendering import _Tables, _Tokens, _turn
from fusion_ray.chat.spans import Span, find_spans
from fusion_ray.chat.token_ends import char_to_byte, token_ends
from fusion_ray.chat.vocabulary import make_vocabulary
from fusion_ray.errors import AlignmentError


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def writes(form: Callable[[str], str] = str) -> Callable[[Any], str]:
    return lambda messages: "".join(f"[{message['role'][0]}]{form(message['content'])}." for message in messages)


def thinks(messages: Any) -> str:
    """Answers begin with a thought: their own, or an empty one."""
    made = ""
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant" and "</t>" not in content:
            content = f"<t></t>{content}"
        made += f"[{message['role'][0]}]{content}."
    return made


@pytest.mark.parametrize(
    ("write", "contents", "spans"),
    [
        (writes(), ["q", " a "], [(8, 11, 9, 1)]),
        (writes(str.strip), ["q", " a "], [(8, 9, 8, 1)]),
        (writes(str.lstrip), ["q", " a "], [(8, 10, 8, 1)]),
        (writes(str.rstrip), ["q", " a "], [(8, 10, 9, 1)]),
        (writes(), ["q", ""], [(8, 8, 8, 0)]),
        (writes(), ["q", "a.", "q", "[a]a"], [(8, 10, 8, 0), (19, 23, 19, 0)]),
        (writes(), ["Zq7answer", "Zq8answerZq8"], [(16, 28, 16, 0)]),
        (thinks, ["q", "a"], [(15, 16, 15, 0)]),
        (thinks, ["q", " <t>b</t>a"], [(9, 18, 9, 1)]),
        (thinks, ["q", "<t>b</t>a", "q", "c"], [(8, 17, 8, 0), (33, 34, 33, 0)]),
        # The template writes an empty answer in a shorter way than it writes what stands around any other.
        (lambda messages: f"ab{messages[1]['content']}bc" if messages[1]["content"] else "abc", ["b", ""],
         [(1, 1, 1, 0)]),
        # It begins otherwise than before any other answer, so that a space before the answer may be its own.
        (lambda messages: "BA"[messages[1]["content"] != " b"] + "".join(m["content"] for m in messages) + ".",
         ["q", " b"], [(3, 4, 3, 1)]),
    ],
)  # fmt: skip
def test_answers_are_found_by_what_stands_around_them(
    write: Any, contents: list[str], spans: list[tuple[int, int, int, int]]
) -> None:
    messages = chat(*contents)
    expected = [
        Span(start, stop, content, in_text, in_content)
        for (start, stop, in_text, in_content), content in zip(spans, contents[1::2], strict=True)
    ]
    assert find_spans(write, messages, write(messages)) == expected


@pytest.mark.parametrize(
    ("write", "contents", "said"),
    [
        (writes(), ["q"], "no assistant turn"),
        (writes(str.upper), ["Q", "a"], "writes the answer of message 1 0 times, not once"),
        (writes(lambda content: content * 2), ["q", "a"], "writes the answer of message 1 2 times, not once"),
        (lambda messages: writes()(messages).replace("b", "c"), ["q", "b"], "rewrites the answer of message 1"),
        (lambda messages: writes()(messages).replace("b", "c") + "b", ["q", "b"], "rewrites the answer of message 1"),
        (lambda messages: writes()([m for m in messages if m["content"] != " x "]), ["x y", "a", " x ", "b"], ""),
        (lambda messages: writes()([m for m in messages if m["content"] != " z "]), ["x", "a", " z ", "b"],
         r"leaves out message 2 \(role 'user'\)"),
        (lambda messages: writes()([m for m in messages if m["content"] != "z"]), ["z", "a", "y", "b"],
         r"leaves out message 0 \(role 'user'\)"),
    ],
)  # fmt: skip
def test_a_template_that_drops_or_rewrites_is_refused_with_the_message_it_does_that_to(
    write: Any, contents: list[str], said: str
) -> None:
    messages = chat(*contents)
    if not said:
        assert len(find_spans(write, messages, write(messages))) == 2, "its text stands in another message"
        return
    with pytest.raises(AlignmentError, match=said):
        find_spans(write, messages, write(messages))


def test_a_question_that_is_rewritten_or_needed_or_blank_is_no_dropped_one() -> None:
    def strict(messages: Any) -> str:
        if messages[0]["role"] != "user":
            raise AlignmentError("a user begins")
        return "".join(
            message["content"] if message["role"] == "assistant" else message["content"].upper() for message in messages
        )

    for contents in (["q", "a"], ["q", "a", "r", "b"], ["q", "a", "  ", "b"]):
        messages = chat(*contents)
        assert [span.content for span in find_spans(strict, messages, strict(messages))] == contents[1::2]


TABLE = make_vocabulary([b"", b" ", b"a", b"b", b" a", b" ab", b"ab", b"x", "é".encode(), b"\xc3", b"\xa9"])


@pytest.mark.parametrize(
    ("text", "ids", "offsets", "ends", "changed"),
    [
        ("a", [2], [(0, 1)], [1], []),
        ("ab", [2, 3], [(0, 1), (1, 2)], [1, 2], []),
        ("ab", [4, 3], [(0, 1), (1, 2)], [1, 2], []),
        ("ab", [1, 6], [(0, 0), (0, 2)], [0, 2], []),
        (" ab", [4, 3], [(0, 2), (2, 3)], [2, 3], []),
        ("aé", [2, 9, 10], [(0, 1), (1, 2), (1, 2)], [1, 2, 3], []),
        ("", [], [], [], []),
        ("ab", [7, 6], [(0, 0), (0, 2)], [0, 2], [0]),
        ("aéb", [2, 0, 3], [(0, 1), (1, 2), (2, 3)], [1, 3, 4], [1]),
        ("aéb", [2, 2, 3], [(0, 1), (1, 2), (2, 3)], [1, 3, 4], [1]),
        ("a b", [2, 0, 3], [(0, 1), (1, 2), (2, 3)], [1, 2, 3], []),
        ("éab", [0, 4, 3], [(0, 1), (1, 2), (2, 3)], [2, 3, 4], [0]),
        ("éx", [0, 4], [(0, 1), (1, 2)], [2, 3], [0, 1]),
        ("éab", [0, 7, 2], [(0, 2), (0, 1), (1, 2)], [3, 3, 3], [0, 1]),
    ],
)
def test_every_token_ends_at_its_byte(
    text: str, ids: list[int], offsets: list[tuple[int, int]], ends: list[int], changed: list[int]
) -> None:
    found = token_ends(SimpleNamespace(ids=ids, offsets=offsets), text, text.encode(), TABLE)
    assert (found.ends_T.tolist(), np.flatnonzero(found.changed_T).tolist()) == (ends, changed)
    assert (found.ends_T.dtype, found.changed_T.dtype, len(found.changed_T)) == (np.int64, bool, len(ids))


def test_characters_have_from_one_to_four_bytes() -> None:
    assert char_to_byte("\x7f\x80\u07ff\u0800\uffff\U00010000").tolist() == [0, 1, 3, 5, 8, 11, 15]
    assert char_to_byte("").tolist() == [0]


CONTROL = 9


@pytest.mark.parametrize(
    ("raw", "ends", "ids", "span", "turn"),
    [
        # The tokens are x, a space, a, b and the end of the turn.
        ("x ab<e>", [1, 2, 3, 4, 7], [0, 0, 0, 0, 9], (2, 4, "ab", 2, 0), (2, [1, 2, 2], True, 2)),
        ("x ab<e>", [1, 2, 3, 4, 7], [0, 0, 0, 0, 8], (2, 4, "ab", 2, 0), (2, [1, 2], False, 2)),
        ("x ab \n<e>", [1, 2, 3, 4, 6, 9], [0, 0, 0, 0, 0, 9], (2, 4, "ab", 2, 0), (2, [1, 2, 2, 2], True, 2)),
        ("x ab.<e>", [1, 2, 3, 4, 5, 8], [0, 0, 0, 0, 0, 9], (2, 4, "ab", 2, 0), (2, [1, 2], False, 2)),
        ("x ab .<e>", [1, 2, 3, 4, 5, 6, 9], [0, 0, 0, 0, 0, 0, 9], (2, 4, "ab", 2, 0), (2, [1, 2], False, 2)),
        ("x ab", [1, 2, 3, 4], [0, 0, 0, 0], (2, 4, "ab", 2, 0), (2, [1, 2], False, 2)),
        ("x ab ", [1, 2, 3, 4, 5], [0, 0, 0, 0, 0], (2, 4, "ab", 2, 0), (2, [1, 2], False, 2)),
        ("x <e>", [1, 2, 5], [0, 0, 9], (2, 2, "", 2, 0), (2, [0], True, 0)),
        ("x .", [1, 2, 3], [0, 0, 0], (2, 2, "", 2, 0), (2, [], False, 0)),
        (" <e>", [1, 4], [0, 9], (0, 0, "", 0, 0), (0, [0, 0], True, 0)),
        (".<e>", [1, 4], [0, 9], (0, 0, "", 0, 0), (0, [], False, 0)),
        # A token begins before the answer, and one ends behind it.
        ("x ab<e>", [1, 3, 5, 7], [0, 0, 0, 9], (2, 4, "ab", 2, 0), (1, [1, 2, 2], True, 2)),
        ("x ab<", [1, 3, 5], [0, 0, 0], (2, 4, "ab", 2, 0), (1, [1, 2], False, 2)),
        ("x ab", [1, 3], [0, 0], (2, 4, "ab", 2, 0), (1, [2], False, 2)),
        # Tokens of no bytes at the end belong to it, but for added ones.
        ("x ab<e>", [1, 2, 4, 4, 7], [0, 0, 0, 0, 9], (2, 4, "ab", 2, 0), (2, [2, 2, 2], True, 2)),
        ("x ab<e>", [1, 2, 4, 4, 7], [0, 0, 0, 8, 9], (2, 4, "ab", 2, 0), (2, [2, 2, 2], True, 2)),
        ("x ab", [1, 2, 4, 4], [0, 0, 0, 0], (2, 4, "ab", 2, 0), (2, [2, 2], False, 2)),
        ("x ab", [1, 2, 4, 4], [0, 0, 0, 8], (2, 4, "ab", 2, 0), (2, [2], False, 2)),
        # The template strips what the content has, or writes a space of its own.
        ("x ab<e>", [1, 2, 3, 4, 7], [0, 0, 0, 0, 9], (2, 4, " ab\n", 2, 1), (2, [2, 4, 4], True, 4)),
        ("x  ab<e>", [1, 2, 3, 4, 5, 8], [0, 0, 0, 0, 0, 9], (2, 5, "ab", 3, 0), (2, [0, 1, 2, 2], True, 2)),
        ("x   ab<e>", [1, 2, 3, 4, 5, 6, 9], [0] * 6 + [9], (2, 6, "ab", 4, 0), (2, [0, 0, 1, 2, 2], True, 2)),
        ("x éa<e>", [1, 2, 4, 5, 8], [0, 0, 0, 0, 9], (2, 4, "éa", 2, 0), (2, [2, 3, 3], True, 3)),
    ],
)
def test_the_tokens_of_an_answer_are_all_that_have_a_byte_of_it_and_its_end(
    raw: str, ends: list[int], ids: list[int], span: tuple[int, int, str, int, int], turn: tuple[Any, ...]
) -> None:
    vocabulary = make_vocabulary([b""] * 10, added=(8, CONTROL))
    tokens = _Tokens(np.array(ids), np.array(ends), _Tables(vocabulary, frozenset({CONTROL}), ending_length=1))
    found = _turn(Span(*span), tokens, raw.encode(), char_to_byte(raw))
    assert (found.start, found.boundaries.tolist(), found.ended, found.n_bytes) == turn
