"""One look for all pictures: a policy's colour and mark, axes of compression, labels that part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kvmmu.report.evaluation.names import at
from kvmmu.report.evaluation.results import FULL
from kvmmu.report.plots import COLOURS, MARKERS

__all__ = [
    "GREY",
    "Look",
    "compression_axis",
    "figure_of",
    "label_ends",
    "looks",
    "panels",
    "save",
    "tidy",
]

GREY = "#666666"
# Okabe and Ito's colours, then Tol's muted ones; dark enough for text on white.
OWN = COLOURS | {
    "h2o": "#b07d00",
    "tova": "#3a95c9",
    "random": "#8a8a8a",
    "expected_attention": "#882255",
    "knorm": "#7f7f00",
    "r_kv": "#332288",
    "lacache": "#a0522d",
}
OWN_MARKS = MARKERS | {
    "h2o": "D",
    "tova": "P",
    "random": "x",
    "expected_attention": "X",
    "knorm": "<",
    "r_kv": ">",
    "lacache": "h",
}
SPARE = ("#117733", "#aa4499", "#1f3a5f", "#cc3311", "#44aa99", "#5d3a9b")
SPARE_MARKS = ("p", "H", "d", "8", "1", "+")
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Look:
    """How a setting is drawn, everywhere."""

    colour: str
    mark: str
    dash: str = "-"

    def line(self) -> dict[str, Any]:
        """Return what matplotlib's plot and errorbar take; a variant's mark is hollow."""
        face = self.colour if self.dash == "-" else "white"
        made = {"color": self.colour, "marker": self.mark, "linestyle": self.dash}
        return made if self.mark in "x+1" else made | {"markerfacecolor": face}


def looks(settings: Sequence[dict[str, Any]]) -> dict[str, Look]:
    """Give each setting its look by name: a policy's hue is its own, its variants are dashed.

    Ranks do not matter: the same settings look the same in every picture and report.
    """
    made: dict[str, Look] = {}
    policies = sorted({s["policy"] for s in settings} - set(OWN) - {FULL})
    spare = {p: (SPARE[n % 6], SPARE_MARKS[n % 6]) for n, p in enumerate(policies)}
    for policy in sorted({s["policy"] for s in settings}):
        names = sorted(
            (s["name"] for s in settings if s["policy"] == policy), key=lambda n: (len(n), n)
        )
        for n, name in enumerate(names):
            colour, mark = (GREY, "o") if policy == FULL else spare.get(policy, ("", ""))
            colour, mark = OWN.get(policy, colour), OWN_MARKS.get(policy, mark)
            mark = SPARE_MARKS[(n - 1) % 6] if n else mark
            made[name] = Look(colour, mark, DASHES[n % len(DASHES)])
    return made


def figure_of(width: float, height: float) -> Figure:
    """Make a figure that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG: the same bytes for the same figure."""
    figure.savefig(path, dpi=140, metadata={"Software": None})
    return path


def tidy(ax: Axes) -> None:
    """Take away what carries nothing."""
    ax.grid(axis="y", alpha=0.25, linewidth=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)


def compression_axis(ax: Axes, compressions: Sequence[float], *, room: float = 1.0) -> None:
    """Scale by doublings, and leave room, in doublings, for labels to the right."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(compressions), [at(c) for c in compressions])
    ax.minorticks_off()
    ax.set_xlim(min(compressions) / 1.18, max(compressions) * 2**room)


def panels(count: int, most: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels, at most so many in a row, each width by height inches."""
    across = max(1, min(most, count))
    down = max(1, math.ceil(count / across))
    figure = figure_of(width * across, height * down)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for ax in grid.flat[count:]:
        ax.set_visible(False)
    return figure, list(grid.flat[:count])


def label_ends(
    ax: Axes,
    ends: Sequence[tuple[float, float, str, str]],
    *,
    size: float,
    gap: float,
    column: float = 1.16,
) -> None:
    """Write labels at the ends (x, y, text, colour) of lines, parted by gap, tied to their ends.

    Contract: the axes' limits are set and x is on a log axis. gap is a share of the axis' height;
    column is where labels begin, over the last end's x.
    """
    if not ends:
        return
    scale = ax.yaxis.get_transform()
    low, high = (float(scale.transform(y)) for y in ax.get_ylim())
    ranked = sorted(ends, key=lambda end: end[1])
    shares = [(float(scale.transform(end[1])) - low) / (high - low) for end in ranked]
    places = part(shares, gap, 0.6 * gap, 1 - 0.6 * gap)
    left = max(end[0] for end in ends) * column
    for (x, y, text, colour), place in zip(ranked, places, strict=True):
        ax.annotate(
            text,
            (x, y),
            xytext=(left, float(scale.inverted().transform(low + (high - low) * place))),
            fontsize=size,
            color=colour,
            va="center",
            annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.4},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6,
                        "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def part(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places, given in rising order, as little as parts them by gap, within [low, high]."""
    groups: list[tuple[float, int]] = []  # centre, count
    for place in places:
        groups.append((place, 1))
        while len(groups) > 1 and _touch(groups[-2], groups[-1], gap):
            (a, n), (b, m) = groups[-2:]
            groups[-2:] = [((a * n + b * m) / (n + m), n + m)]
    out = [centre + gap * (k - (count - 1) / 2) for centre, count in groups for k in range(count)]
    return _within(out, gap, low, high)


def _touch(below: tuple[float, int], above: tuple[float, int], gap: float) -> bool:
    return above[0] - below[0] < gap * (below[1] + above[1]) / 2


def _within(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Push places back in between, from the top down and then from the bottom up."""
    limit = high
    for n in reversed(range(len(places))):
        places[n] = min(places[n], limit)
        limit = places[n] - gap
    limit = low
    for n in range(len(places)):
        places[n] = max(places[n], limit)
        limit = places[n] + gap
    return places
