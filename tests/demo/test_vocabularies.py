"""The demo's three kinds of tokenizer and its chat templates."""

from collections import Counter

import pytest
from tokenizers import Tokenizer

from fusion_ray.demo.chats import Texts, all_chats
from fusion_ray.demo.vocabularies import (
    STYLES,
    TRAINERS,
    _count_pieces,
    _count_words,
    _most_counted,
    _most_used_characters,
    as_hugging_face,
)

STRANGE = ("Größe — 漢字, עברית, 🎉", "def f(x):\n    return  x + 1\n\n\tpass", "▁ <0x41> </s", "a", "two  spaces  ")
FEW = Texts(code="[a-c]*.py", packages=("jinja2",), languages=("english",))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text for chat in all_chats(FEW) for text in chat.turns]


def _train(kind: str, texts: list[str], style: str = "inst", size: int = 700) -> Tokenizer:
    return TRAINERS[kind](texts, size, STYLES[style])


@pytest.mark.parametrize("kind", TRAINERS)
def test_any_text_comes_back_whole(kind: str, texts: list[str]) -> None:
    tokenizer = _train(kind, texts)
    for text in (*texts[:300], *(s for s in STRANGE if kind == "byte_bpe" or "▁" not in s)):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("kind", TRAINERS)
def test_training_again_gives_the_same_tokenizer(kind: str, texts: list[str]) -> None:
    assert _train(kind, texts).to_str() == _train(kind, texts).to_str()


@pytest.mark.parametrize("kind", TRAINERS)
def test_rare_characters_do_not_make_training_random(kind: str, texts: list[str]) -> None:
    rare = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 900))  # More than fit, each as rare as the others.
    assert _train(kind, [*texts, rare]).to_str() == _train(kind, [*texts, rare]).to_str()


@pytest.mark.parametrize("kind", TRAINERS)
def test_ids_are_dense_and_as_many_as_asked_for(kind: str, texts: list[str]) -> None:
    assert sorted(_train(kind, texts).get_vocab().values()) == list(range(700))


def test_unigram_spends_fewer_tokens_than_characters_by_far(texts: list[str]) -> None:
    tokenizer = _train("unigram", texts)
    tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
    assert tokens < 0.45 * sum(map(len, texts))


@pytest.mark.parametrize("style", STYLES)
def test_a_template_marks_turns_with_special_tokens_and_ends_answers(style: str, texts: list[str]) -> None:
    tokenizer = as_hugging_face(_train("byte_bpe", texts, style), STYLES[style])
    chat = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert text.index("One?") < text.index("Two.") < text.rindex(STYLES[style].end)
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.eos_token_id) >= 1
    opened = str(tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True))
    assert text.startswith(opened)
    assert not opened.endswith(" ")


PLAIN = [
    "the cat sat on the mat.\n", "the cat and the hat", "  a  bat", "def f(x):\n    return x + 1\n",
    "Ärger über öl, naïve 12345 it's we'll",
] * 3  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "size", "cuts"),
    [
        (
            "byte_bpe",
            300,
            [
                "the|Ġcat|Ġ|sat",
                "Ġ|Ġthe|Ġ|bat|'s|Ċ|Ċ|ĠĠ|Ġ|Ġ|ret|urn|Ġ|1|2|3",
                "Ã|ĸ|l|Ã|©|Ġ|[INST]|æ|¼|¢",
            ],
        ),
        (
            "unigram",
            420,
            [
                "the|▁cat|▁sat",
                "▁|▁the|▁bat|'s|\n|\n▁▁▁|▁return|▁123",
                "<0xC3>|<0x96>|l|<0xC3>|<0xA9>|▁|[INST]|<0xE6>|<0xBC>|<0xA2>",
            ],
        ),
        (
            "sentencepiece_bpe",
            360,
            [
                "▁the|▁cat|▁sat",
                "▁|▁the|▁bat|'s|\n|\n▁▁▁|▁ret|urn|▁123",
                "▁|<0xC3>|<0x96>|l|<0xC3>|<0xA9>|▁|[INST]|<0xE6>|<0xBC>|<0xA2>",
            ],
        ),
    ],
)
def test_each_kind_cuts_text_in_its_own_way(kind: str, size: int, cuts: list[str]) -> None:
    tokenizer = _train(kind, PLAIN, size=size)
    for text, cut in zip(("the cat sat", "  the bat's\n\n    return 123", "Ölé [INST]漢"), cuts, strict=True):
        assert tokenizer.encode(text).tokens == cut.split("|")
        assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text.replace("[INST]", "").strip()


