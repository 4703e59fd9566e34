"""Conversations as tokens: which tokens are answer, and at which byte of the answer each of them ends.

templates.py    how a conversation is written as text: native, none, a built-in, or the pivot's template
spans.py        where the answers stand in that text, found by rendering and never by searching
token_ends.py   the byte at which every token ends
rendered.py     the result, `Rendered` and its `Turn`s, and how it is cut to a length
rendering.py    the four together
vocabulary.py   what each token id stands for, in bytes
answer_tokens.py  the answer tokens of a whole shard, in columns
prompts.py      what a model reads before it answers
"""

from fusion_ray.chat.rendered import Rendered, Turn, break_off, cut
from fusion_ray.chat.rendering import render, render_all
from fusion_ray.chat.templates import BUILT_IN, Template, choose_template, pivot_template

__all__ = [
    "BUILT_IN",
    "Rendered",
    "Template",
    "Turn",
    "break_off",
    "choose_template",
    "cut",
    "pivot_template",
    "render",
    "render_all",
]
