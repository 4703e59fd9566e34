"""Answer tokens and byte boundaries of conversations, on small tokenizers of every kind and awkward templates."""

import numpy as np
import pytest
import toys.models as toy_models
from tokenizers import AddedToken

from fusion_ray.chat import break_off, choose_template, cut, pivot_template, render, render_all
from fusion_ray.chat.prompts import make_prompts
from fusion_ray.chat.vocabulary import control_tokens, read_vocabulary
from fusion_ray.errors import AlignmentError, RecipeError


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def with_template(tokenizer, source: str):
    """A copy of a tokenizer with another chat template."""
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = source
    return other


def turn_bytes(tokenizer, rendered, index: int) -> bytes:
    """The bytes of a turn's answer tokens without its end-of-turn token, read from the vocabulary."""
    turn = rendered.turns[index]
    ids = rendered.input_ids[turn.start : turn.stop - turn.ended]
    return b"".join(read_vocabulary(tokenizer).tokens[i] for i in ids)


TOKENIZERS = {
    "byte-level": toy_models.byte_level_tokenizer,
    "byte-level with NFC": lambda: toy_models.byte_level_tokenizer(normalizer="NFC"),
    "SentencePiece": toy_models.sentencepiece_tokenizer,
    "Unigram": lambda: with_template(toy_models.unigram_tokenizer(), toy_models.LLAMA2),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def check(tokenizer, messages, template="native"):
    """Render, and check what must hold of any conversation in any tokenizer."""
    rendered = render(tokenizer, messages, template)
    answers = [message["content"] for message in messages if message["role"] in ("assistant", "text")]
    assert len(rendered.turns) == len(answers)
    before = 0
    for turn, answer in zip(rendered.turns, answers, strict=True):
        assert turn.n_bytes == len(answer.encode())
        assert turn.start >= max(before, 1)
        assert turn.stop <= len(rendered.input_ids)
        assert turn.boundaries.dtype == np.int32
        assert (np.diff(turn.boundaries) >= 0).all()
        assert len(turn) == 0 or (turn.boundaries[0] >= 0 and turn.boundaries[-1] == turn.n_bytes)
        if turn.ended:
            assert int(rendered.input_ids[turn.stop - 1]) in control_tokens(tokenizer).ids
        before = turn.stop
    return rendered


TEXTS = [
    "Hello there, how are you?",
    "",
    " ",
    "\n\n",
    "  leading and trailing  \n",
    "漢字かな交じり文",
    "🎉🎊👩‍👩‍👧‍👦 family",
    "naïve Größe – “quoted” …",
    "e\u0301 combining, \u212b angstrom, ﬁ ligature",
    "def f(x):\n\treturn x  # 0x1F\r\n",
    "a" * 50,
    "tricky <0x41> and ▁ marks",
    "\u0000\u0007 control",
]


@pytest.mark.parametrize("answer", TEXTS)
def test_every_text_is_covered_by_its_boundaries(tokenizer, answer):
    rendered = check(tokenizer, [user("Say it."), assistant(answer)])
    assert rendered.turns[0].ended


@pytest.mark.parametrize("answer", [text for text in TEXTS if text.strip()])
def test_byte_level_tokens_between_the_boundaries_are_the_answers_bytes(answer):
    tokenizer = toy_models.byte_level_tokenizer()
    rendered = check(tokenizer, [user("Say it."), assistant(answer)])
    turn, raw = rendered.turns[0], answer.encode()
    starts = [0, *turn.boundaries[:-1]]
    for t in range(len(turn) - 1):
        piece = read_vocabulary(tokenizer).tokens[rendered.input_ids[turn.start + t]]
        assert piece.endswith(raw[starts[t] : turn.boundaries[t]])
    # "assistant\n" and an answer that begins with a newline may share a token, and so may its end and the template's.
    assert turn_bytes(tokenizer, rendered, 0).strip() == raw.strip()
    assert not rendered.normalised


def test_tokens_inside_one_character_have_boundaries_inside_it():
    rendered = render(toy_models.byte_level_tokenizer(), [user("x"), assistant("🎉")])
    assert rendered.turns[0].boundaries.tolist() in ([1, 2, 3, 4, 4], [2, 3, 4, 4], [3, 4, 4], [2, 4, 4])
    rendered = render(toy_models.sentencepiece_tokenizer(), [user("x"), assistant("a🎉")])
    assert rendered.turns[0].boundaries.tolist()[-7:-2] == [1, 2, 3, 4, 5]


def test_normalised_text_is_flagged_and_keeps_its_own_bytes():
    tokenizer = toy_models.byte_level_tokenizer(normalizer="NFC")
    plain = render(tokenizer, [user("x"), assistant("caf\u00e9 noir")])
    decomposed = render(tokenizer, [user("x"), assistant("cafe\u0301 noir")])
    assert decomposed.normalised and not plain.normalised
    assert decomposed.turns[0].n_bytes == plain.turns[0].n_bytes + 1
    after = [b for b in plain.turns[0].boundaries if b > 5]
    assert [b - 1 for b in decomposed.turns[0].boundaries if b > 6] == after


def test_normalisation_outside_the_answers_is_not_flagged():
    tokenizer = toy_models.byte_level_tokenizer(normalizer="NFC")
    assert not render(tokenizer, [user("cafe\u0301"), assistant("noir")]).normalised


def test_repeated_content_is_found_by_place_and_not_by_text(tokenizer):
    messages = [user("yes"), assistant("yes"), user("yes"), assistant("yes yes"), user("assistant"), assistant("yes")]
    rendered = check(tokenizer, messages)
    assert len({turn.start for turn in rendered.turns}) == 3
    alone = check(tokenizer, messages[:2])
    assert alone.turns[0].start == rendered.turns[0].start


def test_an_answer_that_holds_the_templates_own_words_is_found():
    answer = "<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    rendered = check(toy_models.byte_level_tokenizer(), [user("yes"), assistant(answer), user("a"), assistant("yes")])
    assert turn_bytes(toy_models.byte_level_tokenizer(), rendered, 0) == answer.encode()
    assert rendered.turns[0].ended and rendered.turns[1].ended


def test_an_answer_that_holds_the_mark_of_the_search_is_found():
    check(toy_models.byte_level_tokenizer(), [user("a"), assistant("Zq7answerZq7 and Zq8answer"), user("Zq9answerZq9")])


def test_system_and_tool_turns_are_read_and_not_scored():
    messages = [
        {"role": "system", "content": "Be brief."},
        user("2+2?"),
        assistant("calc(2+2)"),
        {"role": "tool", "content": "4"},
        assistant("4"),
    ]
    rendered = check(toy_models.byte_level_tokenizer(), messages)
    assert turn_bytes(toy_models.byte_level_tokenizer(), rendered, 1) == b"4"


def test_a_template_without_a_system_role_reads_it_before_the_first_user_turn():
    tokenizer = toy_models.sentencepiece_tokenizer()
    with_system = check(tokenizer, [{"role": "system", "content": "Be brief."}, user("2+2?"), assistant("4")])
    by_hand = check(tokenizer, [user("Be brief.\n\n2+2?"), assistant("4")])
    np.testing.assert_array_equal(with_system.input_ids, by_hand.input_ids)


def test_a_stripping_template_folds_whitespace_into_first_and_last_boundary():
    tokenizer = toy_models.sentencepiece_tokenizer()
    padded = check(tokenizer, [user("x"), assistant("\n\n yes we can \n")]).turns[0]
    plain = check(tokenizer, [user("x"), assistant("yes we can")]).turns[0]
    assert len(padded) == len(plain)
    inner = [boundary for boundary in plain.boundaries if boundary < 10]
    assert padded.boundaries[: len(inner)].tolist() == [boundary + 3 for boundary in inner]


def test_a_templates_space_folds_into_the_first_token():
    tokenizer = toy_models.sentencepiece_tokenizer()
    rendered = render(tokenizer, [user("x"), assistant("the end")])
    turn = rendered.turns[0]
    first = read_vocabulary(tokenizer).tokens[rendered.input_ids[turn.start]]
    assert first.startswith(b" t") and turn.boundaries[0] == len(first) - 1


def test_two_models_agree_on_the_bytes_of_every_turn():
    messages = [user("Hi"), assistant("  One. "), user("And?"), assistant("Two 漢字.")]
    counts = [[turn.n_bytes for turn in check(make(), messages).turns] for make in TOKENIZERS.values()]
    assert counts == [[7, 11]] * len(TOKENIZERS)


REASONING = (  # like Qwen3: earlier reasoning is dropped, the last turn's is reformatted, none becomes an empty one
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}"
    "{% set parts = message.content.split('</think>') %}{% set answer = parts[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 }}\n</think>\n\n"
    "{% endif %}{{ answer }}{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
)


