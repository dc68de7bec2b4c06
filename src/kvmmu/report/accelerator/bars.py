"""Lying bars, stacked by part: the one form in which designs are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes

from kvmmu.report.accelerator.names import three_digits
from kvmmu.report.evaluation.style import figure_of, save, tidy

__all__ = ["stacked"]

SPARE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8a8a8a", "#332288", "#a0522d")


def stacked(
    rows: Mapping[str, Mapping[str, float]],
    path: Path,
    *,
    colours: Mapping[str, str],
    title: str,
    label: str,
    marks: Mapping[str, float] | None = None,
    mark_label: str = "",
    line: tuple[float, str] | None = None,
) -> Path:
    """Draw one bar a row, first row on top, its sum behind it; a mark and a line may be added."""
    figure = figure_of(9.6, 1.7 + 0.42 * len(rows))
    ax = figure.subplots()
    names = list(rows)
    parts = list(dict.fromkeys(p for row in rows.values() for p in row))
    largest = max((sum(row.values()) for row in rows.values()), default=0.0)
    most = max([largest, *(marks or {}).values(), *([line[0]] if line else [])], default=1.0)
    spare = iter(SPARE * 3)
    for part in parts:
        lefts = [_before(rows[name], parts, part) for name in names]
        widths = [rows[name].get(part, 0.0) for name in names]
        if max(widths) > 0:
            ax.barh(names, widths, left=lefts, height=0.62, label=part,
                    color=colours.get(part) or next(spare))  # fmt: skip
    ends = {n: (marks or {}).get(name) for n, name in enumerate(names)}
    for n, name in enumerate(names):
        total, end = sum(rows[name].values()), ends[n]
        if end is None or abs(end - total) < 0.09 * most:
            _write(ax, total, max(total, end or 0.0), n, "#111111")
        else:
            _write(ax, total, total, n, "#111111")
            _write(ax, end, end, n, "#666666")
    marked = {n: end for n, end in ends.items() if end is not None}
    if marked:
        ax.plot(list(marked.values()), list(marked), "|", color="#111111", markersize=13,
                markeredgewidth=1.6, label=mark_label)  # fmt: skip
    if line:
        ax.axvline(line[0], color="#d55e00", linewidth=1.2, linestyle="--", label=line[1])
    ax.set_axisbelow(True)
    ax.invert_yaxis()
    ax.set_xlim(0, most * 1.12 or 1.0)
    ax.set_xlabel(label, fontsize=9)
    ax.set_title(title, fontsize=11, loc="left")
    tidy(ax)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", alpha=0.25, linewidth=0.7)
    ax.tick_params(axis="y", labelsize=9)
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    return save(figure, path)


def _write(ax: Axes, value: float, x: float, y: int, colour: str) -> None:
    """Write a figure behind a bar or a mark."""
    ax.annotate(three_digits(value), (x, y), xytext=(6, 0), textcoords="offset points",
                fontsize=8, va="center", color=colour)  # fmt: skip


def _before(row: Mapping[str, float], parts: list[str], part: str) -> float:
    """Return where a part begins in its bar."""
    return sum(row.get(other, 0.0) for other in parts[: parts.index(part)])
