"""The plots of the page as plain Plotly data; a colour `$name` is the page's own, light or dark.

Every function expects its names to have gone through `escape_labels`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_ray.report.statistics.rates import OVERALL
from fusion_ray.storage.topk import GOLD

Figure = dict[str, Any]
_SYMBOLS = ("circle", "square", "triangle-up", "cross", "star", "hexagon", "bowtie", "pentagon")
_N_COLOURS = 8
FEWEST_TOKENS = 20  # In a bin of the calibration plot.


def colour(index: int) -> str:
    """The page's colour number `index`; they repeat."""
    return f"$c{index % _N_COLOURS}"


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for every model: the pivot and the merged model have the same one in all plots."""
    fixed = {"pivot": "$muted", GOLD: "$line", "merged": "$text"}
    others = [name for name in names if name not in fixed]
    return fixed | {name: colour(index) for index, name in enumerate(others)}


def rates_figure(rates: Mapping[str, Mapping[str, float]]) -> Figure:
    """Every model's bits per byte: one mark a domain, a diamond for the overall."""
    models = list(rates)
    domains = [domain for domain in rates["pivot"] if domain != OVERALL]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": domain,
            "x": [rates[model][domain] for model in models],
            "y": models,
            "marker": {"color": colour(index), "symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": 9, "opacity": 0.85},
            "hovertemplate": "%{y}, " + domain + ": %{x:.4f}<extra></extra>",
        }
        for index, domain in enumerate(domains)
    ]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": OVERALL,
            "x": [rates[model][OVERALL] for model in models],
            "y": models,
            "marker": {"color": "$text", "symbol": "diamond", "size": 13},
            "hovertemplate": "%{y}, overall: %{x:.4f}<extra></extra>",
        }
    )
    return {"data": data, "layout": _rows(len(models)) | {"xaxis": {"title": {"text": "bits per byte"}}}}


def differences_figure(differences: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Overall differences with their intervals; left of 0 the first model is better."""
    pairs = list(differences)  # At least one: the merged model against the pivot.
    found = [differences[pair][OVERALL] for pair in pairs]
    marks = ["$good" if f["high"] < 0 else "$bad" if f["low"] > 0 else "$muted" for f in found]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [f["value"] for f in found],
        "y": pairs,
        "marker": {"color": marks, "size": 11},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [f["high"] - f["value"] for f in found],
            "arrayminus": [f["value"] - f["low"] for f in found],
            "color": "$muted",
        },
        "hovertemplate": "%{y}: %{x:+.4f}<extra></extra>",
    }
    axis = {
        "title": {"text": "bits per byte (left: the first is better)"},
        "zerolinewidth": 2,
        "zerolinecolor": "$text",
        "rangemode": "tozero",
    }
    return {"data": [trace], "layout": _rows(len(pairs)) | {"showlegend": False, "xaxis": axis}}


def shares_figure(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """By domain, the share of each model in a count, as stacked bars."""
    domains = list(counts)
    names = list(dict.fromkeys(name for found in counts.values() for name in found))
    totals = {domain: sum(counts[domain].values()) or 1 for domain in domains}
    colours = colours_of(names)
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": [counts[domain].get(name, 0) / totals[domain] for domain in domains],
            "y": domains,
            "customdata": [counts[domain].get(name, 0) for domain in domains],
            "marker": {"color": colours[name]},
            "hovertemplate": "%{y}, " + name + ": %{x:.1%} (%{customdata:,})<extra></extra>",
        }
        for name in names
    ]
    layout = _rows(len(domains)) | {
        "barmode": "stack",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "xaxis": {"tickformat": ".0%", "range": [0, 1], "tickvals": [0, 0.25, 0.5, 0.75, 1]},
    }
    return {"data": data, "layout": layout}


def pairs_figure(pairs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Wins, ties and losses of each pair's first model, as stacked bars."""
    colours = {"wins": "$good", "ties": "$line", "losses": "$bad"}
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": [found[name] for found in pairs.values()],
            "y": list(pairs),
            "marker": {"color": colours[name]},
            "hovertemplate": "%{y}: %{x} " + name + "<extra></extra>",
        }
        for name in colours
    ]
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    return {"data": data, "layout": _rows(len(pairs)) | {"barmode": "stack", "legend": legend}}