def test_reasoning_that_the_template_writes_as_the_corpus_does_is_answer():
    tokenizer = with_template(toy_models.byte_level_tokenizer(), REASONING)
    answer = "<think>\n2 and 2\n</think>\n\nIt is 4."
    rendered = check(tokenizer, [user("2+2?"), assistant(answer)])
    assert turn_bytes(tokenizer, rendered, 0).strip() == answer.encode()


def test_reasoning_that_only_the_template_writes_is_prompt():
    tokenizer = with_template(toy_models.byte_level_tokenizer(), REASONING)
    rendered = check(tokenizer, [user("a"), assistant("One."), user("2+2?"), assistant("It is 4.")])
    assert [turn_bytes(tokenizer, rendered, i) for i in (0, 1)] == [b"One.", b"It is 4."]


def test_reasoning_that_the_template_drops_makes_the_row_unusable():
    tokenizer = with_template(toy_models.byte_level_tokenizer(), REASONING)
    answer = "<think>\n2 and 2\n</think>\n\nIt is 4."
    with pytest.raises(AlignmentError, match="rewrites the answer of message 1"):
        render(tokenizer, [user("2+2?"), assistant(answer), user("3+3?"), assistant("It is 6.")])


def test_an_upper_casing_template_makes_the_row_unusable():
    loud = with_template(toy_models.byte_level_tokenizer(), toy_models.CHATML.replace("'content']", "'content']|upper"))
    with pytest.raises(AlignmentError, match=r"times, not once|rewrites the answer"):
        render(loud, [user("a"), assistant("quiet")])


