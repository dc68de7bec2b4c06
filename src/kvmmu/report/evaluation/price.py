"""Pictures of what is held and what it costs: survivors by age, and quality against cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes

from kvmmu.report.evaluation.names import at, find
from kvmmu.report.evaluation.results import FULL
from kvmmu.report.evaluation.style import GREY, Look, figure_of, label_ends, looks, save, tidy

__all__ = ["has_prices", "plot_price", "plot_survivors", "priced"]

Row = dict[str, Any]
Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""
Place = tuple[float, float, Literal["left", "center", "right"]]
"""Where a label stands beside its mark, in points."""
PLACES: tuple[Place, ...] = (  # the best first, after those right and left of the bar
    (8, 8, "left"),
    (8, -8, "left"),
    (-8, 8, "right"),
    (-8, -8, "right"),
    (0, 12, "center"),
    (0, -12, "center"),
    (0, 17, "center"),
    (0, -17, "center"),
)

PRICES = {
    "ratio_to_static": "decode tokens/s, times StaticCache's (bar: quartiles)",
    "ops_per_slot": "operations per slot and step",
}


def plot_survivors(made: Row, path: Path) -> Path:
    """Draw the share of tokens of each age that is still held, at the focus."""
    rows = [
        r for r in made["survivors"] if r["compression"] == made["focus"] and r["label"] != FULL
    ]
    drawn = looks(made["settings"])
    figure = figure_of(8.6, 4.8)
    ax = figure.subplots()
    ax.set_xscale("log", base=2)
    ends, oldest = [], 2.0
    for row in rows:
        edges = np.maximum(np.asarray(row["edges"], dtype=np.float64), 1.0)
        look = drawn.get(row["name"]) or _look_of_label(made, row["label"])
        middle = np.sqrt(edges[:-1] * edges[1:])
        ax.plot(middle, row["kept"], markersize=4, clip_on=False, linewidth=1.4, **look.line())
        ends.append((float(middle[-1]), float(row["kept"][-1]), row["name"], look.colour))
        oldest = max(oldest, float(edges[-1]))
    share = 1 / made["focus"]
    ax.set_yscale("function", functions=(np.sqrt, np.square))  # room for what little is old
    ax.axhline(share, color=GREY, linewidth=1, linestyle="--")
    ax.text(1.1, share + 0.01, f"a cache of 1/{made['focus']:g}", fontsize=8, color=GREY)
    ax.set_xlim(1, oldest * 4.5)
    ages = [2**n for n in range(0, 40, 2) if 2**n <= oldest * 1.01]
    ax.set_xticks(ages, [str(age) for age in ages])
    ax.minorticks_off()
    ax.set_ylim(0, 1.05)
    label_ends(ax, ends, size=8.5, gap=8.5 * 1.15 / 72 / 4.2, column=1.6)
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1]
    ax.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    ax.set_xlabel("age in tokens (the newest to the left)")
    ax.set_ylabel("tokens of that age still held")
    ax.set_title(
        f"Which ages survive at {at(made['focus'])}, {rows[0]['num_tokens']} tokens",
        fontsize=11,
        loc="left",
    )
    tidy(ax)
    return save(figure, path)


def _look_of_label(made: Row, label: str) -> Look:
    """Return the look of a label's first setting: survivors do not tell their granularity."""
    name = str(find(made["settings"], label=label).get("name"))
    return looks(made["settings"]).get(name, Look(GREY, "o"))


def priced(made: Row) -> list[Row]:
    """Join what is kept at the focus with what it costs."""
    rows = []
    for row in made["headline"]:
        if row["compression"] == made["focus"] and row["label"] != FULL:
            cost = find(made["costs"], name=row["name"], compression=row["compression"])
            rows.append({**cost, **row})
    return rows


def has_prices(made: Row) -> bool:
    """Tell whether any setting at the focus has a cost to be drawn."""
    return any(row.get(field) is not None for row in priced(made) for field in PRICES)


