"""Answers in columns, prompts before them, and conversations cut to a length: every bound by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusion_ray.chat import Rendered, Turn, break_off, choose_template, cut, render
from fusion_ray.chat.answer_tokens import AnswerTokens, AnswerTurn, gather_answers
from fusion_ray.chat.prompts import STAND_IN, make_prompts
from fusion_ray.errors import AlignmentError, RecipeError

NUMBERS = np.array([1, 2, 3, 4], dtype=np.int32)
TOKENS = AnswerTokens(NUMBERS, NUMBERS, np.array([0, 1, 4]), np.array([False, True]), np.array([0, 2]))


def letters(**tokens: str) -> PreTrainedTokenizerFast:
    """A token for every byte, and those that are given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def test_turns_are_laid_out_one_after_the_other() -> None:
    one, two = AnswerTurn(NUMBERS[:1], NUMBERS[3:], False), AnswerTurn(NUMBERS[1:], NUMBERS[1:], True)
    for rows, ids, boundaries, turns, ended, offsets in (
        ([[one, two], [], [one]], [1, 2, 3, 4, 1], [4, 2, 3, 4, 4], [0, 1, 4, 5], [False, True, False], [0, 2, 2, 3]),
        ([], [], [], [0], [], [0]),
        ([[]], [], [], [0], [], [0, 0]),
    ):
        made = gather_answers(rows)
        made.check("here")
        assert (made.ids_T.tolist(), made.boundaries_T.tolist(), len(made)) == (ids, boundaries, len(ids))
        assert (made.turn_offsets.tolist(), made.row_offsets.tolist()) == (turns, offsets)
        assert (made.ended.tolist(), made.ids_T.dtype) == (ended, np.int32)
    assert gather_answers([[one, two]]).end_ids == gather_answers([[two, one], [two]]).end_ids == [4]
    assert gather_answers([[one], [two, AnswerTurn(NUMBERS[:2], NUMBERS[:2], True)]]).end_ids == [2, 4]
    assert gather_answers([[one, one]]).end_ids == gather_answers([]).end_ids == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"ids_T": NUMBERS[1:]},
        {"boundaries_T": NUMBERS[1:]},
        {"ids_T": NUMBERS[1:], "boundaries_T": NUMBERS[1:]},
        {"ended": np.array([True])},
        {"row_offsets": np.array([0, 1])},
        {"row_offsets": np.array([0, 1]), "ended": np.array([True])},
        {"turn_offsets": np.array([1, 1, 4])},
        {"row_offsets": np.array([1, 2])},
        {"turn_offsets": np.array([0, 5, 4])},
        {"row_offsets": np.array([0, 3, 2])},
    ],
)
def test_columns_that_do_not_fit_each_other_are_refused(wrong: dict[str, Any]) -> None:
    TOKENS.check("here")
    replace(TOKENS, turn_offsets=np.array([0, 0, 4]), row_offsets=np.array([0, 0, 2])).check("here")
    with pytest.raises(AlignmentError, match=r"here: .* do not fit each other"):
        replace(TOKENS, **wrong).check("here")


def conversation(*turns: tuple[int, list[int], bool], length: int = 12) -> Rendered:
    made = [Turn(start, np.array(ends, dtype=np.int32), ended, max([0, *ends])) for start, ends, ended in turns]
    return Rendered(np.arange(length, dtype=np.int32), tuple(made), True)


def plain(rendered: Rendered) -> tuple[Any, ...]:
    turns = [(turn.start, turn.boundaries.tolist(), turn.ended, turn.n_bytes) for turn in rendered.turns]
    return rendered.input_ids.tolist(), turns, rendered.normalised


TWO = conversation((2, [1, 3, 3], True), (7, [2, 4, 4], True))


@pytest.mark.parametrize(
    ("max_length", "length", "turns"),
    [
        (13, 12, [(2, [1, 3, 3], True, 3), (7, [2, 4, 4], True, 4)]),
        (12, 12, [(2, [1, 3, 3], True, 3), (7, [2, 4, 4], True, 4)]),
        (11, 10, [(2, [1, 3, 3], True, 3), (7, [2, 4, 4], True, 4)]),
        (10, 10, [(2, [1, 3, 3], True, 3), (7, [2, 4, 4], True, 4)]),
        (9, 5, [(2, [1, 3, 3], True, 3)]),
        (5, 5, [(2, [1, 3, 3], True, 3)]),
        (4, 4, [(2, [1, 3], False, 3)]),
        (3, 3, [(2, [1], False, 1)]),
        (2, 0, None),
        (1, 0, None),
    ],
)
def test_a_conversation_of_two_turns_is_cut_at_every_length(max_length: int, length: int, turns: Any) -> None:
    if turns is None:
        with pytest.raises(AlignmentError, match=f"first answer begins at token 2 and max_length is {max_length}"):
            cut(TWO, max_length)
        return
    assert plain(cut(TWO, max_length)) == (list(range(length)), turns, True)