def test_a_template_without_an_end_of_turn_gives_turns_that_have_not_ended():
    tokenizer = with_template(toy_models.byte_level_tokenizer(), "{% for m in messages %}{{ m.content }}\n{% endfor %}")
    rendered = check(tokenizer, [user("Q"), assistant("An answer")])
    assert not rendered.turns[0].ended


QUESTIONS = "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|assistant|>{% else %}"
ENDINGS = {
    "one token, not special": (QUESTIONS + "{{ m.content }}<|end|>{% endif %}{% endfor %}", ["<|end|>"], ["<|end|>"]),
    "the next question, and nothing at the end (GLM)": (
        QUESTIONS + "{{ m.content }}{% endif %}{% endfor %}", ["<|user|>"], ["<|user|>"]
    ),
    "two tokens (Cohere)": (
        QUESTIONS + "{{ m.content }}<|done|><|end|>{% endif %}{% endfor %}",
        ["<|done|>", "<|end|>"], ["<|done|>", "<|end|>"],
    ),
    "another token at the end (gpt-oss)": (
        QUESTIONS + "{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}",
        ["<|end|>"], ["<|return|>"],
    ),
    "a token and EOS behind all (Phi)": (
        QUESTIONS + "{{ m.content }}<|end|>\n{% endif %}{% endfor %}{{ eos_token }}", ["<|end|>"], ["<|end|>"]
    ),
    "whitespace before it": (QUESTIONS + "{{ m.content }} \n<|end|>{% endif %}{% endfor %}", ["<|end|>"], ["<|end|>"]),
}  # fmt: skip


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("source", "between", "last"), ENDINGS.values(), ids=ENDINGS)
def test_an_answer_ends_as_the_template_ends_it(source, between, last, special):
    tokenizer = with_template(toy_models.byte_level_tokenizer(), source)
    added = ["<|user|>", "<|assistant|>", "<|end|>", "<|done|>", "<|return|>"]
    tokenizer.add_tokens([AddedToken(token, special=special) for token in added])
    rendered = render(tokenizer, [user("One?"), assistant("One."), user("Two?"), assistant("Two.")])
    for turn, answer, ending in zip(rendered.turns, ("One.", "Two."), (between, last), strict=True):
        text = tokenizer.decode(rendered.input_ids[turn.start : turn.stop])
        assert turn.ended and "".join(text.split()) == answer + "".join(ending)
        assert (turn.boundaries[-len(ending) :] == 4).all()
    (prompt,) = make_prompts([[user("One?"), assistant("x")]], tokenizer, choose_template("native", tokenizer), None)
    assert prompt.ends == {tokenizer.convert_tokens_to_ids(ending[-1]) for ending in (between, last)}
    broken = break_off(rendered)
    assert not broken.turns[-1].ended and tokenizer.decode(broken.input_ids).endswith("<|assistant|>Two.")