def plot_price(made: Row, path: Path) -> Path:
    """Draw kept accuracy against decode speed and against operations a slot, at the focus."""
    rows = priced(made)
    panels = [
        (field, title)
        for field, title in PRICES.items()
        if any(row.get(field) is not None for row in rows)
    ]
    figure = figure_of(6.2 * len(panels), 4.8)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (field, title) in zip(axes, panels, strict=True):
        _price_panel(ax, [row for row in rows if row.get(field) is not None], field, made)
        ax.set_xlabel(title, fontsize=9)
        tidy(ax)
    axes[0].set_ylabel(f"mean accuracy kept at {at(made['focus'])}")
    return save(figure, path)


def _price_panel(ax: Axes, rows: Sequence[Row], field: str, made: Row) -> None:
    drawn = looks(made["settings"])
    x = np.array([float(row[field]) for row in rows])
    y = np.array([row["kept"] for row in rows])
    bars = np.abs(np.array([row["kept_interval"] for row in rows]).T - y)
    ends = np.array([_ends(row, field) for row in rows])
    spread = max(float(np.ptp(ends)), 0.5)
    ax.set_xlim(ends.min() - 0.08 * spread, ends.max() + 0.2 * spread)
    ax.set_ylim(min(0.0, float((y - bars[0]).min())) - 0.05, 1.05)  # a mark is not cut by the axis
    for n, row in enumerate(rows):
        look = drawn[row["name"]]
        wide = np.abs(ends[n, :, None] - x[n])  # [2,1]
        ax.errorbar(
            x[n], y[n], yerr=bars[:, n, None], xerr=wide, markersize=7, elinewidth=1,
            **(look.line() | {"linestyle": ""}),
        )  # fmt: skip
    _place_labels(ax, rows, field, drawn)
    ax.set_yticks(np.arange(0, 1.01, 0.25), [f"{s:.0%}" for s in np.arange(0, 1.01, 0.25)])


def _ends(row: Row, field: str) -> list[float]:
    """Return the ends of a mark's bar: a speed's quartiles, or the mark itself."""
    quartiles = row.get("ratio_quartiles") if field == "ratio_to_static" else None
    return list(quartiles or [row[field]] * 2)


def _place_labels(ax: Axes, rows: Sequence[Row], field: str, drawn: dict[str, Look]) -> None:
    """Write each name beside its mark, at the first place that hides nothing."""
    low, high = ax.get_xlim(), ax.get_ylim()
    across, up = 415 / (low[1] - low[0]), 311 / (high[1] - high[0])  # points: 5.8 by 4.3 inches
    spots = [(float(row[field]) * across, row["kept"] * up) for row in rows]
    taken: list[Box] = [(px - 6, py - 6, px + 6, py + 6) for px, py in spots]
    for row, (_, py) in zip(rows, spots, strict=True):
        low_end, high_end = _ends(row, field)
        taken.append((low_end * across, py - 1, high_end * across, py + 1))
    edges = low[0] * across, low[1] * across
    for row, (px, py) in zip(rows, spots, strict=True):
        size = 5.0 * len(row["name"]), 9.0
        left, right = (end * across - px for end in _ends(row, field))
        beside: list[Place] = [(max(right + 5, 8), 0, "left"), (min(left - 5, -8), 0, "right")]
        places = [(_box(px, py, size, place), place) for place in (*beside, *PLACES)]
        box, (dx, dy, side) = min(places, key=lambda found: _hidden(found[0], taken, edges))
        taken.append(box)
        ax.annotate(
            row["name"],
            (float(row[field]), row["kept"]),
            xytext=(dx, dy),
            textcoords="offset points",
            fontsize=8.5,
            color=drawn[row["name"]].colour,
            ha=side,
            va="center",
        )


def _box(px: float, py: float, size: tuple[float, float], place: Place) -> Box:
    """Return what a label at a place beside a mark covers, in points."""
    dx, dy, side = place
    left = px + dx - size[0] * {"left": 0.0, "center": 0.5, "right": 1.0}[side]
    return left, py + dy - size[1] / 2, left + size[0], py + dy + size[1] / 2


def _hidden(box: Box, taken: Sequence[Box], edges: tuple[float, float]) -> float:
    """Return how much a label would hide, or lack beyond the panel's sides."""
    out = max(0.0, box[2] - edges[1]) + max(0.0, edges[0] - box[0])
    return 50 * out + sum(_overlap(box, other) for other in taken)


def _overlap(a: Box, b: Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    tall = min(a[3], b[3]) - max(a[1], b[1])
    return wide * tall if wide > 0 and tall > 0 else 0.0
