"""A study's pictures: cost against context, energy, delay, bytes, sensitivity, the KV-MMU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from kvmmu.report.accelerator.bars import stacked
from kvmmu.report.accelerator.names import (
    BYTE_KINDS,
    by_group,
    joined_kinds,
    mmu_term,
    plain,
    scale_for,
    share_text,
    times,
)
from kvmmu.report.accelerator.study import (
    called,
    full_of,
    kv_traffic,
    mmu_corners,
    ours_name,
    results_of,
)
from kvmmu.report.evaluation.style import GREY, figure_of, save, tidy

__all__ = ["PICTURES"]

Study = Mapping[str, Any]
OURS, FULL = "#0072b2", "#d55e00"
GROUP_COLOURS = {
    "DRAM, switching": "#0072b2",
    "DRAM, standby": "#8ec5e8",
    "SRAM buffers": "#009e73",
    "PE array": "#e69f00",
    "softmax, vector": "#cc79a7",
    "all on chip": "#e69f00",
    "KV-MMU": "#d55e00",
    "leakage": "#8a8a8a",
}
KIND_COLOURS = {
    "weight": "#e69f00",
    "kv_read": "#0072b2",
    "kv_read_chunk": "#8ec5e8",
    "kv_write": "#332288",
    "kv_stage": "#44aa99",
    "activation": "#009e73",
    "score": "#d55e00",
    "embedding": "#8a8a8a",
    "page_table": "#cc79a7",
    "copy": "#a0522d",
}


def plot_context(study: Study, path: Path) -> Path:
    """Draw one decode step against the context: constant size flat, the full cache linear."""
    figure = figure_of(10.0, 4.0)
    axes = figure.subplots(1, 3)
    panels = (("delay_s", "s", "delay of a step"), ("energy_j", "J", "energy of a step"),
              ("kv_read_bytes", "bytes", "K and V read in a step"))  # fmt: skip
    full = full_of(study)
    titles = {"rce": study["simulation"]["ours"]["title"], "full": full["title"] if full else ""}
    for ax, (key, measure, label) in zip(axes, panels):
        size, unit = scale_for(max(row[key] for row in study["context"]), measure)
        for design, colour, mark in (("rce", OURS, "o"), ("full", FULL, "s")):
            rows = [row for row in study["context"] if row["design"] == design]
            if rows:
                x, y = [r["context"] for r in rows], [r[key] / size for r in rows]
                ax.plot(x, y, color=colour, marker=mark, markersize=4, label=titles[design])
        ax.set_ylim(bottom=0)
        ax.set_xlim(left=0)
        ax.set_xlabel("tokens of context", fontsize=9)
        ax.set_title(f"{label}, {unit}", fontsize=10, loc="left")
        tidy(ax)
    axes[0].legend(frameon=False, fontsize=9)
    batch = study["simulation"]["configuration"]["batch"]
    lanes = "one lane" if batch == 1 else f"{batch} lanes"
    figure.suptitle(f"One decode step of {lanes} against its context (simulated)")
    return save(figure, path)


def plot_energy(study: Study, path: Path) -> Path:
    """Draw energy by group of units, one stacked bar a design."""
    made = {
        called(design): by_group(design["total"]["energy_by_unit_j"]["overlapped"])
        for design in results_of(study)
    }
    size, unit = scale_for(max(sum(row.values()) for row in made.values()), "J")
    return stacked(
        _over(made, size),
        path,
        colours=GROUP_COLOURS,
        title="Energy of the whole run by unit, overlapped (simulated)",
        label=f"energy, {unit}",
    )


def plot_delay(study: Study, path: Path) -> Path:
    """Draw delay by phase, one stacked bar a design, and where it would end if units took turns."""
    rows, ends = {}, {}
    for made in results_of(study):
        phases = made["phases"]
        rows[called(made)] = {plain(n): p["delay_s"]["overlapped"] for n, p in phases.items()}
        ends[called(made)] = made["total"]["delay_s"]["serial"]
    size, unit = scale_for(max(ends.values()), "s")
    return stacked(
        _over(rows, size),
        path,
        colours={"prefill": "#8ec5e8", "decode": "#0072b2", "mixed": "#44aa99"},
        title="Delay of the whole run by phase, overlapped (simulated)",
        label=f"delay, {unit}",
        marks={name: end / size for name, end in ends.items()},
        mark_label="serial: units one after the other",
    )


def plot_bytes(study: Study, path: Path) -> Path:
    """Draw DRAM bytes by kind of traffic, one stacked bar a design, beside the least K and V."""
    designs, bounds = results_of(study), study["bounds"]
    made = {called(design): design["total"]["dram_bytes"] for design in designs}
    size, unit = scale_for(max(sum(row.values()) for row in made.values()), "bytes")
    kinds = joined_kinds(made.values())
    rows = {
        name: {BYTE_KINDS.get(kind, plain(kind)): row.get(kind, 0.0) for kind in kinds}
        for name, row in made.items()
    }
    kv = ("kv_read", "kv_read_chunk", "kv_write", "kv_stage", "score")
    least = {}
    for design in designs:
        traffic = kv_traffic(bounds[design["name"]])
        rest = sum(v for kind, v in design["total"]["dram_bytes"].items() if kind not in kv)
        least[called(design)] = (rest + sum(bound for _, bound in traffic.values())) / size
    return stacked(
        _over(rows, size),
        path,
        colours={BYTE_KINDS[k]: colour for k, colour in KIND_COLOURS.items()},
        title="DRAM bytes of the whole run by kind (simulated)",
        label=unit,
        marks=least,
        mark_label="if K and V met their lower bound",
    )


def _over(rows: Mapping[str, Mapping[str, float]], size: float) -> dict[str, dict[str, float]]:
    """Write every part of every row in a unit of this size."""
    return {name: {k: value / size for k, value in row.items()} for name, row in rows.items()}


def plot_sensitivity(study: Study, path: Path) -> Path:
    """Draw the energy ratio's range as each group of constants moves, widest on top."""
    rows = [row for row in study["sensitivity"] if "energy_ratio" in row["nominal"]]
    rows.sort(key=lambda r: abs(r["high"]["energy_ratio"] - r["low"]["energy_ratio"]))
    figure = figure_of(7.6, 1.4 + 0.38 * max(len(rows), 1))
    ax = figure.subplots()
    middle = rows[0]["nominal"]["energy_ratio"] if rows else 1.0
    for n, row in enumerate(rows):
        for corner, colour in (("low", "#56b4e9"), ("high", "#0072b2")):
            value = row[corner]["energy_ratio"]
            ax.barh(n, value - middle, left=middle, color=colour, height=0.6,
                    label=f"{corner} figure" if n == 0 else None)  # fmt: skip
            side = "left" if value >= middle else "right"
            if abs(value - middle) > 0.004:
                shift = 3 if side == "left" else -3
                ax.annotate(times(value), (value, n), fontsize=8, va="center", ha=side,
                            xytext=(shift, 0), textcoords="offset points")  # fmt: skip
    ax.axvline(middle, color=GREY, linewidth=1)
    ax.axvline(study["paper"]["energy"], color="#d55e00", linewidth=1, linestyle="--")
    ax.annotate(f"abstract {times(study['paper']['energy'])}", (study["paper"]["energy"], 1.0),
                xycoords=("data", "axes fraction"), fontsize=8, color="#d55e00", ha="center",
                va="bottom")  # fmt: skip
    ax.set_yticks(range(len(rows)), [row["group"] for row in rows])
    ax.margins(x=0.14)
    full = full_of(study)
    other = full["title"] if full else "the baseline"
    ax.set_xlabel(f"energy of {other} / {ours_name(study)}, whole run")
    ax.set_title(f"Constants moved one group at a time; nominal {times(middle)} (simulated)",
                 fontsize=11, loc="left", pad=18)  # fmt: skip
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    _across(ax)
    return save(figure, path)


