"""Chat templates of one's own and of others: what each setting means, and what is missing from foreign ones."""

import pytest
from toys.models import byte_level_tokenizer, sentencepiece_tokenizer

from fusion_ray.chat import choose_template, render_all
from fusion_ray.chat.templates import BUILT_IN, own_end_of_turn, write_text
from fusion_ray.errors import AlignmentError, RecipeError

CHAT = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]


def test_a_foreign_template_ends_turns_with_the_readers_own_token() -> None:
    pivot, reader = byte_level_tokenizer(), sentencepiece_tokenizer()
    assert own_end_of_turn(pivot) == "<|im_end|>" and own_end_of_turn(reader) == "</s>"
    text = write_text(reader, CHAT, choose_template("pivot", reader, pivot))
    assert "<|im_end|>" not in text and text.count("</s>") == 2
    assert "Two.</s>" in write_text(reader, CHAT, choose_template("plain", reader))
    assert "Two.<|im_end|>" in write_text(pivot, CHAT, choose_template("plain", pivot))


def test_what_a_template_setting_means() -> None:
    tokenizer = byte_level_tokenizer()
    assert choose_template("none", tokenizer).kind == "none"
    assert choose_template("native", tokenizer).kind == "native"
    assert choose_template("{{ messages }}", tokenizer).source == "{{ messages }}"
    assert choose_template("chatml", tokenizer).source == BUILT_IN["chatml"]
    with pytest.raises(RecipeError, match="'alpaca' is not known"):
        choose_template("alpaca", tokenizer)
    with pytest.raises(RecipeError, match="'pivot' is not known"):
        choose_template("pivot", tokenizer)


def test_a_row_of_role_text_stands_alone_and_a_system_message_joins_the_first_question() -> None:
    tokenizer = byte_level_tokenizer()
    native = choose_template("native", tokenizer)
    text = {"role": "text", "content": "Plain."}
    rendered = render_all(tokenizer, [[text], [text, *CHAT], [], [{"role": "judge", "content": "x"}]], native)
    assert [isinstance(made, AlignmentError) for made in rendered] == [False, True, True, True]
    assert "unknown role 'text'" in str(rendered[1]) and "no messages" in str(rendered[2])
    assert "message 0 has the unknown role 'judge'" in str(rendered[3])
    strict = sentencepiece_tokenizer()  # Its template knows no system message.
    system = {"role": "system", "content": "Be brief."}
    joined = [{"role": "user", "content": "Be brief.\n\nOne?"}, CHAT[1]]
    ours, theirs = render_all(strict, [[system, *CHAT], joined], choose_template("native", strict))
    assert not isinstance(ours, AlignmentError) and not isinstance(theirs, AlignmentError)
    assert ours.input_ids.tolist() == theirs.input_ids.tolist()
    assert [turn.start for turn in ours.turns] == [turn.start for turn in theirs.turns]


def test_a_template_that_leaves_out_a_turn_is_refused_and_names_it() -> None:
    tokenizer = byte_level_tokenizer()
    dropping = "{% for m in messages if m.content != 'Skip me.' %}<|im_start|>{{ m.role }} {{ m.content }}{% endfor %}"
    chat = [*CHAT, {"role": "user", "content": "Skip me."}, {"role": "assistant", "content": "Three."}]
    (rendered,) = render_all(tokenizer, [chat], choose_template(dropping, tokenizer))
    assert isinstance(rendered, AlignmentError) and "leaves out message 2 (role 'user')" in str(rendered)