@pytest.mark.parametrize("answer", ["cafe\u0301", "\u1112\u1161\u11ab", "man\u0303", "u\u0308", "e\u0301 e\u0301"])
@pytest.mark.parametrize("normalizer", ["NFC", "NFKC"])
def test_an_answer_that_ends_in_a_composed_character_ends_with_its_turn(answer, normalizer):
    tokenizer = toy_models.byte_level_tokenizer(normalizer=normalizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for more in ([], [user("y"), assistant("ok")]):
        rendered = check(tokenizer, [user("x"), assistant(answer), *more])
        turn = rendered.turns[0]
        ids = rendered.input_ids[turn.start : turn.stop].tolist()
        assert turn.ended and ids.index(end) == len(ids) - 1
        assert turn.boundaries[-2] == len(answer.encode())


def test_a_control_token_that_takes_the_spaces_before_it_is_no_part_of_the_answer():
    source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|stop|>\n{% endfor %}"
    tokenizer = with_template(toy_models.byte_level_tokenizer(), source)
    tokenizer.add_tokens([AddedToken("<|stop|>", lstrip=True, special=True)])
    turn = render(tokenizer, [user("x"), assistant("ok  ")]).turns[0]
    assert turn.ended and turn.boundaries.tolist()[-2:] == [4, 4]


@pytest.mark.parametrize("built_in", ["chatml", "plain"])
def test_a_tokenizer_without_a_template_reads_a_built_in_one(built_in):
    tokenizer = toy_models.unigram_tokenizer()
    rendered = check(tokenizer, [user("Hi"), assistant("Yes"), user("Hi"), assistant("No")], built_in)
    assert all(turn.ended for turn in rendered.turns)
    ends = {int(rendered.input_ids[turn.stop - 1]) for turn in rendered.turns}
    assert ends == {tokenizer.eos_token_id} and rendered.input_ids[0] == tokenizer.bos_token_id


def test_the_pivots_template_is_read_with_the_readers_own_end_of_turn():
    pivot, reader = toy_models.byte_level_tokenizer(), toy_models.sentencepiece_tokenizer()
    template = pivot_template(pivot)
    assert template.end_of_turn == "<|im_end|>"
    rendered = check(reader, [user("Hi"), assistant("Yes <|im_end|> no")], template)
    assert rendered.turns[0].ended and rendered.input_ids[rendered.turns[0].stop - 1] == reader.eos_token_id
    assert b"<|im_end|>" in turn_bytes(reader, rendered, 0)
    np.testing.assert_array_equal(
        render(pivot, [user("Hi"), assistant("Yes")], template).input_ids,
        render(pivot, [user("Hi"), assistant("Yes")]).input_ids,
    )


def test_a_reader_that_is_used_to_bos_gets_it_in_a_template_without():
    import copy

    from tokenizers.processors import TemplateProcessing

    reader = copy.deepcopy(toy_models.sentencepiece_tokenizer())
    template = pivot_template(toy_models.byte_level_tokenizer())
    assert render(reader, [user("Hi"), assistant("Yes")], template).input_ids[0] != reader.bos_token_id
    reader.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", reader.bos_token_id)]
    )
    rendered = check(reader, [user("Hi"), assistant("Yes")], template)
    assert rendered.input_ids[0] == reader.bos_token_id and rendered.input_ids[1] != reader.bos_token_id