def test_special_tokens_come_first_and_unknown_bytes_after_them_where_there_are_such() -> None:
    specials = ["<s>", "</s>", "[INST]", "[/INST]"]
    for kind, first in (("byte_bpe", specials), ("unigram", ["<unk>", *specials, "<0x00>"])):
        tokenizer = _train(kind, PLAIN, size=420)
        assert [tokenizer.id_to_token(n) for n in range(len(first))] == first
    bpe = _train("sentencepiece_bpe", PLAIN, size=360)
    assert [bpe.id_to_token(n) for n in (0, 1, 5, 260, 261)][:4] == ["<unk>", "<s>", "<0x00>", "<0xFF>"]
    for kind in TRAINERS:
        tokenizer = _train(kind, PLAIN, size=420)
        added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
        assert set(added) == {*specials, *(["<unk>"] if kind != "byte_bpe" else [])}
        assert all(token.special and not token.normalized for token in added.values())


def test_the_alphabet_is_of_the_most_used_characters_and_ties_go_by_their_order() -> None:
    assert _most_used_characters(Counter({"ba": 2, "c": 2, "d": 5, "ab": 1}), 3) == ["d", "a", "b"]
    assert _most_used_characters(Counter({"ba": 2, "c": 2}), 9) == ["a", "b", "c"]
    assert _count_words(["a b  a", "a b"]) == {"a": 2, "▁b": 2, "▁": 1, "▁a": 1}


def test_single_characters_are_kept_before_the_pieces_used_most() -> None:
    used = Counter({"abc": 9, "xy": 9, "a": 0, "z": 1, "long": 2})
    assert _most_counted(used, 4) == {"z": 1.5, "a": 0.5, "abc": 9.5, "xy": 9.5}


def test_pieces_are_counted_where_the_most_probable_cut_uses_them() -> None:
    counts = {"a": 1.0, "b": 1.0, "ab": 8.0, "aba": 0.001}
    # "aba" is cut in two, for 0.1 * 0.8 is more than 0.0001; "aa" into single letters.
    assert _count_pieces(counts, Counter({"aba": 3, "aa": 2})) == {"a": 7, "b": 0, "ab": 3, "aba": 0}


@pytest.mark.parametrize(
    ("style", "specials", "text", "opened"),
    [
        (
            "chatml",
            (None, "<|im_end|>", "<|endoftext|>"),
            "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n",
            "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("inst", ("<s>", "</s>", "</s>"), "<s>[INST] One? [/INST] Two.</s>", "<s>[INST] One? [/INST]"),
        (
            "prompter",
            (None, "<|endoftext|>", "<|endoftext|>"),
            "<|prompter|>One?<|endoftext|><|assistant|>Two.<|endoftext|>",
            "<|prompter|>One?<|endoftext|><|assistant|>",
        ),
        (
            "headers",
            ("<s>", "</s>", "</s>"),
            "<s><|user|>\nOne?</s>\n<|assistant|>\nTwo.</s>\n",
            "<s><|user|>\nOne?</s>\n<|assistant|>\n",
        ),
    ],
)
def test_a_style_has_its_special_tokens_and_its_template(
    style: str, specials: tuple[str | None, str, str], text: str, opened: str
) -> None:
    tokenizer = as_hugging_face(_train("byte_bpe", PLAIN, style, size=300), STYLES[style])
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (*specials, None)
    assert tokenizer.decode(tokenizer("the cat .").input_ids) == "the cat ."
    chat = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == text
    assert tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True) == opened
    with_unknown = as_hugging_face(_train("unigram", PLAIN, style, size=420), STYLES[style])
    assert with_unknown.unk_token == "<unk>"
