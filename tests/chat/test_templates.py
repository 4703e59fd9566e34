"""Chat templates of one's own and of others: what each setting means, and what is missing from foreign ones."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, processors
from toys.models import byte_level_tokenizer, sentencepiece_tokenizer
from transformers import PreTrainedTokenizerFast

from fusion_ray.chat import choose_template, render_all
from fusion_ray.chat.templates import BUILT_IN, Template, own_end_of_turn, pivot_template, write_text
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


PARTS = "{{ bos_token }}|{{ eos_token }}|{{ end_of_turn }}|{{ date_string }}|{{ strftime_now('%d.%m.%y') }}"
TURNS = "{% for m in messages %}{{ m.content }}{{ end }}{% endfor %}"


def words(*special: str, bos: bool = False, **named: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of one letter and some control tokens; with `bos`, texts begin with the first of them."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "<|im_start|>": 1, "<|im_end|>": 2}, []))
    tokenizer.add_special_tokens(list(special))
    if bos:
        first = (special[0], tokenizer.token_to_id(special[0]))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[first])
    template = named.pop("template", None)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("tokenizer", "template", "text"),
    [
        (words("<s>", "<e>", bos_token="<s>", eos_token="<e>"), Template("jinja", PARTS),
         "<s>|<e>|<e>|26 Jul 2024|26.07.24"),
        (words(), Template("jinja", PARTS), "|||26 Jul 2024|26.07.24"),
        (words("<e>", eos_token="<e>", template=PARTS), Template("native"), "|<e>||26 Jul 2024|26.07.24"),
        (words("<e>", eos_token="<e>"), Template("jinja", PARTS + "<x>", "<x>"), "|<e>|<e>|26 Jul 2024|26.07.24<e>"),
        (words("<e>", "<f>", eos_token="<e>", template=TURNS.replace("{{ end }}", "<f>")),
         Template("jinja", PARTS + "<x>", "<x>"), "|<f>|<f>|26 Jul 2024|26.07.24<f>"),
        (words("<e>", "<f>", eos_token="<e>", template=TURNS.replace("{{ end }}", "<f>")),
         Template("jinja", PARTS + "<x>"), "|<e>|<f>|26 Jul 2024|26.07.24<x>"),
        (words("<e>"), Template("jinja"), ""),
    ],
)  # fmt: skip
def test_a_template_knows_the_reader_s_own_tokens_and_one_day(
    tokenizer: PreTrainedTokenizerFast, template: Template, text: str
) -> None:
    assert write_text(tokenizer, CHAT, template) == text


@pytest.mark.parametrize(
    ("bos", "source", "text"),
    [
        (True, "x", "<s>x"),
        (True, "<s>x", "<s>x"),
        (True, None, "own"),
        (True, "own", "own"),
        (False, "x", "x"),
    ],
)
def test_a_foreign_template_without_bos_gets_it_where_texts_begin_with_it(
    bos: bool, source: str | None, text: str
) -> None:
    tokenizer = words("<s>", bos=bos, bos_token="<s>", template="own")
    template = Template("native") if source is None else Template("jinja", source)
    assert write_text(tokenizer, CHAT, template) == text
    without = words("<s>", bos=bos, template="own")
    assert write_text(without, CHAT, template) == (source or "own")


@pytest.mark.parametrize(
    ("tokenizer", "source", "end"),
    [
        (words("<e>", eos_token="<e>"), None, "<e>"),
        (words(), None, ""),
        (words(), BUILT_IN["chatml"], ""),
        (words("<|im_end|>", "<e>", eos_token="<e>"), BUILT_IN["chatml"], "<|im_end|>"),
        (words("<|im_end|>", "<e>", eos_token="<e>"), BUILT_IN["plain"], "<e>"),
        (words("<|im_end|>", "<e>", eos_token="<e>"), None, "<e>"),
        (words("<|im_end|>", "<e>", eos_token="<e>", template=TURNS), BUILT_IN["chatml"], "<e>"),
        (words("<f>", "<f>>", "<e>", eos_token="<e>", template=TURNS.replace("{{ end }}", " \n<f>>")), None, "<f>>"),
        (words("<f>", "<e>", eos_token="<e>", template=TURNS.replace("{{ end }}", ".<f>")), None, "<e>"),
        (words("<f>", "<e>", eos_token="<e>", template=TURNS.replace("{{ end }}", "<g>")), None, "<e>"),
    ],
)
def test_the_end_of_a_turn_is_what_the_reader_s_own_template_writes_or_chatml_or_eos(
    tokenizer: PreTrainedTokenizerFast, source: str | None, end: str
) -> None:
    assert own_end_of_turn(tokenizer, source) == end
    assert own_end_of_turn(tokenizer, source) == end, "and the same when asked again"


def test_the_pivot_s_template_goes_with_its_own_end_of_turn() -> None:
    source = TURNS.replace("{{ end }}", "<f>")
    pivot = words("<f>", template=source)
    assert pivot_template(pivot) == choose_template("pivot", words(), pivot) == Template("jinja", source, "<f>")
    settings = ("native", "none", "plain", "{{ 1 }}", "{% if 1 %}{% endif %}")
    assert [choose_template(given, pivot) for given in settings] == [
        Template("native"), Template("none"), Template("jinja", BUILT_IN["plain"]), Template("jinja", "{{ 1 }}"),
        Template("jinja", "{% if 1 %}{% endif %}"),
    ]  # fmt: skip
    for given, said in (("native", "it has no chat template"), ("pivot", "'pivot' is not known")):
        with pytest.raises(RecipeError, match=said):
            choose_template(given, words())
    with pytest.raises(RecipeError, match="it has no chat template"):
        pivot_template(words())


def test_only_a_system_message_before_a_question_joins_it() -> None:
    tokenizer = sentencepiece_tokenizer()
    native = choose_template("native", tokenizer)
    system, question, answer = {"role": "system", "content": "Be brief."}, *CHAT
    (alone, late, other, blank, joined) = render_all(
        tokenizer,
        [[system], [system, answer], [{"role": "tool", "content": "x"}, question, answer],
         [{"role": "user", "content": None}, answer], [system, question, answer]],
        native,
    )  # fmt: skip
    for refused, roles in ((alone, "system"), (late, "system, assistant"), (other, "tool, user, assistant")):
        assert f"the chat template refuses a conversation of roles {roles}: " in str(refused)
    assert not isinstance(blank, AlignmentError) and not isinstance(joined, AlignmentError)
    text = tokenizer.decode(joined.input_ids)
    assert "[INST] Be brief.\n\nOne? [/INST] Two. " in text
    none = choose_template("none", tokenizer)
    (several,) = render_all(tokenizer, [CHAT], none)
    assert "expected one message of role text" in str(several)
    (answer_alone,) = render_all(tokenizer, [[CHAT[1]]], none)
    assert not isinstance(answer_alone, AlignmentError) and answer_alone.n_bytes == 4


def test_an_answer_needs_a_token_before_it_and_one_of_its_own() -> None:
    tokenizer = byte_level_tokenizer()
    bare = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (first, empty, later) = render_all(
        tokenizer,
        [[CHAT[1], CHAT[0]], [CHAT[0], {"role": "assistant", "content": ""}],
         [{"role": "assistant", "content": ""}, CHAT[0], CHAT[1]]],
        choose_template(bare, tokenizer),
    )  # fmt: skip
    assert "nothing predicts it" in str(first)
    assert "no token of the conversation belongs to an answer" in str(empty)
    assert not isinstance(later, AlignmentError) and not later.normalised
    assert (later.turns[0].start, len(later.turns[0])) == (0, 0)


def test_only_a_changed_answer_is_called_normalised() -> None:
    tokenizer = byte_level_tokenizer(normalizer="NFC")
    changed, plain = "cafe\u0301", "caf\u00e9"
    found = render_all(
        tokenizer,
        [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in
         ((plain, plain), (changed, plain), (plain, changed))] + [[{"role": "text", "content": text}] for text in
         (plain, changed)],
    )  # fmt: skip
    assert [not isinstance(made, AlignmentError) and made.normalised for made in found] == [
        False, False, True, False, True
    ]  # fmt: skip
