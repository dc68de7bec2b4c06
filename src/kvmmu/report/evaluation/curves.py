"""Pictures over the cache's size: what is kept, task by task, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kvmmu.report.evaluation.names import family_name, task_name
from kvmmu.report.evaluation.results import FULL
from kvmmu.report.evaluation.style import (
    GREY,
    Look,
    compression_axis,
    figure_of,
    label_ends,
    looks,
    panels,
    save,
    tidy,
)

__all__ = ["plot_families", "plot_headline", "plot_modes", "plot_perplexity"]

Row = dict[str, Any]
BAR: dict[str, Any] = {"capsize": 0, "elinewidth": 1.0, "linewidth": 1.3, "markersize": 4}


def plot_headline(made: Row, path: Path) -> Path:
    """Draw the mean of kept accuracy against compression, one line a setting."""
    figure = figure_of(8.6, 5.2)
    ax = figure.subplots()
    rows = [row for row in made["headline"] if row["label"] != FULL]
    _kept_panel(ax, rows, made, size=9, room=1.15, height=4.6)
    count = max((row["num_families"] for row in rows), default=0)
    ax.set_title(
        f"Accuracy kept, mean of {count} task-mode pairs (95 % intervals)", fontsize=11, loc="left"
    )
    ax.set_ylabel("share of the full cache's accuracy above chance")
    free = made["method"]["free_at"]
    ax.text(
        0.99,
        (1 + free) / 2,
        f"nearly free: {free:.0%} or more",
        fontsize=8,
        color="#00664b",
        ha="right",
        va="center",
        transform=ax.get_yaxis_transform(),
    )
    ax.set_xlabel("times smaller cache")
    return save(figure, path)


def plot_modes(made: Row, path: Path) -> Path:
    """Draw the same, one panel a mode."""
    modes = sorted({mode for row in made["headline"] for mode in row["by_mode"]})
    figure, axes = panels(len(modes), 2 if len(modes) in (2, 4) else 3, 4.9, 4.6)
    for ax, mode in zip(axes, modes, strict=True):
        rows = [
            {**row, "num_of_families": 0, **row["by_mode"][mode]}
            for row in made["headline"]
            if mode in row["by_mode"] and row["label"] != FULL
        ]
        _kept_panel(ax, rows, made, size=8, room=1.7, height=3.9)
        count = max((row["num_families"] for row in rows), default=0)
        ax.set_title(f"{mode} ({count} task{'s' * (count != 1)})", fontsize=10, loc="left")
        ax.set_xlabel("times smaller cache", fontsize=9)
    axes[0].set_ylabel("accuracy kept")
    return save(figure, path)


def plot_families(made: Row, path: Path) -> Path:
    """Draw what is kept, one panel a task and mode."""
    rows = [row for row in made["families"] if row["label"] != FULL]
    names = sorted({(row["mode"], row["task"]) for row in rows})
    figure, axes = panels(len(names), 3, 4.5, 2.9)
    for ax, (mode, task) in zip(axes, names, strict=True):
        own = [row for row in rows if (row["mode"], row["task"]) == (mode, task)]
        _kept_panel(ax, own, made, size=7, room=1.7, height=2.35)
        ax.set_title(family_name(own[0]), fontsize=9.5, loc="left")
    for ax in axes[::3]:
        ax.set_ylabel("accuracy kept", fontsize=8)
    figure.supxlabel("times smaller cache", fontsize=10)
    return save(figure, path)


def _kept_panel(
    ax: Axes, rows: Sequence[Row], made: Row, *, size: float, room: float, height: float
) -> None:
    """Draw lines with intervals and labels at their ends; height is the panel's, in inches."""
    low = min([-0.03, *(row["kept_interval"][0] - 0.03 for row in rows)])
    high = max([1.06, *(row["kept_interval"][1] + 0.03 for row in rows)])
    ax.axhline(1, color=GREY, linewidth=1, linestyle="--")
    ax.axhline(0, color=GREY, linewidth=1, linestyle=":")
    ax.axhspan(made["method"]["free_at"], 1, color="#009e73", alpha=0.08, linewidth=0)
    compression_axis(ax, made["compressions"], room=room)
    ax.set_ylim(low, high)
    ends = _lines(ax, rows, made, value="kept", span="kept_interval")
    label_ends(ax, ends, size=size, gap=size * 1.15 / 72 / height)
    ax.set_yticks(np.arange(0, 1.01, 0.25), [f"{s:.0%}" for s in np.arange(0, 1.01, 0.25)])
    tidy(ax)


