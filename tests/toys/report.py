"""A report without a run behind it: random scores with a planted gain, and hostile names and texts."""

import math
from typing import Any

import numpy as np

from fusion_ray.report.benchmarks import compare_benchmarks
from fusion_ray.report.heldout import HeldOut
from fusion_ray.report.judging import describe_judging, list_judgments, summarise_judgments
from fusion_ray.report.numbers import measure
from fusion_ray.report.questions import Question
from fusion_ray.report.statistics.calibration import bin_confidences
from fusion_ray.report.statistics.rates import Scores
from fusion_ray.report.weights import weights_by_part

MODELS = ("pivot", "source:math", "sft", "target:math", "merged")
EVIL = "<img src=x onerror=alert(1)>[bold]</script>"


def make_heldout(steps: tuple[float, ...] = (0.0, -0.3, -0.1, -0.15, -0.2), n: int = 80, seed: int = 0) -> HeldOut:
    rng = np.random.default_rng(seed)
    bytes_N = rng.integers(40, 200, n)
    rates_MN = rng.uniform(1, 3, n) + np.array(steps)[:, None] + rng.normal(0, 0.02, (len(steps), n))
    domains_N = np.array([EVIL if row % 2 else "code" for row in range(n)], dtype=object)
    bins = bin_confidences(rng.uniform(0, 1, 100), rng.uniform(0, 1, 100) < 0.5)
    scores = Scores(MODELS, rates_MN * bytes_N * math.log(2), bytes_N, domains_N)
    return HeldOut(
        scores,
        tuple(f"id{i}" for i in range(n)),
        tuple((0, i) for i in range(n)),
        {"left": "no answer"},
        dict.fromkeys(MODELS, bins),
    )


def make_report(heldout: HeldOut | None = None) -> dict[str, Any]:
    """A report.json without a run behind it."""
    heldout = heldout or make_heldout()
    stage = {
        "stage": "fused",
        "name": "math",
        "seconds": 2.0,
        "rows": 9,
        "bytes": 10,
        "tokens": 5,
        "peak_bytes": {"driver": 1, "worker": 2**30},
        "fingerprint": "ab",
        "facts": {},
    }
    return measure(heldout, 100, 0) | {
        "name": EVIL, "seed": 0, "recipe": {"name": EVIL}, "remote_code": False, "bootstrap": 100,
        "models": {name: _model() for name in ("pivot", "math")},
        "stages": [stage], "alignment": {"math": {"math": {"positions": 3, "violation_nats": 1e-6}}},
        "training": {"math": [{"step": 0, "gold": 1.0}, {"step": 1, "gold": 0.5, "bits_per_byte": 2.0}]},
        "versions": {"fusion_ray": "0"}, "scored_with": {"kind": "transformers"},
        "chosen": {"math": {EVIL: {"rows": {"pivot": 1, "math": 2}, "positions": {"pivot": 5, "math": 9}}}},
        "answers": {"math": {"asked": 5, "unfinished": 1, "empty": 0, "unaskable": 0, "taught": 4}},
        "samples": [_sample()], "views": [_view()],
        "judge": _judge(), "benchmarks": _benchmarks(),
        "merge_weights": weights_by_part({"method": "varm", "tensors": {"model.layers.0.mlp.up.weight": {EVIL: 1.0}}}),
    }  # fmt: skip


def _model() -> dict[str, Any]:
    return {"model": EVIL, "revision": EVIL, "fingerprint": "cd", "remote_code": False}


def _sample() -> dict[str, Any]:
    messages = [{"role": "user", "content": EVIL}]
    rates = dict.fromkeys(MODELS, 1.0)
    answers = {"pivot": EVIL, "merged": "{{ 7 * 7 }}"}
    return {"id": EVIL, "domain": EVIL, "messages": messages, "gold": EVIL, "answers": answers, "bits_per_byte": rates}


def _benchmarks() -> dict[str, Any]:
    """One task, in which the merged model is right more often than all others."""
    by_model = {}
    for model in MODELS:
        right = [float(n % 10 < (7 if model == "merged" else 3)) for n in range(200)]
        metrics, better = {"acc": sum(right) / 200}, {"acc": True}
        values = {"acc": [[value, 1.0] for value in right]}
        by_model[model] = {EVIL: {"metrics": metrics, "higher_is_better": better, "documents": 200, "values": values}}
    return {"tasks": compare_benchmarks(by_model, 100, 0), "left_out": [EVIL]}


def _judge() -> dict[str, Any]:
    """Three questions, all models, a judge that says something else each time and is unreadable once."""
    questions = [Question(str(n), EVIL, ("one", EVIL)) for n in range(3)]
    answers: dict[str, list[dict[str, Any]]] = {
        model: [{"question_id": q.id, "turns": ["a", EVIL], "reason": None} for q in questions] for model in MODELS
    }
    answers["source:math"][0] = {"question_id": "0", "turns": ["a"], "reason": EVIL}
    judgments = list_judgments(("single", "pairwise"), questions, answers)
    for number, judgment in enumerate(judgments):
        single = judgment["kind"] == "single"
        judgment |= {"rating": 1.0 + number % 9} if single else {"winner": ("first", "second", "tie")[number % 3]}
    judgments[0]["rating"] = None
    cost = {"tokens": {"input": 1000, "output": 20}, "usd": 0.25}
    return describe_judging(EVIL, questions, answers) | summarise_judgments(judgments, questions, 100, 0) | cost


def _view() -> dict[str, Any]:
    token = {"text": EVIL, "real": 0.5, "top": [[EVIL, 0.5, True]]}
    group = {"pivot": [token | {"projected": [["b", 0.5, False]], "projected_real": 0.1}], "source": [token, token]}
    return {"source": "math", "id": EVIL, "domain": EVIL, "groups": [group], "shown": 1, "tokens": 2}
