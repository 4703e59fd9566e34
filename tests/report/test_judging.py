"""What a judge is asked word for word, what follows from its words, and tasks of one's own for the harness."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion_ray.errors import RecipeError
from fusion_ray.recipe import LocalTask
from fusion_ray.report.benchmarks import benchmark_columns, best_value, compare_benchmarks
from fusion_ray.report.harness import _describe
from fusion_ray.report.harness_tasks import _bits_per_byte, per_document, task_config
from fusion_ray.report.heldout import HeldOut
from fusion_ray.report.judge_prompts import ask_choice, ask_rating
from fusion_ray.report.judging import describe_cost, describe_judging, judged_turns, list_judgments, summarise_judgments
from fusion_ray.report.judgments import read_choice, read_rating, settle, summarise_pair
from fusion_ray.report.push import pack
from fusion_ray.report.questions import Question, read_questions
from fusion_ray.report.samples import Prompt, describe_samples, pick_documents
from fusion_ray.report.statistics.bootstrap import Difference
from fusion_ray.report.statistics.common_bytes import Answer, score_common_bytes
from fusion_ray.report.statistics.oracle import recovered_share
from fusion_ray.report.statistics.rates import Scores
from fusion_ray.report.statistics.verdict import judge

# --- the judge -------------------------------------------------------------------------------------------------------


def parts_of(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Labels and texts of what is to be judged; every fence has the hash of all texts."""
    body = messages[1]["content"]
    parts = [part.split("\n", 1) for part in body.split("\n\n")]
    texts = [text.rsplit("\n", 1)[0] for _, text in parts]
    fence = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]
    labels = [head.removeprefix("<<").removesuffix(f" {fence}>>") for head, _ in parts]
    assert body == "\n\n".join(
        f"<<{label} {fence}>>\n{text}\n<<END {fence}>>" for label, text in zip(labels, texts, strict=True)
    )
    return list(zip(labels, texts, strict=True))


@pytest.mark.parametrize(
    ("asked", "expected", "second", "reference"),
    [
        (ask_rating(["q"], ["a"]), "QUESTION=q ANSWER=a", False, False),
        (ask_rating(["q"], ["a"], ["r"]), "REFERENCE=r QUESTION=q ANSWER=a", False, True),
        (
            ask_rating(["q", "p"], ["a", "b"]),
            "QUESTION 1=q ANSWER, TURN 1=a QUESTION 2=p ANSWER, TURN 2=b",
            True,
            False,
        ),
        (ask_choice(["q"], ["a"], ["b"]), "QUESTION=q ANSWER OF A=a ANSWER OF B=b", False, False),
        (
            ask_choice(["q", "p"], ["a", "b"], ["c", "d"], ["r", "s"]),
            "REFERENCE 1=r REFERENCE 2=s QUESTION 1=q ANSWER OF A, TURN 1=a QUESTION 2=p ANSWER OF A, TURN 2=b "
            "QUESTION 1=q ANSWER OF B, TURN 1=c QUESTION 2=p ANSWER OF B, TURN 2=d",
            True,
            True,
        ),
    ],
)
def test_a_judge_gets_questions_answers_and_references_each_in_its_fence(
    asked: list[dict[str, str]], expected: str, second: bool, reference: bool
) -> None:
    assert " ".join(f"{label}={text}" for label, text in parts_of(asked)) == expected
    task = asked[0]["content"]
    assert [message["role"] for message in asked] == ["system", "user"]
    assert ("two turns" in task) is second and ("A reference answer is given" in task) is reference
    assert ("You compare the work of two" in task) is ("ANSWER OF A" in expected)


@pytest.mark.parametrize(
    ("text", "rating"),
    [("[[1]]", 1.0), ("[[10]]", 10.0), ("[[0]]", None), ("[[10.5]]", None), ("[[0.9]]", None), ("[[2]] [[3]]", 3.0),
     ("2", None)],
)  # fmt: skip
def test_a_rating_is_the_last_one_from_one_to_ten(text: str, rating: float | None) -> None:
    assert read_rating(text) == rating


