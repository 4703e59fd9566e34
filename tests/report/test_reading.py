"""What is read back: finished reports, what was kept of one that stopped, curves, weights, and held-out rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion_ray.errors import CorruptArtifactError, MissingArtifactError
from fusion_ray.report.heldout import HeldOut, documents_table, domain_label, join_shards
from fusion_ray.report.history import hide_credentials, read_curve
from fusion_ray.report.kept import keep, read_kept
from fusion_ray.report.model_card import add_scores
from fusion_ray.report.numbers import derive_seed, differences_to_report, measure
from fusion_ray.report.reading import RunReport, compare_merged
from fusion_ray.report.statistics.calibration import bin_confidences
from fusion_ray.report.statistics.rates import Scores
from fusion_ray.report.weights import weights_by_part

LN2 = 0.6931471805599453
CONTENT = {"bits_per_byte": {"pivot": {"a": 1.0, "overall": 1.0}}, "verdict": {"text": "x", "helped": None}}


def saved(folder: Path, content: Any = CONTENT, manifest: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(content))
    if manifest:
        (folder / "MANIFEST.json").write_text("{}")
    return folder


def test_a_report_is_found_by_its_run_or_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "run" / "6_report")
    for place in (tmp_path / "run", tmp_path / "run" / "6_report"):
        report = RunReport.read(str(place))
        assert report.merged == str(tmp_path / "run" / "5_merged")
        assert report.page == str(tmp_path / "run" / "6_report" / "report.html")
    assert (report.helped, report.verdict, str(report)) == (None, "x", "x")
    monkeypatch.chdir(tmp_path / "run")
    assert Path(RunReport.read("6_report").merged) == Path("5_merged")
    assert "6_report" in repr(report) and "verdict" not in repr(report)


def test_a_report_without_its_manifest_or_a_manifest_without_a_report_is_not_finished(tmp_path: Path) -> None:
    saved(tmp_path / "one" / "6_report", manifest=False)
    (tmp_path / "two" / "6_report").mkdir(parents=True)
    (tmp_path / "two" / "6_report" / "MANIFEST.json").write_text("{}")
    for name in ("one", "two"):
        with pytest.raises(MissingArtifactError):
            RunReport.read(str(tmp_path / name))


@pytest.mark.parametrize("missing", ["bits_per_byte", "verdict"])
def test_what_lacks_rates_or_verdict_is_no_report(missing: str, tmp_path: Path) -> None:
    saved(tmp_path / "6_report", {key: value for key, value in CONTENT.items() if key != missing})
    with pytest.raises(CorruptArtifactError, match="not a report"):
        RunReport.read(str(tmp_path))


def merged_run(folder: Path, nll: list[float], ids: str = "ab", domains: str = "xy", sizes: tuple[int, ...] = (8, 8),
               **content: Any) -> RunReport:  # fmt: skip
    place = saved(folder / "6_report", CONTENT | {"bootstrap": 200, "seed": 0} | content)
    table = {"id": list(ids), "domain": list(domains), "n_bytes": list(sizes), "merged": nll}
    pq.write_table(pa.table(table), place / "documents.parquet")
    return RunReport.read(str(folder))


def test_merged_models_are_compared_where_documents_domains_and_bytes_are_the_same(tmp_path: Path) -> None:
    one = merged_run(tmp_path / "one", [8 * LN2, 8 * LN2])
    two = merged_run(tmp_path / "two", [16 * LN2, 4 * LN2])
    found = compare_merged(one, two)
    assert found is not None
    assert {domain: difference.value for domain, difference in found.items()} == pytest.approx(
        {"x": 1.0, "y": -0.5, "overall": 0.25}
    )
    for name, other in (("ids", "ac"), ("domains", "xx"), ("sizes", (8, 9))):
        assert compare_merged(one, merged_run(tmp_path / name, [1.0, 1.0], **{name: other})) is None  # type: ignore[arg-type]


def test_the_first_run_says_how_often_is_drawn(tmp_path: Path) -> None:
    few = merged_run(tmp_path / "few", [8 * LN2, 8 * LN2], bootstrap=100)
    many = merged_run(tmp_path / "many", [16 * LN2, 4 * LN2], bootstrap=400)
    for first, second, draws in ((few, many, 100), (many, few, 400)):
        found = compare_merged(first, second)
        assert found is not None and found["x"].p_value == pytest.approx(2 / (draws + 1))


def test_what_is_kept_is_read_back_for_the_same_fingerprint_only(tmp_path: Path) -> None:
    uri = str(tmp_path / "kept.json")
    assert read_kept(uri, "f") is None
    keep(uri, "f", {"ä": 1, "a": [2]})
    assert read_kept(uri, "f") == {"ä": 1, "a": [2]}
    assert read_kept(uri, "g") is None
    assert Path(uri).read_text() == ('{\n "content": {\n  "a": [\n   2\n  ],\n  "ä": 1\n },\n "fingerprint": "f"\n}\n')
    for damaged in ("{", "[]", '"f"'):
        Path(uri).write_text(damaged)
        assert read_kept(uri, "f") is None


@pytest.mark.parametrize(("count", "kept"), [(0, 0), (1, 1), (400, 400), (401, 201), (800, 401), (801, 268)])
def test_a_curve_is_thinned_to_four_hundred_points_and_its_last(count: int, kept: int, tmp_path: Path) -> None:
    assert read_curve(str(tmp_path)) == []
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": n}) + "\n" for n in range(count)))
    points = read_curve(str(tmp_path))
    assert len(points) == kept
    assert not count or [points[0]["step"], points[-1]["step"]] == [0, count - 1]


def test_a_thinned_curve_keeps_what_was_measured_and_its_last_point(tmp_path: Path) -> None:
    lines = [{"step": n, "bits_per_byte": 2.0 if n == 7 else None} for n in range(402)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [point["step"] for point in read_curve(str(tmp_path))]
    assert steps == sorted({*range(0, 402, 2), 7, 401})


def test_users_and_passwords_are_left_out_at_every_depth() -> None:
    data = {"a": ["s3://k:s@b/c", {"b": "http://u@h"}], "n": 1, "m": "me@home"}
    assert hide_credentials(data) == {"a": ["s3://b/c", {"b": "http://h"}], "n": 1, "m": "me@home"}


def test_weights_of_tensors_outside_of_layers_come_first_and_missing_ones_are_nothing() -> None:
    tensors: dict[str, Any] = {
        "model.layers.1.mlp.up.weight": {"x": 0.5},
        "model.layers.0.mlp.up.weight": {"x": 0.25, "y": 0.75},
        "model.layers.0.mlp.down.weight": {"x": 0.75, "y": 0.25},
        "model.layers.0.norm.weight": {"y": 1.0},
        "lm_head.weight": {"x": 1.0, "y": 0.0},
        "b.weight": None,
        "a.weight": None,
    }
    found = weights_by_part({"method": "varm", "tensors": tensors})
    assert found == {
        "method": "varm",
        "targets": ["x", "y"],
        "parts": [
            {"layer": "outside layers", "module": "lm_head", "tensors": 1, "weights": {"x": 1.0, "y": 0.0}},
            {"layer": "0", "module": "mlp", "tensors": 2, "weights": {"x": 0.5, "y": 0.5}},
            {"layer": "0", "module": "norm", "tensors": 1, "weights": {"x": 0.0, "y": 1.0}},
            {"layer": "1", "module": "mlp", "tensors": 1, "weights": {"x": 0.5, "y": 0.0}},
        ],
        "without_weights": ["a.weight", "b.weight"],
    }


def test_a_domain_without_a_name_has_one_in_the_report() -> None:
    assert [domain_label(name) for name in (None, "", "code", "overall")] == [
        "(no domain)", "(no domain)", "code", "overall (domain)",
    ]  # fmt: skip


def bins_of(tokens: list[bool]) -> list[list[float]]:
    return [part.tolist() for part in bin_confidences(np.full(len(tokens), 0.75), np.array(tokens))]


def test_shards_are_joined_in_order_with_their_places() -> None:
    parts = [
        {"rows": [0, 2], "ids": ["a", "c"], "domains": ["x", "y"], "bytes": [4, 8], "nll": [[1.0, 2.0], [3.0, 4.0]],
         "left_out": {"b": "why"}, "bins": {"pivot": bins_of([True]), "merged": bins_of([True])}},
        {"rows": [1], "ids": ["d"], "domains": ["x"], "bytes": [2], "nll": [[5.0, 6.0]], "left_out": {},
         "bins": {"pivot": bins_of([False]), "merged": bins_of([True])}},
    ]  # fmt: skip
    heldout = join_shards(["pivot", "merged"], parts)
    assert heldout.scores.nll_MN.tolist() == [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]
    assert (heldout.ids, heldout.places) == (("a", "c", "d"), ((0, 0), (0, 2), (1, 1)))
    assert heldout.place("d") == (1, 1) and heldout.left_out == {"b": "why"}
    assert documents_table(heldout).to_pydict() == {
        "id": ["a", "c", "d"], "domain": ["x", "y", "x"], "n_bytes": [4, 8, 2], "pivot": [1.0, 3.0, 5.0],
        "merged": [2.0, 4.0, 6.0],
    }  # fmt: skip
    empty = join_shards(
        ["pivot", "merged"], [parts[0] | {"rows": [], "ids": [], "domains": [], "bytes": [], "nll": []}]
    )
    assert empty.scores.nll_MN.shape == (2, 0)


MODELS = ("pivot", "source:a", "source:b", "sft", "target:a", "merged")


def test_all_numbers_of_a_few_documents_by_hand() -> None:
    bits_MN = np.array([[16.0, 8, 8], [8, 16, 8], [16, 4, 8], [12, 8, 8], [12, 6, 8], [8, 4, 8]])
    scores = Scores(MODELS, bits_MN * LN2, np.array([8, 8, 4]), np.array(["x", "y", "y"], dtype=object))
    right = bin_confidences(np.array([0.75, 0.75, 0.25, 0.25]), np.array([True, False, False, False]))
    found = measure(HeldOut(scores, ("1", "2", "3"), ((0, 0),) * 3, {"left": "why"}, {"pivot": right}), 200, 0)
    rates = {model: by_domain["overall"] for model, by_domain in found["bits_per_byte"].items()}
    # x: 16 bits in 8 bytes; y: 16 bits in 12 bytes; overall the mean of both.
    assert rates == pytest.approx(
        {"pivot": 5 / 3, "source:a": 1.5, "source:b": 1.5, "sft": 17 / 12, "target:a": 4 / 3, "merged": 1.0}
    )
    assert found["bits_per_byte_micro"]["pivot"] == pytest.approx(32 / 20) and len(found["bits_per_byte_micro"]) == 6
    assert found["oracle"]["bits_per_byte"] == pytest.approx({"x": 1.0, "y": 1.0, "overall": 1.0})
    assert found["oracle"]["chosen"] == {
        "x": {"pivot": 0, "source:a": 1, "source:b": 0}, "y": {"pivot": 1, "source:a": 0, "source:b": 1},
    }  # fmt: skip
    assert set(found["oracle"]["recovered_share"]) == {"sft", "target:a", "merged"}
    assert found["oracle"]["recovered_share"]["sft"] == pytest.approx({"x": 0.5, "y": 0.0, "overall": 0.375})
    value = {pair: differences["overall"]["value"] for pair, differences in found["differences"].items()}
    assert value == pytest.approx(
        {
            "merged - sft": 1 - 17 / 12, "merged - pivot": 1 - 5 / 3, "sft - pivot": 17 / 12 - 5 / 3,
            "target:a - sft": 4 / 3 - 17 / 12, "merged - target:a": 1 - 4 / 3,
        }
    )  # fmt: skip
    assert found["heldout"] == {
        "documents": 3, "bytes": 20, "documents_by_domain": {"x": 1, "y": 2}, "bytes_by_domain": {"x": 8, "y": 12},
        "left_out": {"left": "why"},
    }  # fmt: skip
    calibration = found["calibration"]["pivot"]
    assert (calibration["tokens"], calibration["accuracy"]) == (4, 0.25)
    seen = [
        (tokens, confidence, accuracy)
        for tokens, confidence, accuracy in zip(*calibration["bins"].values(), strict=True)
        if tokens
    ]
    assert seen == [(2, 0.25, 0.0), (2, 0.75, 0.5)]
    empty = [b for b, tokens in enumerate(calibration["bins"]["tokens"]) if not tokens]
    assert empty and {calibration["bins"]["confidence"][b] for b in empty} == {None}
    assert calibration["error"] == pytest.approx(0.25)


def test_pairs_that_are_reported_follow_from_the_arms_that_there_are() -> None:
    assert differences_to_report(["pivot", "source:a", "self", "target:a", "target:b", "merged"]) == [
        ("merged", "self"), ("merged", "pivot"), ("self", "pivot"), ("target:a", "pivot"), ("target:b", "pivot"),
        ("merged", "target:a"), ("merged", "target:b"),
    ]  # fmt: skip
    assert derive_seed(0, "x").bit_length() > 32


def test_a_card_s_table_has_a_column_for_each_domain_and_one_for_the_overall() -> None:
    rates = {"pivot": {"a_b": 1.0, "c": 2.0, "overall": 1.5}, "merged": {"a_b": 0.5, "c": 1.0, "overall": 0.75}}
    report = {
        "bits_per_byte": rates, "verdict": {"text": "It helped [x]."}, "bootstrap": 2_000,
        "heldout": {"documents": 1_003, "bytes": 2_000, "bytes_by_domain": {"c": 5, "a_b": 9}},
    }  # fmt: skip
    assert add_scores("# m\n\n## Configuration\n", report).splitlines() == [
        "# m",
        "",
        "## Held-out bits per byte",
        "",
        "| model | a\\_b | c | overall |",
        "| --- | ---: | ---: | ---: |",
        "| pivot | 1.000 | 2.000 | 1.500 |",
        "| merged | 0.500 | 1.000 | 0.750 |",
        "",
        "It helped \\[x\\].",
        "",
        "1,003 documents, 2,000 bytes of answers held out of the fine-tuning; lower is better; overall is the mean of "
        "the domains. Intervals: bootstrap over documents, 2,000 draws.",
        "",
        "## Configuration",
    ]
    assert add_scores("# m\n", report).startswith("# m\n\n## Held-out bits per byte\n")


@pytest.mark.parametrize(("count", "shown"), [(8, "abcdefgh"), (9, "bcdefghi")])
def test_a_card_shows_the_eight_largest_domains_in_order_of_their_names(count: int, shown: str) -> None:
    names = "abcdefghi"[:count]
    report = {
        "bits_per_byte": {"pivot": dict.fromkeys([*names, "overall"], 1.0)}, "verdict": {"text": "x"}, "bootstrap": 100,
        "heldout": {"documents": 1, "bytes": 1, "bytes_by_domain": {name: n for n, name in enumerate(names)}},
    }  # fmt: skip
    (head,) = [line for line in add_scores("", report).splitlines() if line.startswith("| model")]
    assert head == f"| model | {' | '.join(shown)} | overall |"
