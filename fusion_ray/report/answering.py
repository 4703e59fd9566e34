"""Let one model answer a judge's questions, turn by turn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusion_ray.chat import Template
from fusion_ray.chat.prompts import STAND_IN, make_prompts
from fusion_ray.models.generator import Generator
from fusion_ray.report.questions import Question


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
        for n, prompt in zip(asked, make_prompts(chats, tokenizer, template, generator.max_length), strict=True):
            made[n]["reason"] = prompt.reason
            if prompt.reason is None:
                prompts[n] = prompt.input_ids
                ends |= prompt.ends
        texts = generator.generate(list(prompts.values()), max_tokens=max_tokens, end_ids=sorted(ends))
        for n, text in zip(prompts, texts, strict=True):
            made[n]["turns"].append(text.strip())
    return made


def _conversation(question: Question, answers: Sequence[str]) -> list[dict[str, str]]:
    messages = []
    for user, answer in zip(question.turns, [*answers, STAND_IN], strict=False):
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return messages
