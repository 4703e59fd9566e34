"""Questions for a judge, in MT-Bench's JSON lines: question_id, category, turns, and sometimes reference."""

import json
from dataclasses import dataclass
from typing import Any

from fusion_ray.errors import FusionRayError, RecipeError
from fusion_ray.storage.filesystem import read_bytes


@dataclass(frozen=True)
class Question:
    """One or two turns of a user, to be answered by every model.

    Attributes:
        id: As text; unique in its file.
        category: Such as `writing`.
        turns: What the user says.
        reference: A correct answer to each turn, or nothing.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()


def read_questions(uri: str) -> list[Question]:
    """Read a file of questions.

    Raises:
        RecipeError: There is no such file, or a line of it is not a question.
    """
    try:
        lines = read_bytes(uri).decode().splitlines()
    except (FusionRayError, UnicodeDecodeError) as error:
        raise RecipeError(f"judge.questions: {uri} cannot be read ({error}).") from error
    questions = [_question(line, f"{uri} line {n}") for n, line in enumerate(lines, start=1) if line.strip()]
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise RecipeError(f"{uri}: question_id {question.id} occurs twice. Give every question an id of its own.")
        seen.add(question.id)
    if not questions:
        raise RecipeError(f"{uri}: it holds no question. Expected one JSON object a line.")
    return questions


def _question(line: str, where: str) -> Question:
    try:
        row = dict(json.loads(line))
        turns, reference = _texts(row["turns"]), _texts(row.get("reference") or [])
        found = Question(str(row["question_id"]), str(row.get("category") or "all"), turns, reference)
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(
            f"{where}: not a question ({type(error).__name__}: {error}). Expected MT-Bench's format, such as "
            '{"question_id": 81, "category": "writing", "turns": ["...", "..."]}.'
        ) from error
    if len(turns) not in (1, 2) or len(reference) not in (0, len(turns)):
        raise RecipeError(
            f"{where}: {len(turns)} turns and {len(reference)} references; expected one or two turns, and a reference "
            "for each of them or for none."
        )
    return found


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("expected a list of texts")
    return tuple(values)