def test_a_choice_is_the_last_one_and_a_win_must_hold_in_both_orders() -> None:
    assert [read_choice(text) for text in ("[[A]] no, [[B]]", "[[C]]", "A")] == ["second", "tie", None]
    sides = ("first", "second", "tie", None)
    assert [[settle(one, other) for other in sides] for one in sides] == [
        [0.5, 1.0, 0.5, None], [0.0, 0.5, 0.5, None], [0.5, 0.5, 0.5, None], [None] * 4,
    ]  # fmt: skip


QUESTIONS = [Question("1", "x", ("q",)), Question("2", "y", ("q", "p"), ("r", "s"))]


def answers(**turns: list[int]) -> dict[str, list[dict[str, Any]]]:
    """So many turns of both questions for each model."""
    return {
        model: [{"question_id": str(n + 1), "turns": ["a", "b"][:count], "reason": None if count else "why"}
                for n, count in enumerate(counts)]
        for model, counts in turns.items()
    }  # fmt: skip


def test_every_answer_is_rated_and_merged_is_compared_twice_with_each_other_model() -> None:
    given = answers(pivot=[1, 1], sft=[0, 2], merged=[1, 2])
    asked = list_judgments(("single", "pairwise"), QUESTIONS, given)
    rated = [(j["question_id"], j["turn"], j["model"]) for j in asked if j["kind"] == "single"]
    assert rated == [
        ("1", 1, "pivot"), ("1", 1, "merged"), ("2", 1, "pivot"), ("2", 1, "sft"), ("2", 1, "merged"),
        ("2", 2, "sft"), ("2", 2, "merged"),
    ]  # fmt: skip
    paired = [(j["question_id"], j["turn"], j["model"], j["other"], j["swapped"]) for j in asked if j["kind"] == "pair"]
    assert paired == [
        (question, turn, "merged", other, swapped)
        for question, turn, other in (("1", 1, "pivot"), ("2", 1, "pivot"), ("2", 1, "sft"), ("2", 2, "sft"))
        for swapped in (False, True)
    ]
    first, swapped = (j for j in asked if j["kind"] == "pair" and j["question_id"] == "1")
    assert first["chat"] == ask_choice(("q",), ["a"], ["a"]) == swapped["chat"]
    last = asked[-1]
    assert last["chat"] == ask_choice(("q", "p"), ["a", "b"], ["a", "b"], ("r", "s"))
    first = next(j for j in asked if j["question_id"] == "2")
    assert first["chat"] == ask_rating(("q",), ["a"], ("r",))
    assert {j["kind"] for j in list_judgments(("single",), QUESTIONS, given)} == {"single"}
    assert {j["kind"] for j in list_judgments(("pairwise",), QUESTIONS, given)} == {"pair"}
    assert list_judgments(("pairwise",), QUESTIONS, answers(pivot=[1, 2], merged=[0, 0])) == []


def test_judgments_are_summed_up_by_model_and_by_pair() -> None:
    asked = list_judgments(("single", "pairwise"), QUESTIONS, answers(pivot=[1, 2], merged=[1, 2]))
    for judgment in asked:
        if judgment["kind"] == "single":
            judgment["rating"] = 8.0 if judgment["model"] == "merged" else 6.0
        else:
            judgment["winner"] = "second" if judgment["swapped"] else "first"
    asked[-1]["winner"] = None
    found = summarise_judgments(asked, QUESTIONS, 100, 0)
    assert found["ratings"]["merged"] == {
        "overall": 8.0, "turn 1": 8.0, "turn 2": 8.0, "category x": 8.0, "category y": 8.0, "readable": 3,
    }  # fmt: skip
    assert list(found["rating_differences"]) == ["merged - pivot"]
    assert found["rating_differences"]["merged - pivot"]["value"] == 2.0
    assert found["pairs"]["merged - pivot"] == {
        "wins": 2, "ties": 0, "losses": 0, "undecided": 0, "unreadable": 1,
        "points": {"value": 1.0, "low": 1.0, "high": 1.0},
    }  # fmt: skip
    assert (found["judgments"], found["unreadable"], found["first_shown_wins"]) == (12, 1, 0.6)
    for judgment in asked:
        if judgment["kind"] == "single" and judgment["model"] == "pivot":
            judgment["rating"] = None
    assert summarise_judgments(asked, QUESTIONS, 100, 0)["rating_differences"] == {"merged - pivot": None}
    assert judged_turns(found) == ["turn 1", "turn 2"] and judged_turns(None) == []