def calibration_figure(calibration: Mapping[str, Any]) -> Figure:
    """How often the most probable token came, by its probability; bins of few tokens are left out."""
    colours = colours_of(list(calibration))
    ideal = {
        "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "name": "ideal",
        "line": {"color": "$muted", "dash": "dot"}, "hoverinfo": "skip",
    }  # fmt: skip
    lines = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": model,
            "x": [found["bins"]["confidence"][b] for b in _filled(found)],
            "y": [found["bins"]["accuracy"][b] for b in _filled(found)],
            "line": {"color": colours[model]},
            "visible": True if model in ("pivot", "sft", "merged") else "legendonly",
        }
        for model, found in calibration.items()
    ]
    layout = {
        "height": 420,
        "xaxis": {"title": {"text": "probability of the first choice"}, "range": [0, 1]},
        "yaxis": {"title": {"text": "how often it was right"}, "range": [0, 1]},
    }
    return {"data": [ideal, *lines], "layout": layout}


def _filled(found: Mapping[str, Any]) -> list[int]:
    return [b for b, tokens in enumerate(found["bins"]["tokens"]) if tokens >= FEWEST_TOKENS]


def curves_figure(training: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str) -> Figure:
    """One quantity of all trainings, step by step; rare points get marks, and what is 0 throughout is left out."""
    data = []
    for index, (name, points) in enumerate(training.items()):
        known = [point for point in points if point.get(key) is not None]
        if any(point[key] for point in known):
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if len(known) <= 30 else "lines",
                    "name": name,
                    "x": [point["step"] for point in known],
                    "y": [point[key] for point in known],
                    "line": {"color": colour(index)},
                }
            )
    layout = {"height": 340, "xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": title}}}
    return {"data": data, "layout": layout}


def weights_figure(parts: Sequence[Mapping[str, Any]], target: str) -> Figure:
    """The mean merge weight of one target, layer by module; the middle colour is the even share."""
    layers = list(dict.fromkeys(part["layer"] for part in parts))
    modules = list(dict.fromkeys(part["module"] for part in parts))
    cells = {(part["layer"], part["module"]): part["weights"][target] for part in parts}
    even = 1.0 / max(1, len(parts[0]["weights"]))
    spread = max(0.02, *(abs(weight - even) for part in parts for weight in part["weights"].values()))
    trace = {
        "type": "heatmap",
        "x": modules,
        "y": [layer if layer.isalpha() or " " in layer else f"layer {layer}" for layer in layers],
        "z": [[cells.get((layer, module)) for module in modules] for layer in layers],
        "colorscale": [[0, "$cold"], [0.5, "$middle"], [1, "$warm"]],
        "zmin": even - spread,
        "zmax": even + spread,
        "hoverongaps": False,
        "hovertemplate": "%{y}, %{x}: %{z:.3f}<extra></extra>",
        "texttemplate": "%{z:.3f}" if len(cells) <= 40 else "",
        "colorbar": {"thickness": 10, "tickformat": ".2f"},
    }
    layout = _rows(len(layers)) | {"title": {"text": target}, "showlegend": False, "xaxis": {"tickangle": -35}}
    layout["margin"] = layout["margin"] | {"t": 46, "b": 90}
    layout["height"] += 90
    return {"data": [trace], "layout": layout}


def seconds_figure(stages: Sequence[Mapping[str, Any]]) -> Figure:
    """How long every artifact took to make."""
    names = [f"{stage['stage']}/{stage['name']}" if stage["name"] else stage["stage"] for stage in stages]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [stage["seconds"] for stage in stages],
        "y": names,
        "marker": {"color": "$c0"},
        "hovertemplate": "%{y}: %{x:.1f} s<extra></extra>",
    }
    return {
        "data": [trace],
        "layout": _rows(len(stages)) | {"showlegend": False, "xaxis": {"title": {"text": "seconds"}}},
    }


def _rows(count: int) -> dict[str, Any]:
    """Layout of a plot with one line per name, first on top."""
    return {
        "height": 120 + 34 * count,
        "margin": {"l": 10, "r": 24, "t": 20, "b": 50},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
    }


def escape_labels(data: Any) -> Any:
    """Names made safe for Plotly, whose labels interpret some HTML and `%{}`."""
    if isinstance(data, str):
        return data.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")
    if isinstance(data, Mapping):
        return {escape_labels(key): escape_labels(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [escape_labels(item) for item in data]
    return data