def _lines(
    ax: Axes, rows: Sequence[Row], made: Row, *, value: str, span: str
) -> list[tuple[float, float, str, str]]:
    """Draw one line a setting, parted a little sideways; return the ends to label."""
    drawn: dict[str, Look] = looks(made["settings"])
    names = [s["name"] for s in made["settings"] if any(r["name"] == s["name"] for r in rows)]
    ends = []
    for n, name in enumerate(names):
        own = sorted((r for r in rows if r["name"] == name), key=lambda row: row["compression"])
        x = np.array([r["compression"] for r in own]) * 2 ** (0.018 * (n - (len(names) - 1) / 2))
        y = np.array([r[value] for r in own])
        bars = np.array([r[span] or [r[value]] * 2 for r in own]).T  # [2,n]
        error = np.abs(bars - y)
        zorder = 3 - n / 100
        ax.errorbar(x, y, yerr=error, zorder=zorder, **drawn[name].line(), **BAR)
        star = (
            "*" if any(r.get("num_families", 0) < r.get("num_of_families", 0) for r in own) else ""
        )
        ends.append((float(x[-1]), float(y[-1]), name + star, drawn[name].colour))
    return ends


def plot_perplexity(made: Row, path: Path) -> Path:
    """Draw perplexity over the full cache's against compression, one panel a text and length."""
    rows = [row for row in made["perplexity"] if row["label"] != FULL]
    names = sorted({(row["text"], row["num_tokens"]) for row in rows})
    figure, axes = panels(len(names), 2, 5.6, 4.6)
    low, high = _ratio_limits(rows)
    for ax, (text, num_tokens) in zip(axes, names, strict=True):
        own = [r for r in rows if (r["text"], r["num_tokens"]) == (text, num_tokens)]
        ax.axhline(1, color=GREY, linewidth=1, linestyle="--")
        compression_axis(ax, made["compressions"] or [r["compression"] for r in own], room=1.5)
        ax.set_yscale("log", base=2)
        ax.set_ylim(low, high)
        ends = _lines(ax, own, made, value="ratio", span="ratio_interval")
        ends = [
            (x, y, t, c) if y < high else (x, high, f"{t} ({y:.2f}×)", c) for x, y, t, c in ends
        ]
        label_ends(ax, ends, size=8.5, gap=8.5 * 1.15 / 72 / 3.9)
        ticks = _nice_ratios(low, high)
        ax.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
        ax.minorticks_off()
        tidy(ax)
        ax.set_title(f"{task_name(text)}, {num_tokens} tokens", fontsize=10, loc="left")
        ax.set_xlabel("times smaller cache", fontsize=9)
    for ax in axes[::2]:
        ax.set_ylabel("perplexity / the full cache's (95 % intervals)")
    return save(figure, path)


def _ratio_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Choose the axis' ends: settings far above all others leave the picture, with their ratio."""
    spans = [row["ratio_interval"] or [row["ratio"]] * 2 for row in rows]
    worst = {row["name"]: 0.0 for row in rows}
    for row, ends in zip(rows, spans, strict=True):
        worst[row["name"]] = max(worst[row["name"]], ends[1] - 1)
    ranked = sorted(worst.values())
    top = next(
        (b for a, b in reversed(list(zip([0.0, *ranked], ranked))) if b < 2.5 * a), ranked[0]
    )
    low = min([1.0, *(ends[0] for ends in spans)])
    slack = ((1 + top) / low) ** 0.06
    return low / slack, (1 + top) * slack


def _nice_ratios(low: float, high: float) -> list[float]:
    """Choose some four ticks, 1 among them."""
    step = next(
        (s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if (high - low) / s <= 6),
        10.0,
    )
    first, last = math.ceil((low - 1) / step), math.floor((high - 1) / step)
    return [round(1 + n * step, 4) for n in range(first, last + 1) if 1 + n * step > 0] or [1.0]
