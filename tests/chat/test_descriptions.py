"""What a tokenizer's own description says of its tokens, read from descriptions by hand."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusion_ray.chat import vocabulary
from fusion_ray.chat.vocabulary import control_tokens, find_marker, list_tokens, make_vocabulary, read_vocabulary
from fusion_ray.errors import RecipeError

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
BACK = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
METASPACE = {"type": "Metaspace", "replacement": "_"}
PREPEND = {"type": "Prepend", "prepend": "▁"}


def described(model: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    empty = {"decoder": None, "pre_tokenizer": None, "normalizer": None}
    return {"model": {"type": "BPE"} | (model or {}), **empty, **parts}


def sequence(kind: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(parts)}


def test_sequences_are_opened_to_any_depth_and_nothing_else_is() -> None:
    inner = sequence("decoders", BACK, sequence("pretokenizers", METASPACE), {"type": "Sequence"})
    assert list(vocabulary.walk(None, sequence("normalizers", PREPEND), inner, REPLACE)) == [
        PREPEND, BACK, METASPACE, REPLACE
    ]  # fmt: skip
    assert list(vocabulary.walk()) == list(vocabulary.walk(sequence("normalizers"))) == []


@pytest.mark.parametrize(
    ("parts", "marker"),
    [
        ({}, ""),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "Ġ"),
        ({"normalizer": {"type": "ByteLevel"}}, "Ġ"),
        ({"decoder": {"type": "ByteLevel"}, "pre_tokenizer": METASPACE}, "Ġ"),
        ({"decoder": METASPACE}, "_"),
        ({"decoder": sequence("decoders", {"type": "Fuse"}, BACK)}, "▁"),
        ({"normalizer": sequence("normalizers", PREPEND, REPLACE)}, "▁"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}}, ""),
        ({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": " "}}, " "),
        ({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": ""}}, ""),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": "y"}}, ""),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": "y"}, "pre_tokenizer": METASPACE},
         "_"),
    ],
)  # fmt: skip
def test_what_is_written_for_a_space_is_what_replaces_it(parts: dict[str, Any], marker: str) -> None:
    assert find_marker(described(**parts)) == marker


@pytest.mark.parametrize(
    ("model", "decoder", "kind"),
    [
        ({}, None, ""),
        ({"type": "Unigram"}, METASPACE, ""),
        ({"type": "WordPiece"}, None, "WordPiece"),
        ({"end_of_word_suffix": "</w>"}, None, "BPE"),
        ({"end_of_word_suffix": ""}, None, ""),
        ({}, {"type": "BPEDecoder"}, "BPE"),
        ({}, sequence("decoders", BACK, {"type": "CTC"}), "BPE"),
        ({}, {"type": "WordPiece"}, "BPE"),
    ],
)
def test_tokens_that_never_join_to_the_text_are_known_by_their_model_or_decoder(
    model: dict[str, Any], decoder: Any, kind: str
) -> None:
    assert vocabulary._unjoinable(described(model, decoder=decoder)) == kind


@pytest.mark.parametrize(
    ("parts", "lossless"),
    [
        ({}, True),
        ({"normalizer": sequence("normalizers", PREPEND, REPLACE, {"type": "ByteLevel"})}, True),
        ({"normalizer": {"type": "NFC"}}, False),
        ({"normalizer": sequence("normalizers", PREPEND, {"type": "Strip"})}, False),
        ({"normalizer": BACK}, False),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": " "}, "content": "x"}}, False),
        ({"pre_tokenizer": METASPACE}, True),
        ({"pre_tokenizer": {"type": "Whitespace"}}, False),
        ({"pre_tokenizer": sequence("pretokenizers", METASPACE, {"type": "WhitespaceSplit"})}, False),
        ({"pre_tokenizer": {"type": "Split", "behavior": "Isolated", "invert": False}}, True),
        ({"pre_tokenizer": {"type": "Split", "behavior": "Removed", "invert": False}}, False),
        ({"pre_tokenizer": {"type": "Split", "behavior": "Removed"}}, False),
        ({"pre_tokenizer": {"type": "Split", "behavior": "Removed", "invert": True}}, True),
        ({"pre_tokenizer": {"type": "Split", "behavior": "Isolated", "invert": True}}, True),
    ],
)
def test_what_may_change_a_text_is_noticed(parts: dict[str, Any], lossless: bool) -> None:
    assert vocabulary._is_lossless(described(**parts)) is lossless


def test_a_vocabulary_lists_its_tokens_in_either_shape() -> None:
    assert list_tokens(described({"vocab": {"a": 3, "b": 1}})) == [("a", 3), ("b", 1)]
    assert list_tokens(described({"vocab": [["a", -1.0], ["b", -2.0]]})) == [("a", 0), ("b", 1)]
    known = [("a", 0), ("<unk>", 1)]
    assert vocabulary._unknown_token({"type": "BPE", "unk_token": "<unk>"}, known) == {1}
    assert vocabulary._unknown_token({"type": "BPE"}, known) == set()
    assert vocabulary._unknown_token({"type": "Unigram", "unk_id": 0}, known) == {0}
    assert vocabulary._unknown_token({"type": "Unigram", "unk_id": None}, known) == set()


def test_every_byte_has_the_letter_that_gpt2_gave_it() -> None:
    alphabet = vocabulary.byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256)) and set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    expected = {0x21: "!", 0x7E: "~", 0xA1: "¡", 0xAC: "¬", 0xAE: "®", 0xFF: "ÿ"} | {
        0: "Ā", 0x20: "Ġ", 0x7F: "ġ", 0xA0: "ł", 0xAD: "Ń"
    }  # fmt: skip
    letters = {byte: letter for letter, byte in alphabet.items()}
    assert {byte: letters[byte] for byte in expected} == expected
    read = vocabulary._read_byte_level(alphabet)
    assert [read(token) for token in ("Ġa", "Ã©", "Āÿ", "", "漢", "a漢")] == [
        b" a", "é".encode(), b"\x00\xff", b"", "漢".encode(), "a漢".encode()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("token", "marker", "has_bytes", "found"),
    [
        ("<0x41>", "▁", True, b"A"),
        ("<0xFF>", None, True, b"\xff"),
        ("<0x41>", "▁", False, b"<0x41>"),
        ("<0xZZ>", "▁", True, b"<0xZZ>"),
        ("<0x414>", "▁", True, b"<0x414>"),
        ("<0x41)", "▁", True, b"<0x41)"),
        ("(0x41>", "▁", True, b"(0x41>"),
        ("▁a▁", "▁", True, b" a "),
        ("▁a", None, True, "▁a".encode()),
    ],
)
def test_a_token_is_a_byte_only_where_there_are_byte_tokens(
    token: str, marker: str | None, has_bytes: bool, found: bytes
) -> None:
    assert vocabulary._read_marked(token, marker, has_bytes) == found


def test_byte_tokens_are_those_of_the_model_or_of_its_decoder() -> None:
    fallback = {"type": "ByteFallback"}
    assert [
        vocabulary._has_byte_tokens(described({"byte_fallback": given}, decoder=decoder))
        for given in (True, False, None)
        for decoder in (fallback, sequence("decoders", BACK, fallback), BACK)
    ] == [True, True, True, True, True, False, True, True, False]


def marked_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"▁a": 0, "<unk>": 1, "▁b": 2, "<0x41>": 3, "<s>": 4}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer.add_special_tokens(["<s>", "▁▁e"])
    tokenizer.add_tokens(["▁b", "▁new"])
    return tokenizer


def test_added_tokens_are_read_as_the_model_s_own_only_where_they_are_and_are_not_special() -> None:
    read = read_vocabulary(marked_tokenizer())
    assert read.tokens == [b" a", b"", b" b", b"A", b"<s>", "▁▁e".encode(), "▁new".encode()]
    assert np.flatnonzero(read.is_special_V).tolist() == [1, 4, 5]
    assert (read.added, read.lossless, read.unjoinable, len(read)) == (frozenset({2, 4, 5, 6}), True, "", 7)
    assert read.lengths_V.tolist() == [2, 0, 2, 1, 3, 7, 6]
    assert read.token(2) == b" b" and read.text([2, 3, np.int32(0)]) == b" bA a"


@pytest.mark.parametrize(
    ("named", "ids", "texts"),
    [
        ({}, {4, 5}, ("▁▁e", "<s>")),
        ({"eos_token": "<s>"}, {4, 5}, ("▁▁e", "<s>")),
        ({"bos_token": "<s>"}, {5}, ("▁▁e",)),
        ({"bos_token": "<s>", "eos_token": "<s>"}, {4, 5}, ("▁▁e", "<s>")),
        ({"bos_token": "<s>", "eos_token": "▁▁e"}, {5}, ("▁▁e",)),
    ],
)
def test_what_may_end_a_turn_is_every_special_token_but_the_first_of_a_text(
    named: dict[str, str], ids: set[int], texts: tuple[str, ...]
) -> None:
    found = control_tokens(PreTrainedTokenizerFast(tokenizer_object=marked_tokenizer(), **named))
    assert found.ids == ids and sorted(found.texts) == sorted(texts)
    assert [len(text) for text in found.texts] == sorted((len(text) for text in found.texts), reverse=True)


def test_vocabularies_are_compared_by_offsets_bytes_and_flags() -> None:
    one = make_vocabulary([b"ab", b"c"], special=[1])
    assert one.same_as(make_vocabulary([b"ab", b"c"], special=[1], lossless=False))
    for other in (
        make_vocabulary([b"a", b"bc"], special=[1]), make_vocabulary([b"ab", b"d"], special=[1]),
        make_vocabulary([b"ab", b"c"], special=[0]),
    ):  # fmt: skip
        assert not one.same_as(other) and not other.same_as(one)
    assert (one.offsets.tolist(), one.flat_bytes.tobytes(), one.lossless) == ([0, 2, 3], b"abc", True)
    assert len(read_vocabulary(Tokenizer(models.BPE({}, [])))) == 0
    assert len(make_vocabulary([])) == 0 and one.flat_bytes.flags.writeable
    with pytest.raises(RecipeError, match="object is no fast tokenizer"):
        vocabulary.describe(object())
