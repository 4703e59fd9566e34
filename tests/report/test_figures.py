"""The plots of the page, each compared whole, and the words and numbers around them."""

import json
from typing import Any

import pytest

from fusion_ray.report import figures, page

ROWS = {
    "margin": {"l": 10, "r": 24, "t": 20, "b": 50},
    "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
}
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}


def test_colours_repeat_after_eight_and_known_models_have_their_own() -> None:
    assert [figures.colour(n) for n in (0, 7, 8, 17)] == ["$c0", "$c7", "$c0", "$c1"]
    assert figures.colours_of(["pivot", "a", "merged", "b", "gold"]) == {
        "pivot": "$muted", "gold": "$line", "merged": "$text", "a": "$c0", "b": "$c1",
    }  # fmt: skip


def test_rates_are_a_mark_for_each_domain_and_a_diamond_for_the_overall() -> None:
    domains = [f"d{n}" for n in range(9)]
    rates = {model: dict.fromkeys(domains, at) | {"overall": at + 1} for model, at in (("pivot", 1.0), ("merged", 0.5))}
    found = figures.rates_figure(rates)
    mark = {"type": "scatter", "mode": "markers", "y": ["pivot", "merged"]}
    assert found["data"][8] == mark | {
        "name": "d8",
        "x": [1.0, 0.5],
        "marker": {"color": "$c0", "symbol": "circle", "size": 9, "opacity": 0.85},
        "hovertemplate": "%{y}, d8: %{x:.4f}<extra></extra>",
    }
    assert [trace["marker"]["symbol"] for trace in found["data"]] == [
        *("circle", "square", "triangle-up", "cross", "star", "hexagon", "bowtie", "pentagon", "circle", "diamond")
    ]
    assert found["data"][9] == mark | {
        "name": "overall",
        "x": [2.0, 1.5],
        "marker": {"color": "$text", "symbol": "diamond", "size": 13},
        "hovertemplate": "%{y}, overall: %{x:.4f}<extra></extra>",
    }
    assert found["layout"] == ROWS | {"height": 188, "xaxis": {"title": {"text": "bits per byte"}}}


def test_differences_have_the_colour_of_what_is_sure_and_bars_as_long_as_their_intervals() -> None:
    cases = {
        "better": (-2.0, -3.0, -0.5),
        "touches 0 from below": (-2.0, -3.0, 0.0),
        "touches 0 from above": (2.0, 0.0, 3.0),
        "worse": (2.0, 0.5, 4.0),
    }
    differences = {
        pair: {"overall": {"value": value, "low": low, "high": high}} for pair, (value, low, high) in cases.items()
    }
    found = figures.differences_figure(differences)
    (trace,) = found["data"]
    assert trace == {
        "type": "scatter",
        "mode": "markers",
        "x": [-2.0, -2.0, 2.0, 2.0],
        "y": list(cases),
        "marker": {"color": ["$good", "$muted", "$muted", "$bad"], "size": 11},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [1.5, 2.0, 1.0, 2.0],
            "arrayminus": [1.0, 1.0, 2.0, 1.5],
            "color": "$muted",
        },
        "hovertemplate": "%{y}: %{x:+.4f}<extra></extra>",
    }
    axis = {
        "title": {"text": "bits per byte (left: the first is better)"},
        "zerolinewidth": 2, "zerolinecolor": "$text", "rangemode": "tozero",
    }  # fmt: skip
    assert found["layout"] == ROWS | {"height": 256, "showlegend": False, "xaxis": axis}