@pytest.mark.parametrize("text", TEXTS)
def test_plain_text_is_answer_from_its_first_byte(tokenizer, text):
    rendered = check(tokenizer, [{"role": "text", "content": text}], "none")
    (turn,) = rendered.turns
    context = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    assert rendered.input_ids[0] == context and rendered.input_ids[-1] == tokenizer.eos_token_id
    assert turn.start == 1 and len(turn) == len(rendered.input_ids) - 1 and turn.ended


def test_plain_text_reads_the_same_in_a_chat_template():
    tokenizer, row = toy_models.byte_level_tokenizer(), [{"role": "text", "content": "Once upon"}]
    np.testing.assert_array_equal(render(tokenizer, row).input_ids, render(tokenizer, row, "none").input_ids)


def test_a_row_that_cannot_be_used_keeps_its_place_among_others():
    tokenizer = toy_models.byte_level_tokenizer()
    good = [user("a"), assistant("b")]
    bad = [{"role": "narrator", "content": "Once"}, assistant("b")]
    first, second, third = render_all(tokenizer, [good, bad, good])
    assert isinstance(second, AlignmentError)
    np.testing.assert_array_equal(first.input_ids, third.input_ids)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no messages"),
        ([{"role": "narrator", "content": "x"}, assistant("y")], "message 0 has the unknown role 'narrator'"),
        ([user("x")], "no assistant turn"),
        ([{"role": "text", "content": "x"}, assistant("y")], "message 0 has the unknown role 'text'"),
        ([user("x"), assistant("\ud800")], "not valid Unicode"),
    ],
)
def test_an_unusable_row_says_why(messages, words):
    with pytest.raises(AlignmentError, match=words):
        render(toy_models.byte_level_tokenizer(), messages)


def test_a_role_that_the_template_refuses_is_an_error_with_the_templates_words():
    messages = [user("x"), assistant("y"), {"role": "tool", "content": "z"}, assistant("w")]
    with pytest.raises(AlignmentError, match="user, assistant, tool, assistant: only user and assistant roles"):
        render(toy_models.sentencepiece_tokenizer(), messages)


def test_a_turn_that_the_template_leaves_out_is_an_error():
    silent = "{% for m in messages if m.role != 'tool' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = with_template(toy_models.byte_level_tokenizer(), silent)
    messages = [user("x"), assistant("y"), {"role": "tool", "content": "zzz"}, assistant("w")]
    with pytest.raises(AlignmentError, match="leaves out message 2"):
        render(tokenizer, messages)


def test_a_conversation_in_the_template_none_is_an_error():
    with pytest.raises(AlignmentError, match="template is 'none'"):
        render(toy_models.byte_level_tokenizer(), [user("a"), assistant("b")], "none")