def plot_mmu(study: Study, path: Path) -> Path:
    """Draw the KV-MMU's share of energy by term at each corner, beside the paper's."""
    corners = mmu_corners(study)
    first = corners.get("nominal") or next(iter(corners.values()))
    skipped = ("tables", "with_collection", "mmu_area_mm2")
    terms = sorted((t for t in first if t not in skipped), key=lambda term: -first[term])
    rows = {
        corner: {mmu_term(t): 100 * made.get(t, 0.0) for t in terms if first[t] > 0}
        for corner, made in corners.items()
    }
    claim = study["paper"]["mmu_share"]
    return stacked(
        rows,
        path,
        colours={},
        title="KV-MMU's share of energy, whole run, by corner of the constants (simulated)",
        label="% of all energy",
        marks={name: 100 * corners[name]["with_collection"] for name in rows},
        mark_label="with all that score collection costs",
        line=(100 * claim, f"abstract {share_text(claim)}"),
    )


def _across(ax: Axes) -> None:
    """Tidy an axis of lying bars."""
    tidy(ax)
    ax.set_axisbelow(True)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", alpha=0.25, linewidth=0.7)


PICTURES: Mapping[str, Callable[[Study, Path], Path]] = {
    "context": plot_context,
    "energy": plot_energy,
    "delay": plot_delay,
    "bytes": plot_bytes,
    "sensitivity": plot_sensitivity,
    "mmu": plot_mmu,
}
"""Every picture by its file's name."""
