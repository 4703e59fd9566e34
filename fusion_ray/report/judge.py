"""The report's judge: every model answers the questions as Ray tasks, then a judge behind a server grades them.

Writes in the report's folder: judge/answers/<model>.jsonl (MT-Bench's answer format), judge/replies/ (what the judge
was asked and wrote, so that nothing is asked twice), judge/judgments.jsonl (what was read from it).
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from fusion_ray.distributions.score import open_reader
from fusion_ray.models.opening import make_generator
from fusion_ray.on_ray import streams
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import Recipe
from fusion_ray.report.answering import answer_questions
from fusion_ray.report.evaluated_models import Entrant
from fusion_ray.report.judge_client import JudgeClient, Reply
from fusion_ray.report.judging import describe_judging, list_judgments, summarise_judgments
from fusion_ray.report.judgments import read_choice, read_rating
from fusion_ray.report.numbers import derive_seed
from fusion_ray.report.questions import Question, read_questions
from fusion_ray.storage.filesystem import exists, join, read_bytes, write_bytes


def judge_models(recipe: Recipe, folder: str, entrants: list[Entrant], tell: Tell) -> dict[str, Any] | None:
    """Have all models answer and be judged; None where the recipe has no judge.

    Args:
        recipe: The run.
        folder: The report's.
        entrants: Every model of the run, the merged one among them.
        tell: Receives progress.

    Raises:
        EngineError: A model or the judge's server failed; answers and replies so far are kept.
        RecipeError: The questions cannot be read.
    """
    if recipe.judge is None:
        return None
    place = join(folder, "judge")
    questions = read_questions(recipe.judge.questions)
    answers = _answer(recipe, place, questions, entrants, tell)
    judgments = list_judgments(recipe.judge.kinds, questions, answers)
    client = JudgeClient(recipe.judge, join(place, "replies"))
    n = len(judgments)
    chats = [judgment.pop("chat") for judgment in judgments]
    replies = client.ask(chats, lambda done: tell(Progress("report", done, n + 1, f"{done} of {n} judgments")))
    for judgment, reply in zip(judgments, replies, strict=True):
        read = read_rating(reply.text) if judgment["kind"] == "single" else read_choice(reply.text)
        judgment |= {"rating" if judgment["kind"] == "single" else "winner": read, "reply": reply.text}
    _write_lines(join(place, "judgments.jsonl"), judgments)
    seed = derive_seed(recipe.seed, "report judge")
    summary = summarise_judgments(judgments, questions, recipe.report.bootstrap, seed)
    return describe_judging(recipe.judge.model, questions, answers) | summary | _cost(client, replies)


# --- answers ---------------------------------------------------------------------------------------------------


def _answer(
    recipe: Recipe, place: str, questions: list[Question], entrants: list[Entrant], tell: Tell
) -> dict[str, list[dict[str, Any]]]:
    """The answers of every model, by label; those that are on disk stay."""
    settings = recipe.distributions
    marks = {entrant.label: _fingerprint(recipe, questions, entrant) for entrant in entrants}
    found = {entrant.label: _read_answers(place, entrant.label, marks[entrant.label]) for entrant in entrants}
    todo = [entrant for entrant in entrants if not found[entrant.label]]

    def answer(entrant: Entrant) -> dict[str, Any]:
        assert recipe.judge is not None
        pivot_folder = entrants[0].folder
        tokenizer, reading = open_reader(entrant.model, settings, entrant.folder, pivot_folder)
        generator = make_generator(
            entrant.engine,
            entrant.folder,
            max_length=recipe.judge.max_length,
            trust_remote_code=entrant.model.trust_remote_code,
            threads=max(1, int(settings.cpus_per_actor)),
        )
        made = answer_questions(questions, tokenizer, reading.template, generator, recipe.judge.answer_tokens)
        generator.close()
        return {"label": entrant.label, "answers": made}

    for done, result in enumerate(streams.stream_with_models(todo, answer, settings), start=1):
        label = result["label"]
        found[label] = result["answers"]
        _write_lines(_answers_file(place, label), [_as_line(label, marks[label], row) for row in result["answers"]])
        tell(Progress("report", done, len(todo) + 1, f"{label} has answered"))
    return found


def _fingerprint(recipe: Recipe, questions: list[Question], entrant: Entrant) -> str:
    """What answers depend on."""
    assert recipe.judge is not None
    settings = recipe.distributions
    asked = [[question.id, *question.turns] for question in questions]
    template = entrant.model.template or settings.template
    parts = [
        asked,
        entrant.fingerprint,
        entrant.engine.model_dump(mode="json"),
        template,
        recipe.judge.max_length,
        recipe.judge.answer_tokens,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _answers_file(place: str, label: str) -> str:
    return join(place, "answers", f"{label.replace(':', '-')}.jsonl")


def _read_answers(place: str, label: str, mark: str) -> list[dict[str, Any]]:
    """Answers on disk, if they were made from the same questions and model."""
    uri = _answers_file(place, label)
    rows = [json.loads(line) for line in read_bytes(uri).decode().splitlines()] if exists(uri) else []
    if any(row["fingerprint"] != mark for row in rows):
        return []
    return [
        {"question_id": row["question_id"], "turns": row["choices"][0]["turns"], "reason": row["reason"]}
        for row in rows
    ]


def _as_line(label: str, mark: str, row: dict[str, Any]) -> dict[str, Any]:
    choices = [{"index": 0, "turns": row["turns"]}]
    return {"question_id": row["question_id"], "model_id": label, "choices": choices} | {
        "reason": row["reason"],
        "fingerprint": mark,
    }


def _write_lines(uri: str, rows: Sequence[dict[str, Any]]) -> None:
    write_bytes(uri, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _cost(client: JudgeClient, replies: list[Reply]) -> dict[str, Any]:
    tokens = {"input": sum(r.input_tokens for r in replies), "output": sum(r.output_tokens for r in replies)}
    return {"tokens": tokens, "usd": client.usd(replies)}
