"""Report parts on small inputs: choices, weights, curves, page, terminal."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from toys.report import EVIL, MODELS, make_heldout, make_report

from fusion_ray.cli.show import comparison_tables, report_tables
from fusion_ray.errors import ArtifactError, CorruptArtifactError, MissingArtifactError
from fusion_ray.report.benchmarks import compare_benchmarks
from fusion_ray.report.choices import count_choices, sum_choices
from fusion_ray.report.heldout import HeldOut, documents_table
from fusion_ray.report.history import read_curve
from fusion_ray.report.model_card import add_scores
from fusion_ray.report.numbers import derive_seed, differences_to_report, measure
from fusion_ray.report.page import alignment_rows, headline, render_page, tell_story
from fusion_ray.report.reading import RunReport
from fusion_ray.report.statistics.rates import Scores
from fusion_ray.report.weights import weights_by_part


def _save(folder: Path, heldout: HeldOut) -> str:
    place = folder / "6_report"
    place.mkdir(parents=True)
    (place / "report.json").write_text(json.dumps(make_report(heldout), allow_nan=False))
    pq.write_table(documents_table(heldout), place / "documents.parquet")
    (place / "MANIFEST.json").write_text("{}")
    return str(folder)


def _text(*runs: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    reports = [RunReport.read(run) for run in runs]
    for renderable in report_tables(*reports) if len(runs) == 1 else comparison_tables(list(runs), *reports):
        console.print(renderable)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


# --- numbers ---------------------------------------------------------------------------------------------------


def test_a_planted_gain_is_found_and_measured() -> None:
    report = measure(make_heldout(), 500, 0)
    found = report["differences"]["merged - sft"]["overall"]
    assert found["low"] < -0.1 < found["high"] + 0.02
    assert found["high"] < 0
    assert report["verdict"]["helped"] is True
    assert report["oracle"]["recovered_share"]["merged"]["overall"] == pytest.approx(2 / 3, abs=0.05)
    assert report["oracle"]["chosen"]["code"] == {"pivot": 0, "source:math": 40}


def test_a_planted_failure_is_called_a_failure() -> None:
    report = measure(make_heldout(steps=(0.0, 2.0, -0.1, -0.1, -0.1)), 500, 0)
    assert report["verdict"]["helped"] is False
    assert report["verdict"]["text"].startswith("Fusion did not help")
    assert report["oracle"]["recovered_share"]["merged"]["overall"] is None


def test_no_scored_document_is_an_error_that_says_why() -> None:
    empty = Scores(MODELS, np.empty((5, 0)), np.empty(0, dtype=np.int64), np.empty(0, dtype=object))
    with pytest.raises(ArtifactError, match="no answer"):
        measure(HeldOut(empty, (), (), {"x": "no answer"}, {}), 100, 0)


def test_every_difference_answers_a_question() -> None:
    assert differences_to_report(MODELS) == [
        ("merged", "sft"), ("merged", "pivot"), ("sft", "pivot"), ("target:math", "sft"), ("merged", "target:math"),
    ]  # fmt: skip
    assert ("target:math", "pivot") in differences_to_report(["pivot", "target:math", "merged"])


def test_uses_of_a_seed_differ_by_name() -> None:
    assert derive_seed(0, "a") != derive_seed(0, "b")
    assert derive_seed(0, "a") == derive_seed(0, "a")


# --- parts -----------------------------------------------------------------------------------------------------


def test_choices_are_counted_by_row_and_by_position() -> None:
    chosen = pa.array([[0, 0, 1], [1, 1], None, [-1]], pa.list_(pa.int8()))
    table = pa.table({"domain": ["a", "a", "a", None], "chosen": chosen})
    counts = sum_choices([count_choices(table, ["pivot", "math"])] * 2)
    assert counts["a"]["rows"] == {"gold": 0, "pivot": 2, "math": 2}
    assert counts["a"]["positions"] == {"gold": 0, "pivot": 4, "math": 6}
    assert counts["(no domain)"]["rows"]["gold"] == 2


def test_weights_are_means_over_the_tensors_of_a_part() -> None:
    tensors = {
        "model.embed_tokens.weight": {"x": 0.5, "y": 0.5},
        "model.layers.10.mlp.up_proj.weight": {"x": 0.2, "y": 0.8},
        "model.layers.10.mlp.down_proj.weight": {"x": 0.4, "y": 0.6},
        "model.layers.2.self_attn.q_proj.weight": {"x": 1.0, "y": 0.0},
        "model.norm.weight": None,
    }
    found = weights_by_part({"method": "varm", "tensors": tensors})
    assert [(part["layer"], part["module"]) for part in found["parts"]] == [
        ("outside layers", "embed_tokens"), ("2", "self_attn"), ("10", "mlp"),
    ]  # fmt: skip
    assert found["parts"][2]["weights"] == pytest.approx({"x": 0.3, "y": 0.7})
    assert found["without_weights"] == ["model.norm.weight"]


def test_a_long_curve_is_thinned_and_keeps_its_last_point(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    points = read_curve(str(tmp_path))
    assert len(points) <= 400
    assert points[-1]["step"] == 1000
    (tmp_path / "metrics.jsonl").write_text("{}\n[1")
    with pytest.raises(CorruptArtifactError, match="line 2"):
        read_curve(str(tmp_path))


def test_scores_stand_in_the_card_once_however_often_they_are_added() -> None:
    card = "---\ntags: []\n---\n\n# m\n\nMerged.\n\n## Configuration\n\n```yaml\na: 1\n```\n"
    once = add_scores(card, make_report())
    assert add_scores(once, make_report()) == once
    assert once.count("## Held-out bits per byte") == 1
    assert once.index("| merged |") < once.index("## Configuration")
    assert "<img" not in once.replace("\\<img", "")


# --- page ------------------------------------------------------------------------------------------------------


def test_hostile_names_stay_text_in_the_page() -> None:
    page = render_page(make_report())
    assert EVIL not in page
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_the_page_loads_nothing_and_lets_no_other_script_run() -> None:
    page = render_page(make_report())
    head = page[: page.index("<style>")]
    assert "default-src &#39;none&#39;" in head or "default-src 'none'" in head
    assert "unsafe-inline" not in head.partition("script-src")[2].partition(";")[0]
    assert 'src="http' not in page
    assert "<link" not in page


def test_the_page_begins_with_what_was_done_and_what_came_of_it() -> None:
    report = make_report()
    assert tell_story(report).startswith("A fusion of chat models: what math knows goes into one model")
    names = [card["name"] for card in headline(report)]
    assert names == ["pivot", "plain fine-tuning (sft)", "merged model", "of the oracle's gain"]
    change = report["bits_per_byte"]["merged"]["overall"] / report["bits_per_byte"]["pivot"]["overall"] - 1
    assert headline(report)[2]["unit"] == f"bits per byte, {change:+.1%} against the pivot"


def test_every_plot_of_the_page_has_its_place() -> None:
    page = render_page(make_report())
    figures = json.loads(page.partition('id="figures">')[2].partition("</script>")[0])
    assert len(figures) >= 8
    for name in figures:
        assert f'id="{name}"' in page


# --- terminal --------------------------------------------------------------------------------------------------


def test_show_prints_every_model_and_the_verdict(tmp_path: Path) -> None:
    text = _text(_save(tmp_path, make_heldout()))
    for model in MODELS:
        assert model in text
    assert "Fusion helped" in text
    assert "merged - sft" in text
    assert "[bold]" in text, "text of the corpus is no markup"


def test_show_prints_the_benchmarks(tmp_path: Path) -> None:
    text = _text(_save(tmp_path, make_heldout()))
    assert "acc ↑" in text and "0.700" in text


def test_a_benchmarks_difference_has_an_interval_where_the_metric_is_a_mean_over_documents() -> None:
    right = [float(n % 10 < 7) for n in range(100)]
    wrong = [float(n % 10 < 3) for n in range(100)]
    results = {
        model: {
            "t": {
                "metrics": {"acc": sum(values) / 100, "other": 5.0},
                "higher_is_better": {"acc": True, "other": None},
                "documents": 100,
                "values": {"acc": [[value, 1.0] for value in values], "other": [[value, 1.0] for value in values]},
            }
        }
        for model, values in {"sft": wrong, "merged": right}.items()
    }
    found = compare_benchmarks(results, 500, 0)["t"]
    difference = found["acc"]["differences"]["merged - sft"]
    assert difference["value"] == pytest.approx(0.4) and 0.2 < difference["low"] < 0.4 < difference["high"] < 0.6
    assert found["other"] == {
        "higher_is_better": None, "documents": 100, "values": {"sft": 5.0, "merged": 5.0}, "differences": {},
    }  # fmt: skip


def test_show_prints_what_the_judge_said(tmp_path: Path) -> None:
    text = _text(_save(tmp_path, make_heldout()))
    judge = make_report()["judge"]
    assert f"{judge['judgments']} judgments, 1 unreadable, 1,020 tokens, 0.25 USD" in text
    assert f"{judge['ratings']['merged']['overall']:.2f}" in text
    assert "wins" in text and f"{judge['pairs']['merged - sft']['points']['value']:.0%}" in text


def test_a_model_that_cannot_answer_is_not_judged_and_is_named() -> None:
    judge = make_report()["judge"]
    assert judge["unanswered"] == {"source:math": {"0": EVIL}}
    assert judge["ratings"]["source:math"]["readable"] == 5
    assert sum(judge["pairs"]["merged - source:math"][key] for key in ("wins", "ties", "losses")) == 5


def test_show_compares_two_runs_by_document(tmp_path: Path) -> None:
    first = _save(tmp_path / "a", make_heldout())
    second = _save(tmp_path / "b", make_heldout(steps=(0.0, -0.3, -0.1, -0.15, -0.1)))
    text = _text(first, second)
    assert "second - first" in text
    assert "+0.1" in text


def test_show_says_when_two_runs_hold_out_different_documents(tmp_path: Path) -> None:
    text = _text(_save(tmp_path / "a", make_heldout()), _save(tmp_path / "b", make_heldout(n=60)))
    assert "do not compare" in text


def test_a_run_without_a_report_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="fusion-ray run"):
        RunReport.read(str(tmp_path))
    folder = Path(_save(tmp_path / "a", make_heldout()))
    (folder / "6_report" / "report.json").write_text("[]")
    with pytest.raises(CorruptArtifactError, match="not a report"):
        RunReport.read(str(folder))


def test_alignment_is_told_in_shares_and_only_as_far_as_every_set_counted_it() -> None:
    facts = {"positions": 200.0, "covered": 150.0, "groups": 0.0, "trust": 0.5}
    rows = alignment_rows({"math": {"math": facts}, "code": {"code": facts | {"covered": 50.0, "source_nll": 12.0}}})
    assert rows == {
        "pivot answer positions": ["200", "200"],
        "with a source distribution": ["75.00%", "25.00%"],
        "trust in the source": ["0.500", "0.500"],
    }


def test_the_recipe_s_seed_decides_what_the_bootstrap_draws_and_each_use_has_a_seed_of_its_own() -> None:
    heldout = make_heldout()
    one, again, other = (measure(heldout, 100, seed) for seed in (0, 0, 1))
    assert one["differences"] == again["differences"] != other["differences"]
    assert one["bits_per_byte"] == other["bits_per_byte"]
    assert len({derive_seed(seed, name) for seed in (0, 1) for name in ("report bootstrap", "judge")}) == 4
