"""The demo's three kinds of tokenizer and its chat templates."""

import pytest
from tokenizers import Tokenizer

from fusion_ray.demo.chats import Texts, all_chats
from fusion_ray.demo.vocabularies import STYLES, TRAINERS, as_hugging_face

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