def test_an_unknown_template_and_a_missing_one_are_recipe_errors():
    with pytest.raises(RecipeError, match="'alpaca' is not known; expected one of native, none, pivot, chatml"):
        choose_template("alpaca", toy_models.byte_level_tokenizer())
    with pytest.raises(RecipeError, match="no chat template"):
        choose_template("native", toy_models.unigram_tokenizer())


def test_a_template_that_prints_the_date_prints_the_same_one_every_day():
    dated = with_template(toy_models.byte_level_tokenizer(), "{{ strftime_now('%Y-%m-%d') }}\n" + toy_models.CHATML)
    rendered = render(dated, [user("a"), assistant("b")])
    assert dated.decode(rendered.input_ids).startswith("2024-07-26")


def test_an_answer_before_any_other_token_is_an_error():
    bare = with_template(toy_models.byte_level_tokenizer(), "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(AlignmentError, match="nothing predicts it"):
        render(bare, [assistant("b"), user("a")])


def test_a_long_conversation_is_cut_after_a_whole_turn():
    tokenizer = toy_models.byte_level_tokenizer()
    rendered = render(tokenizer, [user("a"), assistant("one two"), user("b"), assistant("three four five " * 9)])
    first = rendered.turns[0]
    for max_length in (first.stop, first.stop + 5, len(rendered.input_ids) - 2):
        shorter = cut(rendered, max_length)
        assert len(shorter.turns) == 1 and shorter.turns[0].ended
        assert len(shorter.input_ids) == first.stop
    assert cut(rendered, len(rendered.input_ids)) is rendered


def test_an_answer_that_is_broken_off_has_no_end_of_turn_and_nothing_after_it(tokenizer):
    whole = render(tokenizer, [user("a"), assistant("first"), user("b"), assistant("second and last")])
    broken = break_off(whole)
    assert broken.turns[0] is whole.turns[0]
    last, before = broken.turns[-1], whole.turns[-1]
    assert (last.start, last.n_bytes, last.ended, before.ended) == (before.start, before.n_bytes, False, True)
    assert last.boundaries.tolist() == before.boundaries[: -before.ending].tolist()
    assert last.boundaries[-1] == len(b"second and last")
    assert broken.input_ids.tolist() == whole.input_ids[: last.stop].tolist()
    assert len(break_off(broken).input_ids) == len(broken.input_ids)


def test_a_long_first_turn_is_cut_at_a_token():
    rendered = render(toy_models.byte_level_tokenizer(), [user("a"), assistant("one two three four " * 20)])
    (turn,) = rendered.turns
    (shorter,) = cut(rendered, turn.start + 7).turns
    assert len(shorter) == 7 and not shorter.ended
    assert shorter.n_bytes == shorter.boundaries[-1] == turn.boundaries[6]


def test_a_question_longer_than_the_limit_leaves_nothing_to_score():
    rendered = render(toy_models.byte_level_tokenizer(), [user("a " * 50), assistant("b")])
    with pytest.raises(AlignmentError, match="max_length is 20"):
        cut(rendered, 20)


def test_positions_are_the_indices_of_all_answer_tokens():
    rendered = render(toy_models.byte_level_tokenizer(), [user("a"), assistant("b"), user("c"), assistant("d")])
    one, two = rendered.turns
    assert rendered.positions.tolist() == [*range(one.start, one.stop), *range(two.start, two.stop)]
    assert rendered.n_bytes == 2


def test_a_tokenizer_that_is_let_go_leaves_no_table_behind():
    import copy
    import gc

    from fusion_ray.chat.vocabulary import _READ

    gc.collect()
    before = len(_READ)
    passing = copy.deepcopy(toy_models.byte_level_tokenizer())
    render(passing, [user("a"), assistant("b")], "chatml")
    assert len(_READ) == before + 1
    del passing
    gc.collect()
    assert len(_READ) == before
