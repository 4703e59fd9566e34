"""A table of effects as a picture: a dot for every seed, the mean over seeds, its 95 % interval."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from effects import Effect
from matplotlib.figure import Figure

matplotlib.rcParams["svg.hashsalt"] = "fusion_ray"  # Else every drawing of the same numbers is another file.
matplotlib.rcParams["svg.fonttype"] = "none"

_SEED, _MEAN, _ZERO = "#9db4d0", "#1f4e8c", "#888888"


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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
