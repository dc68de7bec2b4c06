"""Pictures at one compression: all tasks at a glance, the needle's grid, ages, and the price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kvmmu.report.evaluation.names import at, family_name, percent
from kvmmu.report.evaluation.results import FULL
from kvmmu.report.evaluation.style import figure_of, save

__all__ = ["needle_grids", "plot_needles", "plot_overview"]

Row = dict[str, Any]
COLOURS = "cividis"  # made to look the same to colour-blind readers


def plot_overview(made: Row, path: Path) -> Path:
    """Draw what each setting keeps of each task at the focus; a ring means nearly free."""
    rows = [r for r in made["families"] if r["compression"] == made["focus"] and r["label"] != FULL]
    names = [s["name"] for s in made["settings"] if any(r["name"] == s["name"] for r in rows)]
    families = sorted({(r["mode"], r["task"]): family_name(r) for r in rows}.items())
    figure = figure_of(max(6.5, 2.6 + 0.62 * len(families)), 2.3 + 0.34 * len(names))
    ax = figure.subplots()
    grid = np.full((len(names), len(families)), np.nan)
    columns = [family for family, _ in families]
    for row in rows:
        place = names.index(row["name"]), columns.index((row["mode"], row["task"]))
        grid[place] = row["kept"]
        is_free = row["kept_interval"][0] >= made["method"]["free_at"]
        _figure(ax, place, row["kept"], is_free=is_free)
    ax.imshow(grid, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    ax.set_yticks(range(len(names)), names, fontsize=9)
    titles = [title for _, title in families]
    ax.set_xticks(
        range(len(titles)), titles, fontsize=8.5, rotation=38, ha="left", rotation_mode="anchor"
    )
    ax.xaxis.tick_top()
    for n, (before, after) in enumerate(pairwise(columns)):
        if before[0] != after[0]:
            ax.axvline(n + 0.5, color="white", linewidth=4)
    _bare(ax)
    ax.set_xlabel(
        f"accuracy kept at {at(made['focus'])}, % (boxed: shown to be nearly free)",
        fontsize=9,
    )
    return save(figure, path)


def _figure(ax: Axes, place: tuple[int, int], share: float, *, is_free: bool) -> None:
    """Write a share in its field, boxed if it is nearly free."""
    ink = "white" if share < 0.5 else "black"
    box = {"boxstyle": "round,pad=0.25", "fill": False, "edgecolor": ink, "linewidth": 1.1}
    ax.text(
        place[1],
        place[0],
        percent(share),
        ha="center",
        va="center",
        fontsize=8.5,
        color=ink,
        fontweight="bold" if is_free else "normal",
        bbox=box if is_free else None,
    )


def _bare(ax: Axes) -> None:
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def needle_grids(made: Row) -> list[tuple[str, str]]:
    """List the tasks and modes that were measured at several depths."""
    depths: dict[tuple[str, str], set[float]] = {}
    for row in made["cells"]:
        if row["params"].get("depth") is not None:
            depths.setdefault((row["task"], row["mode"]), set()).add(row["params"]["depth"])
    return sorted(family for family, found in depths.items() if len(found) > 1)


def plot_needles(made: Row, path: Path, family: tuple[str, str]) -> Path:
    """Draw the score by depth (downward) and length, one panel a setting, at the focus."""
    rows = [
        row
        for row in made["cells"]
        if (row["task"], row["mode"]) == family
        and row["params"].get("depth") is not None
        and (row["label"] == FULL or row["compression"] == made["focus"])
    ]
    names = [s["name"] for s in made["settings"] if any(r["name"] == s["name"] for r in rows)]
    depths = sorted({row["params"]["depth"] for row in rows})
    lengths = sorted({row["num_tokens"] for row in rows})
    width = min(5, len(names))
    height = math.ceil(len(names) / width)
    panel = max(1.7, 0.5 * len(lengths))
    figure = figure_of(0.9 + panel * width, 0.9 + (0.5 + 0.32 * len(depths)) * height)
    axes = figure.subplots(height, width, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes.flat, names, strict=False):
        own = [row for row in rows if row["name"] == name]
        image = ax.imshow(_grid(own, depths, lengths), cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
        for row in own:
            place = depths.index(row["params"]["depth"]), lengths.index(row["num_tokens"])
            _figure(ax, place, row["score"], is_free=False)
        ax.set_title(name if name != FULL else "full cache", fontsize=9)
        ax.set_xticks(range(len(lengths)), [str(n) for n in lengths], fontsize=8)
        ax.set_yticks(range(len(depths)), [f"{d:.0%}" for d in depths], fontsize=8)
        ax.xaxis.set_tick_params(labelbottom=True)
        _bare(ax)
    figure.supylabel("depth of the needle", fontsize=9)
    figure.supxlabel("tokens of the text", fontsize=9)
    title = family_name({"task": family[0], "mode": family[1]})
    figure.suptitle(f"{title} at {at(made['focus'])}: answers right, %", fontsize=11)
    figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, ticks=[0, 0.5, 1], format="{x:.0%}")
    return save(figure, path)


def _grid(rows: Sequence[Row], depths: list[float], lengths: list[int]) -> np.ndarray[Any, Any]:
    grid = np.full((len(depths), len(lengths)), np.nan)
    for row in rows:
        grid[depths.index(row["params"]["depth"]), lengths.index(row["num_tokens"])] = row["score"]
    return grid
