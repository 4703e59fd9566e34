"""What a model reads before it answers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fusion_ray.chat import Template, render_all
from fusion_ray.chat.rendered import Rendered
from fusion_ray.chat.templates import find_ending
from fusion_ray.errors import FusionRayError

# Stands where the answer will: a template is only asked for whole conversations.
STAND_IN = "x"


class Prompt(NamedTuple):
    """What a model reads before it answers, the tokens that end its answers, and why it cannot be asked."""

    input_ids: np.ndarray
    ends: set[int]
    reason: str | None


def make_prompts(
    chats: Sequence[list[dict[str, str]]], tokenizer: Any, template: Template, max_length: int | None
) -> list[Prompt]:
    """Chats that end with a stand-in for the answer, as the model reads them before it."""
    nothing = np.zeros(0, dtype=np.int32)
    ends = set(find_ending(tokenizer, template).ids if template.kind != "none" else ())
    prompts = []
    for rendered in render_all(tokenizer, chats, template):
        reason = _why_not(rendered, max_length)
        if reason is None and isinstance(rendered, Rendered):
            last = rendered.turns[-1]
            own = {int(rendered.input_ids[last.stop - 1])} if last.ended else set()
            prompts.append(Prompt(rendered.input_ids[: last.start], own | ends, None))
        else:
            prompts.append(Prompt(nothing, set(), reason))
    return prompts


def _why_not(rendered: Rendered | FusionRayError, max_length: int | None) -> str | None:
    """Why the model cannot be asked, None where it can."""
    if isinstance(rendered, FusionRayError):
        return str(rendered)
    start = rendered.turns[-1].start
    if max_length is not None and start >= max_length:
        return f"the question has {start} tokens, and the model reads at most {max_length} with the answer"
    return None