def test_a_turn_without_tokens_is_nothing_to_keep() -> None:
    empty_first = conversation((2, [], False), (5, [1, 2], True))
    assert plain(cut(empty_first, 6)) == ([0, 1, 2, 3, 4, 5], [(5, [1], False, 1)], True)
    assert plain(cut(empty_first, 7)) == (list(range(7)), [(2, [], False, 0), (5, [1, 2], True, 2)], True)
    with pytest.raises(AlignmentError, match="begins at token 3"):
        cut(conversation((3, [], False)), 5)


def test_a_broken_off_answer_loses_its_end_only_where_it_has_one() -> None:
    assert plain(break_off(TWO)) == (list(range(9)), [(2, [1, 3, 3], True, 3), (7, [2, 4], False, 4)], True)
    assert plain(break_off(break_off(TWO))) == plain(break_off(TWO))
    assert plain(break_off(conversation((3, [2], True)))) == ([0, 1, 2], [(3, [], False, 2)], True)
    assert TWO.positions.tolist() == [2, 3, 4, 7, 8, 9] and TWO.n_bytes == 7
    assert not Rendered(TWO.input_ids, TWO.turns).normalised, "unless it is said"


@pytest.mark.parametrize(("max_length", "asked"), [(None, True), (9, True), (8, False), (7, False)])
def test_a_question_that_leaves_no_room_for_a_token_is_not_asked(max_length: int | None, asked: bool) -> None:
    tokenizer = letters(eos_token="<e>")
    template = choose_template("{% for m in messages %}{{ m.content }}<e>{% endfor %}", tokenizer)
    chats = [[{"role": "user", "content": "seven.."}, {"role": "assistant", "content": STAND_IN}]]
    (prompt,) = make_prompts(chats, tokenizer, template, max_length)
    if asked:
        assert tokenizer.decode(prompt.input_ids) == "seven..<e>" and prompt.input_ids.dtype == np.int32
        assert prompt[1:] == ({tokenizer.eos_token_id}, None)
        return
    reason = f"the question has 8 tokens, and the model reads at most {max_length} with the answer"
    assert (prompt.input_ids.tolist(), prompt.ends, prompt.reason) == ([], set(), reason)


def test_only_the_last_answer_is_asked_for() -> None:
    tokenizer = letters(eos_token="<e>")
    template = choose_template("{% for m in messages %}{{ m.content }}{{ '<e>' if loop.last }}{% endfor %}", tokenizer)
    chat = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    for max_length in (3, 4):
        (prompt,) = make_prompts([[*chat, {"role": "assistant", "content": "x"}]], tokenizer, template, max_length)
        assert tokenizer.decode(prompt.input_ids) == ("abc" if max_length == 4 else "")
        assert prompt.ends == ({tokenizer.eos_token_id} if max_length == 4 else set())


def test_a_chat_that_cannot_be_written_keeps_its_place_among_prompts() -> None:
    tokenizer = letters(eos_token="<e>")
    template = choose_template("{% for m in messages %}{{ m.content }}.{% endfor %}", tokenizer)
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": STAND_IN}]
    first, bad, last = make_prompts([good, good[:1], good], tokenizer, template, 99)
    assert first.input_ids.tolist() == last.input_ids.tolist() and tokenizer.decode(first.input_ids) == "a."
    assert first.ends == set() and last.reason is None, "nothing ends a turn here"
    assert (bad.input_ids.tolist(), bad.ends) == ([], set()) and "no assistant turn" in str(bad.reason)


def test_plain_text_stands_between_the_tokens_that_the_tokenizer_has() -> None:
    text = [{"role": "text", "content": "aé"}]
    for tokens, before, end in (
        ({"bos_token": "<s>", "eos_token": "<e>"}, ["<s>"], ["<e>"]),
        ({"eos_token": "<e>"}, ["<e>"], ["<e>"]),
        ({"bos_token": "<s>"}, ["<s>"], []),
    ):
        tokenizer = letters(**tokens)
        made = render(tokenizer, text, "none")
        ids = [tokenizer.convert_tokens_to_ids(token) for token in (*before, "a", "Ã", "©", *end)]
        assert plain(made) == (ids, [(1, [1, 2, 3] + [3] * len(end), bool(end), 3)], False)
    with pytest.raises(RecipeError, match="tokenizer: it has neither a BOS nor an EOS token"):
        render(letters(), text, "none")
