"""Let one model answer questions turn by turn, each question as the model reads chats when it is scored."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusion_ray.algorithms.chat import Template, render_all
from fusion_ray.algorithms.chat.rendered import Rendered
from fusion_ray.engines.generator import Generator
from fusion_ray.errors import FusionRayError
from fusion_ray.storage.questions import Question

# Stands where the answer will: a template is only asked for whole conversations.
_PLACE = "x"


def answer_questions(
    questions: Sequence[Question], tokenizer: Any, template: Template, generator: Generator, max_tokens: int
) -> list[dict[str, Any]]:
    """Answer all questions, greedily; a second turn is asked after the model's own first answer.

    Args:
        questions: What to ask.
        tokenizer: The model's fast tokenizer.
        template: How the model reads chats.
        generator: The model.
        max_tokens: Of one answer.

    Returns:
        For each question its `question_id`, the answers `turns`, and the `reason` why there are fewer of them than
        questions, else None.
    """
    made: list[dict[str, Any]] = [{"question_id": question.id, "turns": [], "reason": None} for question in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [n for n, q in enumerate(questions) if turn < len(q.turns) and made[n]["reason"] is None]
        chats = [_conversation(questions[n], made[n]["turns"]) for n in asked]
        prompts: dict[int, np.ndarray] = {}
        ends: set[int] = set()
        for n, rendered in zip(asked, render_all(tokenizer, chats, template), strict=True):
            made[n]["reason"] = _why_not(rendered, generator.max_length)
            if isinstance(rendered, Rendered) and made[n]["reason"] is None:
                last = rendered.turns[-1]
                prompts[n] = rendered.input_ids[: last.start]
                ends |= {int(rendered.input_ids[last.stop - 1])} if last.ended else set()
        texts = generator.generate(list(prompts.values()), max_tokens=max_tokens, end_ids=sorted(ends))
        for n, text in zip(prompts, texts, strict=True):
            made[n]["turns"].append(text.strip())
    return made


def _conversation(question: Question, answers: Sequence[str]) -> list[dict[str, str]]:
    messages = []
    for user, answer in zip(question.turns, [*answers, _PLACE], strict=False):
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return messages


def _why_not(rendered: Rendered | FusionRayError, max_length: int | None) -> str | None:
    """Why the model cannot be asked, None where it can."""
    if isinstance(rendered, FusionRayError):
        return str(rendered)
    start = rendered.turns[-1].start
    if max_length is not None and start >= max_length:
        return f"the question has {start} tokens, and the model reads at most {max_length} with the answer"
    return None
