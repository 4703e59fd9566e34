"""Token ids as bytes, for every family of tokenizers."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toys.tokenizer_families import END, FAMILIES, TEXTS, end_of, read_toy, toy_tokenizer
from transformers import PreTrainedTokenizerFast

from fusion_ray.chat.vocabulary import control_tokens, make_vocabulary, read_vocabulary, refuse_unjoinable
from fusion_ray.errors import RecipeError
from fusion_ray.fused.align.encoder import MidTextEncoder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_of_a_text_join_to_the_text(family: str) -> None:
    tokenizer, vocabulary = toy_tokenizer(family), read_toy(toy_tokenizer(family))
    for text in TEXTS[:4]:
        joined = vocabulary.text(tokenizer.encode(text).ids)
        assert joined.removeprefix(b" ") == text.encode()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_middle_of_a_text_gets_no_prefix_space(family: str) -> None:
    vocabulary = read_toy(toy_tokenizer(family))
    encoder = MidTextEncoder(toy_tokenizer(family), vocabulary)
    for piece in (b"dog", b" dog", b"  ", b"og and"):
        [ids] = encoder.encode([piece])
        assert vocabulary.text(ids) == piece


@pytest.mark.parametrize("family", ["byte_bpe", "sentencepiece"])
def test_parts_of_characters_are_written_with_byte_tokens(family: str) -> None:
    vocabulary = read_toy(toy_tokenizer(family))
    encoder = MidTextEncoder(toy_tokenizer(family), vocabulary)
    pieces = ["你".encode()[:2], "a你".encode()[:3] + b"b", b"\xff\xfe", b""]
    assert [vocabulary.text(ids) for ids in encoder.encode(pieces)] == pieces


def test_a_tokenizer_without_bytes_cannot_write_what_it_has_never_seen() -> None:
    encoder = MidTextEncoder(toy_tokenizer("unigram"), read_toy(toy_tokenizer("unigram")))
    assert encoder.encode(["ж你ﷺ".encode(), b"\xe4\xbd", b"dog"])[:2] == [[], []]


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_are_special_and_others_are_not(family: str) -> None:
    tokenizer, vocabulary = toy_tokenizer(family), read_toy(toy_tokenizer(family))
    assert vocabulary.is_special_V[end_of(tokenizer)]
    assert vocabulary.token(end_of(tokenizer)) == END.encode()
    [letter] = tokenizer.encode("e").ids[-1:]
    assert not vocabulary.is_special_V[letter]
    tool = tokenizer.token_to_id("<tool>")
    if tool is not None:
        assert vocabulary.token(tool) == b"<tool>" and not vocabulary.is_special_V[tool]


def test_the_unknown_token_has_no_bytes() -> None:
    for family in ("sentencepiece", "unigram"):
        unknown = toy_tokenizer(family).token_to_id("<unk>")
        assert read_toy(toy_tokenizer(family)).token(unknown) == b""


def test_normalisers_that_change_the_text_are_noticed() -> None:
    lossless = {family: read_toy(toy_tokenizer(family)).lossless for family in FAMILIES}
    assert [family for family, kept in lossless.items() if not kept] == ["byte_bpe_nfc"]


def test_a_transformers_tokenizer_reads_as_its_backend_does() -> None:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=toy_tokenizer("byte_bpe"))
    assert read_vocabulary(wrapped).same_as(read_toy(toy_tokenizer("byte_bpe")))


def test_added_tokens_with_letters_of_the_byte_alphabet_stand_for_their_text() -> None:
    tokenizer = Tokenizer.from_str(toy_tokenizer("byte_bpe").to_str())
    tokenizer.add_tokens(["Ġé"])
    assert read_vocabulary(tokenizer).token(tokenizer.token_to_id("Ġé")) == "Ġé".encode()


def test_ids_without_a_token_have_no_bytes() -> None:
    data = json.loads(toy_tokenizer("byte_bpe").to_str())
    data["model"]["vocab"]["zzz"] = len(data["model"]["vocab"]) + 5
    vocabulary = read_vocabulary(Tokenizer.from_str(json.dumps(data)))
    assert vocabulary.tokens[-1] == b"zzz"
    assert vocabulary.tokens[-2] == b""


def test_wordpiece_and_slow_tokenizers_are_refused() -> None:
    with pytest.raises(RecipeError, match="WordPiece"):
        refuse_unjoinable(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")))
    with pytest.raises(RecipeError, match="no fast tokenizer"):
        read_vocabulary(object())


def test_vocabularies_differ_if_a_flag_differs() -> None:
    assert make_vocabulary([b"a", b"b"]).same_as(make_vocabulary([b"a", b"b"]))
    assert not make_vocabulary([b"a", b"b"]).same_as(make_vocabulary([b"ab", b""]))
    assert not make_vocabulary([b"a", b"b"]).same_as(make_vocabulary([b"a", b"b"], special=[1]))


def test_what_a_token_is_written_with_is_what_the_tokenizer_says_and_not_what_it_looks_like() -> None:
    """Rendering and alignment read one table: here `_` begins words, and `<0x41>` is six letters."""
    vocabulary = {"_a": 0, "<0x41>": 1, "▁b": 2, "_": 3, "<unk>": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="_")
    tokenizer.decoder = decoders.Metaspace(replacement="_")
    tokenizer.add_special_tokens(["<end>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")
    read = read_vocabulary(wrapped)
    assert read.tokens[:5] == [b" a", b"<0x41>", "▁b".encode(), b" ", b""]
    assert 5 in read.added and 5 in control_tokens(wrapped).ids and "<end>" in control_tokens(wrapped).texts
    assert read_vocabulary(wrapped) is read
