"""Which questions a judge gets about the models of a run, and what follows from its answers; nothing is sent here."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_ray.report.judge_prompts import ask_choice, ask_rating
from fusion_ray.report.judgments import compare_ratings, first_shown_share, summarise_pair, summarise_ratings
from fusion_ray.report.questions import Question

MERGED = "merged"
_SHOWN_QUESTIONS = 3


def list_judgments(
    kinds: Sequence[str], questions: list[Question], answers: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Everything to ask the judge, in a fixed order: each answer's rating, and merged against each other model twice.

    Answers that a model could not give are not judged, nor is the pair that they belong to.
    """
    by_id = {label: {row["question_id"]: row["turns"] for row in rows} for label, rows in answers.items()}
    asked: list[dict[str, Any]] = []
    for question in questions:
        for turn in range(1, len(question.turns) + 1):
            given = {label: rows[question.id][:turn] for label, rows in by_id.items()}
            answered = [label for label, turns in given.items() if len(turns) == turn]
            common = question.turns[:turn], question.reference[:turn]
            place = {"question_id": question.id, "turn": turn}
            if "single" in kinds:
                asked += [_single(place, label, given[label], *common) for label in answered]
            if "pairwise" in kinds and MERGED in answered:
                others = [label for label in answered if label != MERGED]
                asked += [_pair(place, other, swap, given, *common) for other in others for swap in (False, True)]
    return asked


def _single(
    place: dict[str, Any], label: str, answers: list[str], questions: Sequence[str], references: Sequence[str]
) -> dict[str, Any]:
    return {"kind": "single", **place, "model": label, "chat": ask_rating(questions, answers, references)}


def _pair(
    place: dict[str, Any],
    other: str,
    swapped: bool,
    given: dict[str, list[str]],
    questions: Sequence[str],
    references: Sequence[str],
) -> dict[str, Any]:
    first, second = (other, MERGED) if swapped else (MERGED, other)
    chat = ask_choice(questions, given[first], given[second], references)
    return {"kind": "pair", **place, "model": MERGED, "other": other, "swapped": swapped, "chat": chat}


# --- numbers ---------------------------------------------------------------------------------------------------


def summarise_judgments(
    judgments: list[dict[str, Any]], questions: list[Question], draws: int, seed: int
) -> dict[str, Any]:
    """Ratings of every model, and the merged model against every other."""
    singles = [judgment for judgment in judgments if judgment["kind"] == "single"]
    pairs = [judgment for judgment in judgments if judgment["kind"] == "pair"]
    rated = dict.fromkeys(judgment["model"] for judgment in singles if judgment["model"] != MERGED)
    differences = {f"{MERGED} - {other}": compare_ratings(singles, MERGED, other, draws, seed) for other in rated}
    others = dict.fromkeys(judgment["other"] for judgment in pairs)
    readings = [j["rating"] if j["kind"] == "single" else j["winner"] for j in judgments]
    return {
        "ratings": summarise_ratings(singles, {question.id: question.category for question in questions}),
        "rating_differences": {pair: found and found._asdict() for pair, found in differences.items()},
        "pairs": {
            f"{MERGED} - {other}": summarise_pair([j for j in pairs if j["other"] == other], draws, seed)
            for other in others
        },
        "first_shown_wins": first_shown_share(pairs),
        "judgments": len(judgments),
        "unreadable": readings.count(None),
    }


def describe_judging(model: str, questions: list[Question], answers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Who judged what, who could not answer, and a few questions with all answers."""
    reasons = {
        label: {row["question_id"]: row["reason"] for row in rows if row["reason"]} for label, rows in answers.items()
    }
    turns = {label: {row["question_id"]: row["turns"] for row in rows} for label, rows in answers.items()}
    return {
        "model": model,
        "questions": len(questions),
        "categories": list(dict.fromkeys(question.category for question in questions)),
        "unanswered": {label: found for label, found in reasons.items() if found},
        "examples": [
            {
                "id": q.id,
                "category": q.category,
                "turns": list(q.turns),
                "answers": {m: t[q.id] for m, t in turns.items()},
            }
            for q in questions[:_SHOWN_QUESTIONS]
        ],
    }


def judged_turns(judge: Mapping[str, Any] | None) -> list[str]:
    """The turns that some answer was rated for, in order."""
    found = {key for ratings in judge["ratings"].values() for key in ratings} if judge else set()
    return sorted(key for key in found if key.startswith("turn "))


def describe_cost(judge: Mapping[str, Any]) -> str:
    """How much was judged, how much of it was unreadable, and what it cost."""
    cost = "" if judge["usd"] is None else f", {judge['usd']:.2f} USD"
    tokens = sum(judge["tokens"].values())
    return f"{judge['judgments']:,} judgments, {judge['unreadable']:,} unreadable, {tokens:,} tokens{cost}"