def test_ties_that_the_judge_called_and_those_it_could_not_decide_are_told_apart() -> None:
    verdicts = {"a": ("tie", "tie"), "b": ("first", "first"), "c": ("tie", "first")}
    judgments = [
        {"question_id": q, "turn": 1, "swapped": bool(n), "winner": winner}
        for q, pair in verdicts.items()
        for n, winner in enumerate(pair)
    ]
    found = summarise_pair(judgments, 100, 0)
    assert (found["ties"], found["undecided"], found["points"]["value"]) == (3, 2, 0.5)
    assert summarise_pair([], 100, 0)["points"] is None
    half = summarise_pair(judgments[:1], 100, 0)
    assert (half["unreadable"], half["points"]) == (1, None)


def test_who_could_not_answer_is_named_and_three_questions_are_shown() -> None:
    questions = [Question(str(n), "xy"[n % 2], ("q",)) for n in range(4)]
    given = {
        model: [{"question_id": q.id, "turns": ["a"], "reason": reason if q.id == "2" else None} for q in questions]
        for model, reason in (("pivot", "long"), ("merged", None))
    }
    found = describe_judging("large", questions, given)
    assert found["unanswered"] == {"pivot": {"2": "long"}}
    assert (found["model"], found["questions"], found["categories"]) == ("large", 4, ["x", "y"])
    assert [(shown["id"], shown["turns"]) for shown in found["examples"]] == [(str(n), ["q"]) for n in range(3)]
    assert found["examples"][0]["answers"] == {"pivot": ["a"], "merged": ["a"]}
    cost = {"judgments": 1_200, "unreadable": 3, "tokens": {"input": 1_000, "output": 234}}
    assert describe_cost(cost | {"usd": None}) == "1,200 judgments, 3 unreadable, 1,234 tokens"
    assert describe_cost(cost | {"usd": 0.0}).endswith("1,234 tokens, 0.00 USD")


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        ({"turns": ["a"], "reference": ["r"]}, True),
        ({"turns": ["a", "b"], "reference": ["r", "s"]}, True),
        ({"turns": ["a", "b"], "reference": []}, True),
        ({"turns": ["a", "b", "c"]}, False),
        ({"turns": ["a"], "reference": ["r", "s"]}, False),
        ({"turns": ["a", 1]}, False),
    ],
)
def test_a_question_has_one_or_two_turns_and_a_reference_for_each_or_none(
    row: dict[str, Any], fits: bool, tmp_path: Path
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n" + json.dumps(row | {"question_id": 1}) + "\n")
    if fits:
        (question,) = read_questions(str(path))
        assert (question.category, question.turns) == ("all", tuple(row["turns"]))
    else:
        with pytest.raises(RecipeError, match="line 2: "):
            read_questions(str(path))


def test_a_file_without_a_question_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n")
    for name in ("q.jsonl", "nowhere.jsonl"):
        with pytest.raises(RecipeError):
            read_questions(str(tmp_path / name))


# --- benchmarks ------------------------------------------------------------------------------------------------------


def result(values: list[float], weights: list[float], mean: float, **more: Any) -> dict[str, Any]:
    pairs = {"acc": [list(pair) for pair in zip(values, weights, strict=True)]} if values else {}
    return {"t": {"metrics": {"acc": mean}, "higher_is_better": {"acc": True}, "documents": 2, "values": pairs} | more}


@pytest.mark.parametrize(
    ("other", "compared"),
    [
        (result([0.0, 1.0], [1.0, 1.0], 0.5), True),
        (result([], [], 0.5), False),
        (result([0.0, 1.0], [1.0, 2.0], 1 / 3), False),
        (result([0.0, 1.0], [1.0, 1.0], 0.6), False),
    ],
)
def test_a_metric_is_compared_where_both_models_have_it_as_a_mean_over_the_same_documents(
    other: dict[str, Any], compared: bool
) -> None:
    merged = result([1.0, 1.0], [1.0, 1.0], 1.0)
    found = compare_benchmarks({"sft": other, "merged": merged}, 100, 0)["t"]["acc"]
    assert found["values"] == {"sft": other["t"]["metrics"]["acc"], "merged": 1.0}
    assert (found["higher_is_better"], found["documents"]) == (True, 2)
    assert list(found["differences"]) == (["merged - sft"] if compared else [])
    assert not compared or found["differences"]["merged - sft"]["value"] == 0.5
    turned = compare_benchmarks({"sft": merged, "merged": other}, 100, 0)["t"]["acc"]["differences"]
    assert bool(turned) is compared


def test_columns_have_an_arrow_and_the_best_is_the_one_it_points_to() -> None:
    found = {better: {"higher_is_better": better, "values": {"a": 1.0, "b": 2.0}} for better in (True, False, None)}
    metrics = {"acc,none": found[True], "ppl": found[False], "x": found[None]}
    titles = [title for title, _ in benchmark_columns({"tasks": {"t": metrics}})]
    assert titles == ["t acc ↑", "t ppl ↓", "t x"] and benchmark_columns(None) == []
    assert [best_value(found[better]) for better in (True, False, None)] == [2.0, 1.0, None]


def rows_file(folder: Path, *rows: Any) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize(("answer", "right"), [("B", 1), (" b ", 1), (1, 1), ("1", 1), ("A", 0), (0, 0)])
def test_choices_are_lettered_and_the_answer_is_a_letter_or_a_number(answer: Any, right: int, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `eval` is not installed")
    path = rows_file(tmp_path, {"question": " Q? ", "choices": ["x", 2], "answer": answer})
    task = LocalTask(kind="multiple_choice", name="mine", path=path, few_shot_path=path)
    config = task_config(task)
    rows = config["custom_dataset"](anything=1)
    expected = {"prompt": "Q?\nA. x\nB. 2\nAnswer:", "letters": ["A", "B"], "answer": right}
    assert rows["test"].to_list() == rows["few_shot"].to_list() == [expected]
    plain = {key: value for key, value in config.items() if key != "custom_dataset"}
    assert plain == {
        "task": "mine", "test_split": "test", "fewshot_split": "few_shot", "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "{{prompt}}", "doc_to_target": "answer", "metadata": {"version": 1.0},
        "output_type": "multiple_choice", "doc_to_choice": "letters",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["x"], "answer": 1},
        {"question": "q", "choices": ["x"], "answer": -1},
        {"question": "q", "choices": ["x"] * 27, "answer": 0},
        {"question": "q", "choices": ["x"], "answer": "?"},
    ],
)
def test_an_answer_that_is_none_of_the_choices_is_refused(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be used"):
        task_config(LocalTask(kind="multiple_choice", name="mine", path=rows_file(tmp_path, row)))
    fits = {"question": "q", "choices": ["x"] * 26, "answer": "Z"}
    task_config(LocalTask(kind="multiple_choice", name="mine", path=rows_file(tmp_path, fits)))


@pytest.mark.parametrize(("template", "target"), [(False, " {{answer}}"), (True, "{{answer}}")])
def test_gold_answers_follow_a_space_or_the_template(template: bool, target: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `eval` is not installed")
    task = LocalTask(kind="gold_answer", name="mine", path=rows_file(tmp_path, {"question": "q", "answer": "ä"}))
    config = task_config(task, template)
    assert config["custom_dataset"]()["test"].to_list() == [{"prompt": "q", "answer": "ä"}]
    assert (config["doc_to_target"], config["target_delimiter"], config["fewshot_split"]) == (target, "", "test")
    assert (config["output_type"], config["fewshot_config"]) == ("loglikelihood", {})
    assert config["metric_list"][0]["higher_is_better"] is False
    assert _bits_per_byte({"answer": "ä"}, [(-3.0, True), (9.0, False)]) == {"bits_per_byte": (-3.0, 2)}


@pytest.mark.parametrize(
    "row", [{"question": "", "answer": "a"}, {"question": "q", "answer": ""}, {"question": "q", "answer": 1},
            {"question": 1, "answer": "a"}, "text", {"question": "q"}],
)  # fmt: skip
def test_gold_answers_are_texts_that_are_not_empty(row: Any, tmp_path: Path) -> None:
    for kind in ("gold_answer", "multiple_choice"):
        with pytest.raises(RecipeError, match=r"evaluate\.tasks\.mine: "):
            task_config(LocalTask(kind=kind, name="mine", path=rows_file(tmp_path, row)))  # type: ignore[arg-type]


def test_a_document_s_value_is_a_sum_and_a_count() -> None:
    assert [per_document(value) for value in (True, 3, 0.5)] == [(1.0, 1.0), (3.0, 1.0), (0.5, 1.0)]
    assert per_document((-2 * math.log(2), 4)) == per_document([-2 * math.log(2), 4]) == pytest.approx((2.0, 4.0))
    assert [per_document(value) for value in ("x", None, (1,), (1, 2, 3), (1, "x"))] == [None] * 5


def test_of_a_task_s_results_numbers_and_documents_are_kept() -> None:
    samples = [
        {"doc_id": 1, "filter": "none", "acc": 0.0}, {"doc_id": 0, "filter": "none", "acc": 1.0},
        {"doc_id": 0, "filter": "strict", "acc": 0.5, "em": "x"}, {"doc_id": 1, "filter": "strict", "acc": 0.25},
    ]  # fmt: skip
    metrics = {
        "acc,none": 0.5, "acc_stderr,none": 0.1, "acc,strict": 0.375, "em,strict": 1, "alias": "t", "size": 5,
        "note,none": "text",
    }  # fmt: skip
    found = {"samples": {"t": samples}, "higher_is_better": {"t": {"acc": True}}}
    assert _describe("t", metrics, found) == {
        "metrics": {"acc": 0.5, "acc,strict": 0.375, "em,strict": 1.0},
        "higher_is_better": {"acc": True, "acc,strict": True, "em,strict": None},
        "documents": 2,
        "values": {"acc": [(1.0, 1.0), (0.0, 1.0)], "acc,strict": [(0.5, 1.0), (0.25, 1.0)]},
    }
    assert _describe("group", {"acc,none": 0.5}, found)["documents"] == 0


# --- samples, statistics, push ---------------------------------------------------------------------------------------


def heldout_of(domains: str, bits: list[float] | None = None) -> HeldOut:
    n = len(domains)
    nll_MN = np.array([bits or [8.0] * n, [4.0] * n]) * math.log(2)
    scores = Scores(("pivot", "merged"), nll_MN, np.full(n, 4), np.array(list(domains), dtype=object))
    return HeldOut(scores, tuple(f"{domain}{n}" for n, domain in enumerate(domains)), ((0, 0),) * n, {}, {})


def test_documents_are_picked_from_the_domains_in_turn_until_there_are_enough() -> None:
    heldout = heldout_of("aaaabbc")
    assert [name[0] for name in pick_documents(heldout, 9, 0)] == ["a", "b", "c", "a", "b", "a", "a"]
    assert len(pick_documents(heldout, 2, 0)) == 2 and pick_documents(heldout, 0, 0) == []
    assert pick_documents(heldout_of(""), 3, 0) == []


def test_samples_have_every_model_s_answer_and_rate() -> None:
    prompts = [Prompt(name, "d", [], "gold", np.array([1]), None) for name in ("b1", "a0")]
    found = describe_samples(prompts, {"pivot": ["x", "y"], "merged": ["z", "w"]}, heldout_of("ab", [8.0, 16.0]))
    assert [(sample["id"], sample["answers"]) for sample in found] == [
        ("b1", {"pivot": "x", "merged": "z"}), ("a0", {"pivot": "y", "merged": "w"}),
    ]  # fmt: skip
    assert [sample["bits_per_byte"] for sample in found] == [
        pytest.approx({"pivot": 4.0, "merged": 1.0}), pytest.approx({"pivot": 2.0, "merged": 1.0}),
    ]  # fmt: skip


def difference(value: float, low: float, high: float, p_value: float = 0.5) -> dict[str, Difference]:
    return {"overall": Difference(value, low, high, p_value)}


RATES = {"merged": 1.0, "pivot": 2.0, "sft": 1.5, "longer": 1.25, "self": 1.2, "shuffled": 1.1}


@pytest.mark.parametrize(
    ("low", "high", "p_value", "text"),
    [
        (-1.0, 0.0, 0.051, "cannot be told apart from the pivot it started from (1.000 against 2.000 bits per byte, "
                           "-0.2500 [-1.0000, +0.0000], p = 0.051)."),
        (0.0, 1.0, 0.001, "cannot be told apart from the pivot it started from (1.000 against 2.000 bits per byte, "
                          "-0.2500 [+0.0000, +1.0000], p = 0.001)."),
        (0.5, 1.0, 0.0009, "is worse than the pivot it started from (1.000 against 2.000 bits per byte, -0.2500 "
                           "[+0.5000, +1.0000], p < 0.001)."),
    ],
)  # fmt: skip
def test_an_interval_that_touches_nothing_is_no_gain_and_no_loss(
    low: float, high: float, p_value: float, text: str
) -> None:
    found = judge(RATES, {"merged - pivot": difference(-0.25, low, high, p_value)}, 30)
    assert found == (False, f"Fusion did not help: the merged model {text}", ())


def test_few_documents_and_domains_that_became_worse_are_noted() -> None:
    sure = difference(-0.5, -1.0, -0.1)
    sft = sure | {"a": Difference(1, 0.1, 2, 0), "b": Difference(1, 0.0, 2, 0), "c": Difference(1, 0.2, 2, 0)}
    found = judge(RATES, {"merged - pivot": sure, "merged - sft": sft}, 29)
    assert found.helped is True
    assert found.notes == (
        "Against sft the merged model is surely worse in: a, c.",
        "Only 29 held-out documents: the intervals are rough, take them as a hint.",
    )
    assert judge(RATES, {"merged - pivot": sure, "merged - sft": sure}, 30).notes == ()


@pytest.mark.parametrize(
    ("pivot", "oracle", "share"), [(1.0, 0.995, None), (2.0, 1.75, 2.0), (2.0, 2.0, None), (64.0, 63.0, 64.5 - 1)]
)
def test_nothing_is_recovered_of_less_than_a_hundredth(pivot: float, oracle: float, share: float | None) -> None:
    model = 1.5 if pivot == 2.0 else 0.5
    assert recovered_share(pivot, model, oracle) == share


def test_a_gain_of_just_a_hundredth_counts() -> None:
    assert recovered_share(100.0, 99.5, 99.0) == 0.5


def answer(turns: list[list[int]], n_bytes: int) -> Answer:
    """An answer whose tokens end at these bytes of its turns; each token costs a nat more than the one before."""
    ends = [end for turn in turns for end in turn]
    return Answer([len(turn) for turn in turns], np.array(ends), -np.arange(1.0, len(ends) + 1), n_bytes)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (([[2, 4]], 4), ([[1, 4]], 4), ([3.0, 3.0], 4)),
        (([[2, 4]], 4), ([[1, 2]], 2), ([1.0, 3.0], 2)),
        (([[2, 4], [3, 5]], 9), ([[4], [3]], 7), ([6.0, 3.0], 7)),
        (([[2, 4], [3, 5]], 9), ([[4], [4]], 8), ([3.0, 1.0], 4)),
        (([[0, 2]], 2), ([[0, 1]], 1), None),
        (([[2]], 2), ([[1]], 1), None),
        (([[0]], 0), ([[0]], 0), None),
    ],
)
def test_models_are_judged_up_to_the_last_boundary_that_they_share(
    one: Any, other: Any, expected: tuple[list[float], int] | None
) -> None:
    found = score_common_bytes([answer(*one), answer(*other)])
    assert (found and (found.nll_M.tolist(), found.n_bytes)) == expected


def test_a_push_takes_the_files_of_a_whole_model_and_names_local_paths(tmp_path: Path) -> None:
    merged = tmp_path / "run" / "5_merged"
    (merged / "inner").mkdir(parents=True)
    card = "base_model: ./models/pivot\n- org/name\nSee https://example.org/a/b and and/or.\n"
    for name, text in {
        "config.json": "{}", "model.safetensors": "weights", "README.md": card, "MANIFEST.json": "{}", ".hidden": "x",
    }.items():  # fmt: skip
        (merged / name).write_text(text)
    parcel = pack(str(tmp_path / "run"))
    assert parcel.files == {"README.md": len(card), "config.json": 2, "model.safetensors": 7}
    assert parcel.local_paths == ("./models/pivot",) and parcel.url == "" and parcel.folder == merged
    (merged / "MANIFEST.json").unlink()
    assert pack(str(merged)).files == parcel.files, "a model folder needs no manifest"
    for name in ("model.safetensors", "config.json"):
        (merged / name).rename(merged / "inner" / name)
        with pytest.raises(Exception, match="no finished merged model"):
            pack(str(merged))
        (merged / "inner" / name).rename(merged / name)
