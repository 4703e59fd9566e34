"""report.html: one file that opens without a network, light or dark, on a screen or a phone.

All text of models, corpus and recipe is escaped by the template or travels as JSON that the page's script puts in as
text. A content security policy lets only the page's own two scripts run, named by their hashes.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from fusion_ray.report import figures
from fusion_ray.report.benchmarks import benchmark_columns, best_value
from fusion_ray.report.judging import describe_cost, judged_turns
from fusion_ray.report.statistics.rates import OVERALL

CURVES = {
    "bits_per_byte": "validation bits per byte",
    "gold": "gold tokens, nats per token",
    "soft": "fused distributions, nats per token",
}


def render_page(report: Mapping[str, Any]) -> str:
    """The page of a report.

    Args:
        report: The content of report.json.
    """
    scripts = [get_plotlyjs(), _read("page.js")]
    return _environment().get_template("page.html.jinja").render(
        report=report,
        overall=OVERALL,
        domains=[domain for domain in report["bits_per_byte"]["pivot"] if domain != OVERALL],
        best=_best_by_column(report["bits_per_byte"]),
        cards=headline(report),
        story=tell_story(report),
        fewest_tokens=figures.FEWEST_TOKENS,
        alignment=alignment_rows(report["alignment"]),
        figures_json=_embed(all_figures(report)),
        views_json=_embed(report["views"]),
        benchmarks=benchmark_columns(report["benchmarks"]),
        judge_turns=judged_turns(report["judge"]),
        judging=describe_cost(report["judge"]) if report["judge"] else "",
        style=_read("page.css"),
        scripts=scripts,
        policy=_policy(scripts),
    )  # fmt: skip


def tell_story(report: Mapping[str, Any]) -> str:
    """What was done, for somebody who has never seen a fusion."""
    sources = [name for name in report["models"] if name != "pivot"]
    named = " and ".join([", ".join(sources[:-1]), sources[-1]] if len(sources) > 1 else sources)
    copies = sum(model.startswith("target:") for model in report["bits_per_byte"])
    learned = f"{copies} copies of the pivot learned from them" if copies > 1 else "A copy of the pivot learned from it"
    return (
        f"A fusion of chat models: what {named} know{'' if len(sources) > 1 else 's'} goes into one model of the "
        f"pivot's shape and size. {learned} over a corpus of chats, and became the merged model. What follows was "
        "measured on chats that none of them was trained on."
    )


def headline(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers at the top: the pivot's, plain fine-tuning's and fusion's."""
    rates = report["bits_per_byte"]
    names = {"pivot": "pivot", "sft": "plain fine-tuning (sft)", "merged": "merged model"}
    cards = [
        {"name": names[model], "value": f"{rates[model][OVERALL]:.3f}", "unit": _against_pivot(rates, model)}
        for model in names
        if model in rates
    ]
    share = report["oracle"]["recovered_share"]["merged"][OVERALL]
    if share is not None:
        cards.append({"name": "of the oracle's gain", "value": f"{share:.0%}", "unit": "recovered"})
    return cards


def _against_pivot(rates: Mapping[str, Mapping[str, float]], model: str) -> str:
    change = rates[model][OVERALL] / rates["pivot"][OVERALL] - 1
    return "bits per byte" if model == "pivot" else f"bits per byte, {change:+.1%} against the pivot"


def all_figures(report: Mapping[str, Any]) -> dict[str, figures.Figure]:
    """Every plot of the page by the id of its place."""
    safe = figures.escape_labels(report)
    found = {
        "fig-rates": figures.rates_figure(safe["bits_per_byte"]),
        "fig-gains": figures.differences_figure(_pairs(safe["differences"], against_pivot=True)),
        "fig-oracle": figures.shares_figure(safe["oracle"]["chosen"]),
        "fig-calibration": figures.calibration_figure(safe["calibration"]),
        "fig-seconds": figures.seconds_figure(safe["stages"]),
    }
    others = _pairs(safe["differences"], against_pivot=False)
    if others:
        found["fig-differences"] = figures.differences_figure(others)
    for index, counts in enumerate(safe["chosen"].values()):
        rows = {domain: kinds["rows"] for domain, kinds in counts.items()}
        found[f"fig-chosen-{index}"] = figures.shares_figure(rows)
    for key, title in curve_titles(report["training"]).items():
        found[f"fig-curve-{key}"] = figures.curves_figure(safe["training"], key, title)
    if safe["judge"] and safe["judge"]["pairs"]:
        found["fig-pairs"] = figures.pairs_figure(safe["judge"]["pairs"])
    weights = safe["merge_weights"]
    if weights and weights["parts"]:
        for index, target in enumerate(weights["targets"]):
            found[f"fig-weights-{index}"] = figures.weights_figure(weights["parts"], target)
    return found


def _pairs(differences: Mapping[str, Any], *, against_pivot: bool) -> dict[str, Any]:
    """Differences from the pivot are far larger than those between trained models: each kind needs its own scale."""
    return {pair: found for pair, found in differences.items() if pair.endswith("- pivot") == against_pivot}


def curve_titles(training: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, str]:
    """The quantities that some training has logged, with what to call them."""
    logged = {
        key for points in training.values() for point in points for key, value in point.items() if value is not None
    }
    return {key: title for key, title in CURVES.items() if key in logged}


def alignment_rows(alignment: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, list[str]]:
    """What alignment counted, in words: a line for every measure, a cell for every fused set and source."""
    found = [facts for sources in alignment.values() for facts in sources.values()]
    rows = {
        "pivot answer positions": [f"{facts['positions']:,.0f}" for facts in found if "positions" in facts],
        "with a source distribution": [_share(facts, "covered", "positions") for facts in found],
        "groups of one token each": [_share(facts, "one_to_one", "groups") for facts in found],
        "groups whose bytes differ": [_share(facts, "differing", "groups") for facts in found],
        "mass in the kept entries": [_share(facts, "kept_mass", "covered") for facts in found],
        "transferred by the map": [_share(facts, "transferred", "positions") for facts in found],
        "of these from another byte": [_share(facts, "wrong_boundary", "transferred") for facts in found],
        "mass moved": [_share(facts, "mass_moved", "transferred") for facts in found],
        "mass without a partner": [_share(facts, "mass_unmapped", "transferred") for facts in found],
        "mass lost in collisions": [_share(facts, "mass_collided", "transferred") for facts in found],
        "source's nll, nats": [f"{facts['source_nll']:,.0f}" for facts in found if "source_nll" in facts],
        "projected nll, nats": [f"{facts['projected_nll']:,.0f}" for facts in found if "projected_nll" in facts],
        "trust in the source": [f"{facts['trust']:.3f}" for facts in found if "trust" in facts],
        "largest loss of a group, nats": [f"{f['violation_nats']:.1e}" for f in found if "violation_nats" in f],
    }
    return {measure: cells for measure, cells in rows.items() if len(cells) == len(found) and any(cells)}


def _share(facts: Mapping[str, float], part: str, whole: str) -> str:
    return f"{facts[part] / facts[whole]:.2%}" if facts.get(whole) and part in facts else ""


def _best_by_column(rates: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {domain: min(by_domain[domain] for by_domain in rates.values()) for domain in rates["pivot"]}


def _embed(data: Any) -> str:
    """JSON escaped so that it cannot end its script element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: list[str]) -> str:
    """Nothing is loaded, and only these scripts run."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


@lru_cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["best_value"] = best_value
    environment.filters["curve_titles"] = curve_titles
    environment.filters["pretty_json"] = lambda data: json.dumps(data, indent=1, ensure_ascii=False)
    return environment


@lru_cache
def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
