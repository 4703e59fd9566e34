"""A table as a picture: effects with a dot for every seed, mean and 95 % interval; what is recovered, along an axis."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from effects import Effect
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

matplotlib.rcParams["svg.hashsalt"] = "fusion_ray"  # Else every drawing of the same numbers is another file.
matplotlib.rcParams["svg.fonttype"] = "none"

_SEED, _MEAN, _OTHER, _ZERO = "#9db4d0", "#1f4e8c", "#c98a2b", "#888888"


def draw_effects(path: Path, title: str, rows: Sequence[tuple[str, Effect]]) -> None:
    """Write an SVG file.

    Args:
        path: Where.
        title: What is less what; stands below the axis, with the unit.
        rows: Labels and effects, the first on top.
    """
    figure = Figure(figsize=(7.5, 0.7 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, effect) in enumerate(rows):
        axes.plot([effect.low, effect.high], [place, place], color=_MEAN, linewidth=1.6, zorder=2)
        axes.plot(effect.by_seed, [place] * effect.seeds, "o", color=_SEED, markersize=4, zorder=3)
        axes.plot(effect.value, place, "D", color=_MEAN, markersize=5, zorder=4)
    axes.axvline(0, color=_ZERO, linewidth=0.8, zorder=1)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"{title}, bits per byte (left is better)")
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    _save(figure, path)


def draw_curve(path: Path, axis: str, shares: Mapping[str, Mapping[float, Sequence[float]]]) -> None:
    """Write an SVG file of the recovered share of the oracle's gain along an axis, one line for each model.

    Args:
        path: Where.
        axis: What is varied.
        shares: Of each model, by the point on the axis, for every seed. The points stand at equal distances.
    """
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.subplots()
    for color, (model, points) in zip((_OTHER, _MEAN), shares.items(), strict=True):
        means = [sum(seeds) / len(seeds) for seeds in points.values()]
        axes.plot(range(len(points)), means, "-D", color=color, markersize=5, linewidth=1.6, label=model)
        for place, seeds in enumerate(points.values()):
            axes.plot([place] * len(seeds), seeds, "o", color=color, alpha=0.4, markersize=4)
    places = [f"{point:g}" for point in next(iter(shares.values()))]
    axes.set_xticks(range(len(places)), places)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(axis)
    axes.set_ylabel("recovered of the oracle's gain")
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
