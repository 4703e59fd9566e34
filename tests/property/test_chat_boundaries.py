"""Laws of rendering: any conversation, any tokenizer."""

import numpy as np
import toys.models as toy_models
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_ray.chat import render
from fusion_ray.chat.vocabulary import read_vocabulary

contents = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
conversations = st.lists(st.tuples(contents, contents), min_size=1, max_size=3)


def as_messages(pairs):
    """User and assistant turns in turn."""
    return [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]


@settings(max_examples=80, deadline=None)
@given(conversations)
def test_a_byte_level_answer_is_the_bytes_of_its_tokens(pairs):
    tokenizer = toy_models.byte_level_tokenizer()
    rendered = render(tokenizer, as_messages(pairs))
    for (_, answer), turn in zip(pairs, rendered.turns, strict=True):
        ids = rendered.input_ids[turn.start : turn.stop - 1]
        pieces = b"".join(read_vocabulary(tokenizer).tokens[i] for i in ids)
        assert answer.encode() in pieces
        assert turn.ended and turn.n_bytes == len(answer.encode())
        assert turn.boundaries[-1] == turn.n_bytes


@settings(max_examples=80, deadline=None)
@given(conversations, st.sampled_from(["byte-level with NFC", "SentencePiece"]))
def test_boundaries_rise_to_the_end_of_every_answer_in_any_tokenizer(pairs, kind):
    tokenizer = {
        "byte-level with NFC": lambda: toy_models.byte_level_tokenizer(normalizer="NFC"),
        "SentencePiece": toy_models.sentencepiece_tokenizer,
    }[kind]()
    rendered = render(tokenizer, as_messages(pairs))
    for (_, answer), turn in zip(pairs, rendered.turns, strict=True):
        assert turn.ended and turn.n_bytes == len(answer.encode())
        assert (np.diff(turn.boundaries) >= 0).all() and turn.boundaries[-1] == turn.n_bytes
        # A character is inside one token, or its bytes are shared out between tokens of a byte each.
        assert len(turn) <= len(answer.encode()) + 3
