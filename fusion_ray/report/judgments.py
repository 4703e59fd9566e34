"""From a judge's words to numbers: ratings, verdicts that hold in both orders, and intervals over questions."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fusion_ray.report.statistics.bootstrap import Difference, resample_mean

Winner = Literal["first", "second", "tie"]
_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_CHOICE = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_WINNERS: dict[str, Winner] = {"A": "first", "B": "second", "C": "tie"}


def read_rating(text: str) -> float | None:
    """The last rating from 1 to 10 that a judge wrote, or None: an unreadable reply is never taken for a number.

    >>> read_rating("It errs twice. Rating: [[4]]"), read_rating("Four out of ten."), read_rating("[[11]]")
    (4.0, None, None)
    """
    found = _RATING.findall(text)
    rating = float(found[-1]) if found else 0.0
    return rating if 1 <= rating <= 10 else None


def read_choice(text: str) -> Winner | None:
    """The last verdict that a judge wrote, or None.

    >>> read_choice("B is vague. [[A]]"), read_choice("They are alike: [[C]]"), read_choice("A, I think")
    ('first', 'tie', None)
    """
    found = _CHOICE.findall(text)
    return _WINNERS[found[-1]] if found else None


def settle(forward: Winner | None, swapped: Winner | None) -> float | None:
    """The outcome for the first model of a pair that was judged in both orders: 1 won, 0 lost, 0.5 tie.

    A model must win in both orders to win, so a judge that prefers a position gives ties.

    Args:
        forward: The verdict with the first model shown first.
        swapped: The verdict with the first model shown second, in the words of that order.

    >>> settle("first", "second"), settle("first", "first"), settle("tie", "second"), settle(None, "tie")
    (1.0, 0.5, 0.5, None)
    """
    if forward is None or swapped is None:
        return None
    return {("first", "second"): 1.0, ("second", "first"): 0.0}.get((forward, swapped), 0.5)


def summarise_ratings(judgments: Sequence[Mapping[str, Any]], categories: Mapping[str, str]) -> dict[str, Any]:
    """Mean rating of every model: overall (all turns alike), by turn and by category; None where nothing was readable.

    Args:
        judgments: `model`, `question_id`, `turn` and `rating` (None: unreadable).
        categories: Category by question id.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for judgment in judgments:
        lists = found.setdefault(judgment["model"], {})
        for key in ("overall", f"turn {judgment['turn']}", f"category {categories[judgment['question_id']]}"):
            lists.setdefault(key, []).extend([] if judgment["rating"] is None else [judgment["rating"]])
    return {
        model: {key: (float(np.mean(values)) if values else None) for key, values in lists.items()}
        | {"readable": len(lists["overall"])}
        for model, lists in found.items()
    }


def compare_ratings(
    judgments: Sequence[Mapping[str, Any]], first: str, second: str, draws: int, seed: int
) -> Difference | None:
    """How much higher one model is rated than another, over the questions and turns where both could be read."""
    rated = {(j["model"], j["question_id"], j["turn"]): j["rating"] for j in judgments}
    by_question: dict[str, list[float]] = {}
    for (model, question, turn), rating in rated.items():
        other = rated.get((second, question, turn))
        if model == first and rating is not None and other is not None:
            by_question.setdefault(question, []).append(rating - other)
    return _interval(by_question, draws, seed)


def summarise_pair(judgments: Sequence[Mapping[str, Any]], draws: int, seed: int) -> dict[str, Any]:
    """Wins, ties and losses of a pair's first model, its share of the points with an interval, and what to beware of.

    Args:
        judgments: Of one pair: `question_id`, `turn`, `swapped` and `winner` in the words of the order shown.
        draws: Of the bootstrap over questions.
        seed: Equal seeds give equal draws.
    """
    verdicts = {(j["question_id"], j["turn"], j["swapped"]): j["winner"] for j in judgments}
    counts: Counter[str] = Counter()
    by_question: dict[str, list[float]] = {}
    for question, turn, swapped in verdicts:
        if swapped:
            continue
        both = verdicts[question, turn, False], verdicts.get((question, turn, True))
        points = settle(*both)
        if points is None:
            counts["unreadable"] += 1
            continue
        counts[{1.0: "wins", 0.5: "ties", 0.0: "losses"}[points]] += 1
        counts["undecided"] += points == 0.5 and both != ("tie", "tie")
        by_question.setdefault(question, []).append(points)
    share = _interval(by_question, draws, seed)
    return {name: counts[name] for name in ("wins", "ties", "losses", "undecided", "unreadable")} | {
        "points": None if share is None else {"value": share.value, "low": share.low, "high": share.high}
    }


def first_shown_share(judgments: Sequence[Mapping[str, Any]]) -> float | None:
    """How often the answer shown first won, of all verdicts that name a winner; a fair judge is near one half."""
    winners = [j["winner"] for j in judgments if j["winner"] in ("first", "second")]
    return winners.count("first") / len(winners) if winners else None


def _interval(by_question: Mapping[str, Sequence[float]], draws: int, seed: int) -> Difference | None:
    """The mean over questions: the turns of one question are not independent, so questions are drawn."""
    if not by_question:
        return None
    sums = np.array([math.fsum(values) for values in by_question.values()])
    counts = np.array([len(values) for values in by_question.values()])
    return resample_mean(sums, counts, draws, seed)
