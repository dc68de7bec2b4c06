"""The benchmark's pictures: step time and memory against context; throughput under a cap."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["plot_caps", "plot_points"]

Row = Mapping[str, Any]
_FAMILIES = {
    "engine": "#0072b2",
    "library": "#56b4e9",
    "transformers": "#666666",
    "openvino-genai": "#d55e00",
    "kvpress": "#cc79a7",
    "llama.cpp": "#009e73",
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_PANELS = (
    ("step_ms", 1.0, "decode: ms a step"),
    ("prefill_tokens_per_s", 1.0, "prefill: tokens/s"),
    ("prefill_growth_bytes", 1e6, "memory growth in prefill, MB"),
)


def plot_points(result: Row, folder: Path) -> list[Path]:
    """Draw three panels a batch against context, of the first C; returns the files."""
    groups = [group for point in result["points"] for group in point["groups"]]
    if not groups:
        return []
    slots = groups[0]["num_slots"]
    groups = [group for group in groups if group["num_slots"] == slots]
    batches = sorted({group["batch"] for group in groups})
    figure = Figure(figsize=(5.0 * len(_PANELS), 3.6 * len(batches) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(batches), len(_PANELS), squeeze=False)
    styles = _styles(groups)
    for line, batch in zip(axes, batches, strict=True):
        own = [group for group in groups if group["batch"] == batch]
        for ax, (name, unit, label) in zip(line, _PANELS, strict=True):
            _draw(ax, own, name, unit, styles)
            ax.set_title(f"{label}, batch {batch}", fontsize=10)
    _legend(figure, axes[0][0], styles)
    void = sum(group["is_void"] for group in groups)
    more = f"; {void} of {len(groups)} points are VOID (others took the cores)" if void else ""
    title = f"{result['model']}, C = {slots:,}, {result['host']['cpu']}{more}"
    figure.suptitle(title, fontsize=11)
    return _save(figure, folder, "bench")


def _styles(groups: list[Row]) -> dict[str, dict[str, Any]]:
    """Give each candidate its family's colour and a marker of its own."""
    styles: dict[str, dict[str, Any]] = {}
    count: dict[str, int] = {}
    for row in (row for group in groups for row in group["rows"]):
        name = row["candidate"]
        if row["status"] != "ok" or name in styles or name.endswith("-no-scores"):
            continue
        family = name.partition("-")[0] if row["family"] == "kvmmu" else row["family"]
        n = count[family] = count.get(family, -1) + 1
        styles[name] = {
            "color": _FAMILIES.get(family, "#e69f00"),
            "marker": _MARKERS[n % len(_MARKERS)],
            "linestyle": "-" if row["precision"] == "fp32" else "--",
            "linewidth": 2.0 if row["family"] == "kvmmu" else 1.2,
            "markersize": 5,
        }
    return styles


def _draw(
    ax: Axes, groups: list[Row], name: str, unit: float, styles: dict[str, dict[str, Any]]
) -> None:
    """Draw one quantity of every candidate against context, both axes by doublings."""
    contexts = sorted({group["context"] for group in groups})
    for candidate, style in styles.items():
        found: dict[int, float] = {}
        for group in groups:
            for row in group["rows"]:
                if row["candidate"] == candidate and row["status"] == "ok":
                    found.setdefault(group["context"], max(row[name] / unit, 0.1))
        if found:
            ax.plot(sorted(found), [found[s] for s in sorted(found)], label=candidate, **style)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(contexts, [_tokens(s) for s in contexts])
    ax.minorticks_off()
    low, high = ax.get_ylim()
    ticks = [t for d in range(-1, 7) for t in (10.0**d, 2 * 10.0**d, 5 * 10.0**d)]
    ticks = [t for t in ticks if low <= t <= high]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xlabel("context, tokens")
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def _tokens(count: int) -> str:
    return f"{count // 1024}k" if count % 1024 == 0 else f"{count:,}"


def _legend(figure: Figure, ax: Axes, styles: dict[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    figure.legend(handles=lines, loc="outside right center", frameon=False, fontsize=9)


def plot_caps(result: Row, folder: Path) -> list[Path]:
    """Draw tokens/s of all requests under each cap as bars; returns the files."""
    caps = [cap for cap in result["capped"]["caps"] if _served(cap)]
    if not caps:
        return []
    names = list(dict.fromkeys(row["candidate"] for cap in caps for row in _served(cap)))
    figure = Figure(figsize=(8, 0.42 * len(names) * len(caps) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    height = 0.8 / len(caps)
    for n, cap in enumerate(caps):
        rates = {row["candidate"]: row["tokens_per_s"] for row in _served(cap)}
        places = np.array([i for i, name in enumerate(names) if name in rates], dtype=float)
        values = [rates[name] for name in names if name in rates]
        label = f"cap {cap['cap_tokens']:,} tokens" if cap["cap_tokens"] else "no cap"
        bars = ax.barh(places + n * height, values, height * 0.9, label=label)
        ax.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    ax.set_yticks(np.arange(len(names)) + height * (len(caps) - 1) / 2, names)
    ax.invert_yaxis()
    ax.set_xlabel("tokens/s in all")
    capped = result["capped"]
    ax.set_title(
        f"{capped['num_requests']} requests x ({capped['prompt']:,} + {capped['new_tokens']:,}), "
        f"C = {capped['num_slots']}: {result['model']}",
        fontsize=10,
    )
    ax.legend(frameon=False, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    return _save(figure, folder, "bench-caps")


def _served(cap: Row) -> list[Row]:
    return [row for row in cap["rows"] if row["status"] == "ok"]


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    files = [folder / f"{name}.png", folder / f"{name}.svg"]
    for file in files:
        figure.savefig(file, dpi=130)
    return files