def test_shares_are_of_each_domain_and_an_empty_domain_has_none() -> None:
    counts = {"code": {"pivot": 1, "math": 3}, "empty": {"pivot": 0}, "law": {"gold": 2, "math": 2}}
    found = figures.shares_figure(counts)
    assert [(trace["name"], trace["x"], trace["customdata"], trace["marker"]["color"]) for trace in found["data"]] == [
        ("pivot", [0.25, 0.0, 0.0], [1, 0, 0], "$muted"),
        ("math", [0.75, 0.0, 0.5], [3, 0, 2], "$c0"),
        ("gold", [0.0, 0.0, 0.5], [0, 0, 2], "$line"),
    ]
    assert {(trace["type"], trace["orientation"], *trace["y"]) for trace in found["data"]} == {("bar", "h", *counts)}
    assert found["data"][1]["hovertemplate"] == "%{y}, math: %{x:.1%} (%{customdata:,})<extra></extra>"
    axis = {"tickformat": ".0%", "range": [0, 1], "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    assert found["layout"] == ROWS | {"height": 222, "barmode": "stack", "legend": LEGEND, "xaxis": axis}


def test_pairs_are_stacked_by_wins_ties_and_losses() -> None:
    pairs = {"a - b": {"wins": 3, "ties": 2, "losses": 1}, "a - c": {"wins": 0, "ties": 5, "losses": 6}}
    found = figures.pairs_figure(pairs)
    assert [(trace["name"], trace["x"], trace["y"], trace["marker"]["color"]) for trace in found["data"]] == [
        ("wins", [3, 0], ["a - b", "a - c"], "$good"),
        ("ties", [2, 5], ["a - b", "a - c"], "$line"),
        ("losses", [1, 6], ["a - b", "a - c"], "$bad"),
    ]
    assert found["layout"] == ROWS | {"height": 188, "barmode": "stack", "legend": LEGEND}


def test_calibration_leaves_out_bins_of_fewer_than_twenty_tokens() -> None:
    bins = {"tokens": [19, 20, 21], "confidence": [0.1, 0.5, 0.9], "accuracy": [0.2, 0.4, 0.8]}
    found = figures.calibration_figure({model: {"bins": bins} for model in ("pivot", "source:math", "sft", "merged")})
    ideal, *lines = found["data"]
    assert (ideal["x"], ideal["y"], ideal["name"]) == ([0, 1], [0, 1], "ideal")
    assert [(line["name"], line["visible"], line["line"]["color"]) for line in lines] == [
        ("pivot", True, "$muted"), ("source:math", "legendonly", "$c0"), ("sft", True, "$c1"),
        ("merged", True, "$text"),
    ]  # fmt: skip
    assert all((line["x"], line["y"]) == ([0.5, 0.9], [0.4, 0.8]) for line in lines)
    assert found["layout"] == {
        "height": 420,
        "xaxis": {"title": {"text": "probability of the first choice"}, "range": [0, 1]},
        "yaxis": {"title": {"text": "how often it was right"}, "range": [0, 1]},
    }


@pytest.mark.parametrize(("count", "mode"), [(30, "lines+markers"), (31, "lines")])
def test_a_curve_of_few_points_has_marks(count: int, mode: str) -> None:
    points = [{"step": n, "gold": 1.0 + n} for n in range(count)] + [{"step": 99, "gold": None}, {"step": 100}]
    training = {"zero": [{"step": 0, "gold": 0.0}], "none": [{"step": 0}], "math": points}
    found = figures.curves_figure(training, "gold", "a title")
    assert found == {
        "data": [
            {
                "type": "scatter",
                "mode": mode,
                "name": "math",
                "x": list(range(count)),
                "y": [1.0 + n for n in range(count)],
                "line": {"color": "$c2"},
            }
        ],
        "layout": {"height": 340, "xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "a title"}}},
    }


def part(layer: str, module: str, **weights: float) -> dict[str, Any]:
    return {"layer": layer, "module": module, "weights": weights}


def test_weights_are_drawn_layer_by_module_around_the_even_share() -> None:
    parts = [part("outside layers", "norm", x=0.5, y=0.5), part("0", "mlp", x=0.375, y=0.625), part("0", "norm", x=0.5,
                                                                                                   y=0.5)]  # fmt: skip
    found = figures.weights_figure(parts, "x")
    assert found["data"] == [
        {
            "type": "heatmap",
            "x": ["norm", "mlp"],
            "y": ["outside layers", "layer 0"],
            "z": [[0.5, None], [0.5, 0.375]],
            "colorscale": [[0, "$cold"], [0.5, "$middle"], [1, "$warm"]],
            "zmin": 0.375,
            "zmax": 0.625,
            "hoverongaps": False,
            "hovertemplate": "%{y}, %{x}: %{z:.3f}<extra></extra>",
            "texttemplate": "%{z:.3f}",
            "colorbar": {"thickness": 10, "tickformat": ".2f"},
        }
    ]
    assert found["layout"] == ROWS | {
        "height": 278, "margin": {"l": 10, "r": 24, "t": 46, "b": 90}, "title": {"text": "x"}, "showlegend": False,
        "xaxis": {"tickangle": -35},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "low", "high"),
    [({"x": 1.0}, 0.98, 1.02), ({"x": 0.51, "y": 0.49}, 0.48, 0.52), ({"x": 1.0, "y": 0.5}, 0.0, 1.0)],
)
def test_the_scale_of_weights_is_as_wide_as_they_lie_apart(weights: dict[str, float], low: float, high: float) -> None:
    (trace,) = figures.weights_figure([part("head", "mlp", **weights)], "x")["data"]
    assert (trace["zmin"], trace["zmax"]) == pytest.approx((low, high))
    assert trace["y"] == ["head"]


@pytest.mark.parametrize(("count", "template"), [(40, "%{z:.3f}"), (41, "")])
def test_many_weights_are_coloured_and_not_written_out(count: int, template: str) -> None:
    (trace,) = figures.weights_figure([part(str(n), "mlp", x=1.0) for n in range(count)], "x")["data"]
    assert trace["texttemplate"] == template


def test_seconds_are_named_by_stage_and_artifact() -> None:
    stages = [{"stage": "corpus", "name": "", "seconds": 1.5}, {"stage": "fused", "name": "math", "seconds": 2.5}]
    found = figures.seconds_figure(stages)
    assert found["data"] == [
        {
            "type": "bar", "orientation": "h", "x": [1.5, 2.5], "y": ["corpus", "fused/math"],
            "marker": {"color": "$c0"}, "hovertemplate": "%{y}: %{x:.1f} s<extra></extra>",
        }
    ]  # fmt: skip
    assert found["layout"] == ROWS | {
        "height": 188, "showlegend": False, "xaxis": {"title": {"text": "seconds"}},
    }  # fmt: skip


def test_labels_are_safe_at_every_depth_and_numbers_stay() -> None:
    data = {"<a>": ["&", ("%{x}", 1), {"k": None}], "n": 2.5}
    assert figures.escape_labels(data) == {"&lt;a&gt;": ["&amp;", ["% {x}", 1], {"k": None}], "n": 2.5}


# --- the page ------------------------------------------------------------------------------------------------------


def story(models: list[str], copies: int) -> str:
    targets = [f"target:{n}" for n in range(copies)]
    return page.tell_story({"models": models, "bits_per_byte": dict.fromkeys(["pivot", *targets, "merged"])})


@pytest.mark.parametrize(
    ("models", "copies", "named", "learned"),
    [
        (["pivot", "math"], 1, "what math knows goes", "A copy of the pivot learned from it over"),
        (["pivot", "a", "b"], 2, "what a and b know goes", "2 copies of the pivot learned from them over"),
        (["pivot", "a", "b", "c"], 1, "what a, b and c know goes", "A copy of the pivot learned from it over"),
    ],
)
def test_the_story_names_all_sources_and_counts_the_targets(
    models: list[str], copies: int, named: str, learned: str
) -> None:
    text = story(models, copies)
    assert named in text and learned in text


def test_the_headline_compares_with_the_pivot() -> None:
    rates = {"pivot": {"overall": 2.0}, "merged": {"overall": 1.5}}
    report = {"bits_per_byte": rates, "oracle": {"recovered_share": {"merged": {"overall": 0.256}}}}
    assert page.headline(report) == [
        {"name": "pivot", "value": "2.000", "unit": "bits per byte"},
        {"name": "merged model", "value": "1.500", "unit": "bits per byte, -25.0% against the pivot"},
        {"name": "of the oracle's gain", "value": "26%", "unit": "recovered"},
    ]
    report["oracle"]["recovered_share"]["merged"]["overall"] = None
    assert len(page.headline(report)) == 2


def plotted(**changes: Any) -> dict[str, Any]:
    difference = {"overall": {"value": 1.0, "low": 0.5, "high": 2.0}}
    report = {
        "bits_per_byte": {"pivot": {"overall": 1.0}},
        "differences": {"merged - pivot": difference, "merged - sft": difference},
        "oracle": {"chosen": {}}, "calibration": {}, "stages": [], "judge": None, "merge_weights": None,
        "chosen": {"math": {"code": {"rows": {"pivot": 1}}}, "law": {"code": {"rows": {"pivot": 2}}}},
        "training": {"math": [{"step": 1, "gold": 1.0, "soft": None}]},
    }  # fmt: skip
    return page.all_figures(report | changes)


PLAIN = {"fig-rates", "fig-gains", "fig-oracle", "fig-calibration", "fig-seconds"}
OFTEN = PLAIN | {"fig-differences", "fig-chosen-0", "fig-chosen-1", "fig-curve-gold"}


def test_there_is_a_plot_for_all_that_there_is_and_none_for_what_there_is_not() -> None:
    found = plotted()
    assert set(found) == OFTEN
    assert found["fig-gains"]["data"][0]["y"] == ["merged - pivot"]
    assert found["fig-differences"]["data"][0]["y"] == ["merged - sft"]
    assert found["fig-chosen-1"]["data"][0]["customdata"] == [2]
    bare = plotted(differences={"merged - pivot": {"overall": {"value": 1.0, "low": 0.5, "high": 2.0}}}, chosen={},
                   training={})  # fmt: skip
    assert set(bare) == PLAIN
    pairs = {"a - b": {"wins": 3, "ties": 2, "losses": 1}}
    assert set(plotted(judge={"pairs": pairs})) == OFTEN | {"fig-pairs"}
    assert set(plotted(judge={"pairs": {}})) == OFTEN
    weights = {"targets": ["x", "y"], "parts": [part("0", "mlp", x=0.25, y=0.75)]}
    assert set(plotted(merge_weights=weights)) == OFTEN | {"fig-weights-0", "fig-weights-1"}
    assert set(plotted(merge_weights=weights | {"parts": []})) == OFTEN


def test_all_that_alignment_counted_is_told_in_shares_of_what_it_is_a_part_of() -> None:
    facts = {
        "positions": 2_000.0, "covered": 1_500.0, "one_to_one": 300.0, "groups": 600.0, "differing": 60.0,
        "kept_mass": 1_350.0, "transferred": 1_000.0, "wrong_boundary": 10.0, "mass_moved": 500.0,
        "mass_unmapped": 250.0, "mass_collided": 125.0, "source_nll": 1_234.4, "projected_nll": 2_345.6,
        "trust": 0.7504, "violation_nats": 1.26e-6,
    }  # fmt: skip
    assert page.alignment_rows({"math": {"math": facts}}) == {
        "pivot answer positions": ["2,000"],
        "with a source distribution": ["75.00%"],
        "groups of one token each": ["50.00%"],
        "groups whose bytes differ": ["10.00%"],
        "mass in the kept entries": ["90.00%"],
        "transferred by the map": ["50.00%"],
        "of these from another byte": ["1.00%"],
        "mass moved": ["50.00%"],
        "mass without a partner": ["25.00%"],
        "mass lost in collisions": ["12.50%"],
        "source's nll, nats": ["1,234"],
        "projected nll, nats": ["2,346"],
        "trust in the source": ["0.750"],
        "largest loss of a group, nats": ["1.3e-06"],
    }
    only = {"math": {"math": {"positions": 5.0}}, "code": {"code": {"positions": 6.0, "covered": 3.0}}}
    assert page.alignment_rows(only) == {
        "pivot answer positions": ["5", "6"], "with a source distribution": ["", "50.00%"],
    }  # fmt: skip


def test_data_cannot_end_its_script_and_stays_the_data_that_it_is() -> None:
    text = page._embed(data := {"a": "</script>&<é"})
    assert text.isascii() and not set("<>&") & set(text) and json.loads(text) == data
    with pytest.raises(ValueError, match="JSON compliant"):
        page._embed(float("nan"))


def test_templates_escape_text_and_indent_data_and_leave_no_lines_of_their_own() -> None:
    environment = page._environment()
    text = "{% if True %}\n  {% set x = 1 %}\n<{{ text }}>\n{% endif %}\n{{ data | pretty_json }}"
    template = environment.from_string(text)
    shown = template.render(text="<é>", data={"é": [1]})
    assert shown == "<&lt;é&gt;>\n{\n &#34;é&#34;: [\n  1\n ]\n}"
