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
from fusion_ray.progress import Progress, Tell
from fusion_ray.recipe import Recipe
from fusion_ray.report.answering import answer_questions
from fusion_ray.report.evaluated_models import EvaluatedModel
from fusion_ray.report.judge_client import JudgeClient, Reply
from fusion_ray.report.judging import describe_judging, list_judgments, summarise_judgments
from fusion_ray.report.judgments import read_choice, read_rating
from fusion_ray.report.kept import make_missing
from fusion_ray.report.numbers import derive_seed
from fusion_ray.report.questions import Question, read_questions
from fusion_ray.storage.filesystem import exists, join, read_bytes, write_bytes


def judge_models(recipe: Recipe, folder: str, evaluated: list[EvaluatedModel], tell: Tell) -> dict[str, Any] | None:
    """Have all models answer and be judged; None where the recipe has no judge.

    Args:
        recipe: The run.
        folder: The report's.
        evaluated: Every model of the run, the merged one among them.
        tell: Receives progress.

    Raises:
        EngineError: A model or the judge's server failed; answers and replies so far are kept.
        RecipeError: The questions cannot be read.
    """
    if recipe.judge is None:
        return None
    place = join(folder, "judge")
    questions = read_questions(recipe.judge.questions)
    answers = _answer(recipe, place, questions, evaluated, tell)
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
    recipe: Recipe, place: str, questions: list[Question], evaluated: list[EvaluatedModel], tell: Tell
) -> dict[str, list[dict[str, Any]]]:
    """The answers of every model, by label; those that are on disk stay."""
    settings = recipe.distributions

    def answer(model: EvaluatedModel) -> list[dict[str, Any]]:
        assert recipe.judge is not None
        tokenizer, reading = open_reader(model.model, settings, model.folder, evaluated[0].folder)
        generator = make_generator(
            model.engine,
            model.folder,
            max_length=recipe.judge.max_length,
            trust_remote_code=model.model.trust_remote_code,
            threads=max(1, int(settings.cpus_per_actor)),
        )
        made = answer_questions(questions, tokenizer, reading.template, generator, recipe.judge.answer_tokens)
        generator.close()
        return made

    def read(model: EvaluatedModel) -> list[dict[str, Any]] | None:
        return _read_answers(place, model.label, _fingerprint(recipe, questions, model))

    def write(model: EvaluatedModel, made: list[dict[str, Any]]) -> None:
        mark = _fingerprint(recipe, questions, model)
        _write_lines(_answers_file(place, model.label), [_as_line(model.label, mark, row) for row in made])

    return make_missing(evaluated, read, answer, write, settings, tell, "answers")


def _fingerprint(recipe: Recipe, questions: list[Question], model: EvaluatedModel) -> str:
    """What answers depend on."""
    assert recipe.judge is not None
    settings = recipe.distributions
    asked = [[question.id, *question.turns] for question in questions]
    template = model.model.template or settings.template
    parts = [
        asked,
        model.fingerprint,
        model.engine.model_dump(mode="json"),
        template,
        recipe.judge.max_length,
        recipe.judge.answer_tokens,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _answers_file(place: str, label: str) -> str:
    return join(place, "answers", f"{label.replace(':', '-')}.jsonl")


def _read_answers(place: str, label: str, mark: str) -> list[dict[str, Any]] | None:
    """Answers on disk, if they were made from the same questions and model."""
    uri = _answers_file(place, label)
    try:
        rows = [json.loads(line) for line in read_bytes(uri).decode().splitlines()] if exists(uri) else []
    except ValueError:
        return None  # A damaged file counts as not made.
    if not rows or any(row.get("fingerprint") != mark for row in rows):
        return None
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
