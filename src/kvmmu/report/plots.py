"""The demonstration's two pictures (matplotlib, no display needed)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kvmmu import trace
from kvmmu.report.tables import TASK_TITLES
from kvmmu.report.words import binomial_error, share

__all__ = ["plot_accuracy", "plot_survivors"]

COLOURS = {
    "rce": "#0072b2",
    "streaming_llm": "#d55e00",
    "snapkv": "#009e73",
    "keydiff": "#cc79a7",
    "novelty": "#111111",
}
MARKERS = {"rce": "o", "streaming_llm": "s", "snapkv": "^", "keydiff": "v", "novelty": "*"}
SPARE = ("#e69f00", "#56b4e9", "#000000")


def plot_accuracy(results: dict[str, Any], path: Path) -> None:
    """Draw exact match against cache size, one panel a task, with the full cache's line."""
    tasks = results["tasks"]
    figure = Figure(figsize=(4.0 * len(tasks), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    rows = results["caches"] + results.get("more_caches", [])
    slots = [row for row in rows if row["policy"]]
    for ax, task in zip(axes, tasks, strict=True):
        _draw_task(ax, task, results["caches"][0], slots)
    axes[0].set_ylabel("answers right (± standard error)")
    axes[-1].legend(frameon=False, fontsize=9)
    figure.suptitle(
        f"What is still known at a smaller cache: {results['model']}, "
        f"{results['num_tokens']} tokens",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)


def _draw_task(ax: Axes, task: str, full: dict[str, Any], slots: list[dict[str, Any]]) -> None:
    """Draw one panel: compression to the right, accuracy upward."""
    made = full["answers"][task]
    ax.axhline(share(made), color="#666666", linestyle="--", linewidth=1.2, label="full cache")
    error = binomial_error(made)
    ax.axhspan(share(made) - error, share(made) + error, color="#666666", alpha=0.15, linewidth=0)
    spare = iter(SPARE * 4)
    names = list(dict.fromkeys(row["policy"] for row in slots))
    for n, policy in enumerate(names):
        own = sorted((r for r in slots if r["policy"] == policy), key=lambda r: r["compression"])
        x = np.array([r["compression"] for r in own]) * (1 + 0.03 * (n - len(names) // 2))
        ax.errorbar(
            x,
            [share(r["answers"][task]) for r in own],
            yerr=[binomial_error(r["answers"][task]) for r in own],
            color=COLOURS.get(policy) or next(spare),
            marker=MARKERS.get(policy, "D"),
            markersize=5,
            capsize=2,
            linewidth=1.4,
            label=policy,
        )
    _compression_axis(ax, slots)
    ax.set_title(f"{TASK_TITLES.get(task, task)} (n = {made['total']})", fontsize=10)


def _compression_axis(ax: Axes, slots: list[dict[str, Any]]) -> None:
    """Scale by doublings and name each compression with its slots."""
    sizes = {row["compression"]: row["num_slots"] for row in slots}
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(sizes), [f"1/{c:g}\n{sizes[c]} slots" for c in sorted(sizes)], fontsize=8)
    ax.minorticks_off()
    ax.set_ylim(-0.03, 1.05)
    ax.set_xlabel("cache size")
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def plot_survivors(
    trace_path: Path, about: dict[str, Any], path: Path, *, layer: int | None = None, head: int = 0
) -> dict[str, int]:
    """Draw which tokens one layer and head held at each step, with the facts marked.

    Without a layer, the one whose tokens stayed longest is drawn; returns what was drawn.
    """
    made = trace.read(trace_path)
    history = [positions[:, 0, head] for _, positions in trace.occupancy(made)]  # each [L,C]
    chosen = _longest_memory(history) if layer is None else layer
    seen = [int(positions.max()) + 1 for positions in history]
    held = np.zeros((about["num_tokens"], len(history)), dtype=np.float32)
    for column, positions in enumerate(history):
        live = positions[chosen]
        held[live[live >= 0], column] = 1
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    _draw_history(ax, held, seen)
    _mark_facts(ax, held, about, seen)
    geometry = made.header.geometry
    ax.set_title(
        f"Which tokens stayed: {about['label']}, layer {chosen}, "
        f"KV head {head}, {geometry.slots[chosen]} slots for {about['num_tokens']} tokens",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)
    return {"layer": chosen, "head": head}


def _longest_memory(history: list[NDArray[np.int32]]) -> int:
    """Return the layer whose oldest quarter of tokens is oldest at the end."""
    last = np.sort(history[-1], axis=-1)  # [L,C]
    return int(last[:, last.shape[-1] // 4].argmin())


def _draw_history(ax: Axes, held: NDArray[np.float32], seen: list[int]) -> None:
    """Draw held tokens: x the tokens read, y the position; a column is as wide as its chunk."""
    edges_x = np.array([*seen, seen[-1] + 1], dtype=np.float64)  # held until the next step
    edges_y = np.arange(held.shape[0] + 1)
    ax.pcolormesh(edges_x, edges_y, np.where(held > 0, 1.0, np.nan), cmap="Blues", vmin=0, vmax=1.6)
    ax.plot([0, seen[-1]], [0, seen[-1]], color="#444444", linewidth=0.8)
    ax.set_xlabel("tokens read so far")
    ax.set_ylabel("position in the text")
    ax.set_xlim(0, seen[-1])
    ax.set_ylim(0, held.shape[0])
    ax.spines[["top", "right"]].set_visible(False)


def _mark_facts(
    ax: Axes, held: NDArray[np.float32], about: dict[str, Any], seen: list[int]
) -> None:
    """Draw a fact's place in orange where it is held, and a tick where it is asked for."""
    end = seen[-1]
    times = np.array([*seen, end + 1], dtype=np.float64)
    names = [question["key"] for question in about["questions"]]
    places = _spread([fact["start"] for fact in about["facts"]], held.shape[0] / 45)
    for fact, place in zip(about["facts"], places, strict=True):
        start, stop = fact["start"], fact["stop"]
        part = held[start:stop].mean(axis=0)[None]
        area = np.where(part > 0, part, np.nan)
        ax.pcolormesh(times, [start, stop], area, cmap="Oranges", vmin=-0.6, vmax=1)
        count = names.count(fact["key"])
        ax.annotate(
            f"{fact['key']} ×{count}" if count else fact["key"],
            (end, start),
            xytext=(end * 1.008, place),
            fontsize=7,
            color="#a63603" if count else "#999999",
            annotation_clip=False,
        )
        at = [question["at"] for question in about["questions"] if question["key"] == fact["key"]]
        ax.plot(at, [(start + stop) / 2] * len(at), "|", color="#a63603", markersize=7)
    first = about["num_context"]
    ax.axvline(first, color="#888888", linestyle=":", linewidth=1)
    legend = "questions from here on\n| a fact is asked for\norange: a fact (dark: all of it held)"
    ax.text(
        first - 4, held.shape[0] * 0.99, legend, fontsize=8, color="#555555", va="top", ha="right"
    )


def _spread(places: list[int], gap: float) -> list[float]:
    """Move labels, given in rising order, up as far as needed to be gap apart."""
    out: list[float] = []
    for place in places:
        out.append(max(float(place), out[-1] + gap) if out else float(place))
    return out
