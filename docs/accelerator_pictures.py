"""Pictures of docs/accelerator.md, drawn from the kept runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

COLOURS = {"low": "#56b4e9", "nominal": "#0072b2", "high": "#e69f00", "Eyeriss-like": "#d55e00"}


def draw(home: Path) -> None:
    """Draw every picture into a folder."""
    _save(_claim(), home / "claim.png")
    _save(_grid(), home / "where_it_holds.png")
    _save(_context(), home / "cost_against_context.png")
    _save(_stalls(), home / "stalls.png")


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _claim() -> Figure:
    """Scatter energy against delay for each reading, the abstract's pair among them."""
    from accelerator_results import claim_points

    from kvmmu.accel.claim import CLAIM, READINGS

    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    for axis, (reading, (energy, delay, mode)) in zip(axes, READINGS.items()):
        made = claim_points(reading)
        for name, colour in COLOURS.items():
            mine = [p for p in made if p["mac"] == name]
            axis.scatter(
                [p["delay"] for p in mine],
                [p["energy"] for p in mine],
                s=5,
                color=colour,
                alpha=0.5,
                linewidths=0,
                label=f"array energy: {name}",
            )
        near = sum(p["off"] <= 0.05 for p in made)
        e, d = CLAIM["energy"], CLAIM["delay"]
        axis.add_patch(
            Rectangle((0.95 * d, 0.95 * e), 0.1 * d, 0.1 * e, fill=False, edgecolor="black")
        )
        axis.plot([d], [e], marker="*", color="black", markersize=11)
        words = {"end_to_end": "end to end", "decode": "generation"}
        axis.set_title(
            f"{reading}: energy {words[energy]}, delay {words[delay]},\n"
            f"baseline {mode}: {near} of {len(made):,} within 5 %",
            fontsize=10,
        )
        axis.grid(alpha=0.25)
        axis.set(xscale="log", yscale="log", xlim=(0.95, 16), ylim=(0.95, 8))
        for which in (axis.xaxis, axis.yaxis):
            which.set_major_formatter(lambda value, _: f"{value:g}x")
            which.set_minor_formatter(lambda value, _: "")
        axis.set_xticks([1, 2, 3.62, 8, 16])
        axis.set_yticks([1, 1.52, 2, 4, 8])
    for axis in axes[3:5]:
        axis.set_xlabel("delay, full cache / RCE")
    axes[2].set_xlabel("delay, full cache / RCE")
    axes[2].tick_params(labelbottom=True)  # no panel below has its numbers
    for axis in (axes[0], axes[3]):
        axis.set_ylabel("energy, full cache / RCE")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[5].axis("off")
    axes[5].legend(handles, labels, loc="center", markerscale=4, frameon=False, fontsize=11)
    figure.suptitle(
        "Simulated: every combination of assumptions, and the abstract's 1.52x and 3.62x (star)"
    )
    return figure


def _grid() -> Figure:
    """Colour the delay gain of one decode step by batch and context, MHA beside GQA."""
    from accelerator_results import grid_of

    from kvmmu.accel.claim import GRID

    cells = {(r["model"], r["batch"], r["context"]): r for r in grid_of()}
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    titles = {"llama_7b": "LLaMA-7B (MHA)", "llama_3_8b": "Llama-3-8B (GQA, 4 heads a KV head)"}
    for row, what in enumerate(("energy", "delay")):
        for column, model in enumerate(GRID["model"]):
            axis = axes[row][column]
            values = np.array(
                [[cells[model, b, n][what] for n in GRID["context"]] for b in GRID["batch"]]
            )
            axis.imshow(np.log2(values), vmin=0, vmax=3, cmap="viridis", aspect="auto")
            for i, batch in enumerate(GRID["batch"]):
                for j, context in enumerate(GRID["context"]):
                    fits = cells[model, batch, context]["full_fits"]
                    axis.text(
                        j,
                        i,
                        f"{values[i, j]:.2f}{'' if fits else '*'}",
                        ha="center",
                        va="center",
                        fontsize=9,
                        color="black" if values[i, j] > 2.8 else "white",
                    )
            axis.set_xticks(
                range(len(GRID["context"])), [f"{n // 1024 or 0.5:g}k" for n in GRID["context"]]
            )
            axis.set_yticks(range(len(GRID["batch"])), GRID["batch"])
            axis.set(title=f"{titles[model]}: {what}, full / RCE", xlabel="context", ylabel="batch")
    figure.suptitle(
        "Simulated: one decode step on jetcas65, 8x, int8 (* = the full cache does not fit 16 GiB)"
    )
    return figure


def _context() -> Figure:
    """Draw a decode step's delay and energy against context: flat for RCE, linear for full."""
    from accelerator_results import runs_of

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    run: dict[str, Any] = runs_of()["llama_7b"]
    for axis, (name, label, factor) in zip(
        axes, (("delay_s", "delay of a step, ms", 1e3), ("energy_j", "energy of a step, J", 1.0))
    ):
        for design, colour in (("full", "#555555"), ("rce", "#0072b2")):
            points = [r for r in run["context"] if r["design"] == design]
            axis.plot(
                [p["context"] for p in points],
                [factor * p[name] for p in points],
                marker="o",
                markersize=3,
                color=colour,
            )
            axis.annotate(
                {"full": "full KV, 8 bit", "rce": "RCE, 512 slots"}[design],
                (points[-1]["context"], factor * points[-1][name]),
                xytext=(-4, 6),
                textcoords="offset points",
                ha="right",
                color=colour,
            )
        axis.set(xlabel="context, tokens", ylabel=label)
        axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
        axis.grid(alpha=0.25)
    figure.suptitle("Simulated: LLaMA-7B, batch 16, on jetcas65")
    return figure


def _stalls() -> Figure:
    """Draw a decode step's stalls against the KV-MMU's ways, for each machine and store."""
    from accelerator_results import stalls_of

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, 4, sharey=True)
    colours = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")
    panels = [(machine, g) for machine in ("jetcas65", "hbm_server") for g in ("layer", "head")]
    for axis, (machine, granularity) in zip(axes, panels):
        cases = [
            c for c in stalls_of() if (c["accelerator"], c["granularity"]) == (machine, granularity)
        ]
        names = list(dict.fromkeys(_case(c) for c in cases))
        for case in cases:
            axis.plot(
                [row["ways"] for row in case["rows"]],
                [max(row["total"] / row["step_cycles"], 1e-6) for row in case["rows"]],
                color=colours[names.index(_case(case))],
                linestyle="-" if case["store"] == "sram" else "--",
                marker="o",
                markersize=3,
                label=_case(case) if case["store"] == "sram" else None,
            )
        axis.axvline(16, color="#aaaaaa", linewidth=0.8, zorder=0)
        axis.set(xscale="log", yscale="log", xlabel="ways", ylim=(6e-7, 4))
        axis.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
        axis.set_yticks([1e-6, 1e-4, 1e-2, 1], ["none", "0.01 %", "1 %", "100 %"])
        axis.minorticks_off()
        axis.set_title(f"{machine}, one victim per {granularity}", fontsize=10)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("stalls, share of a decode step")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(
        "Simulated: what the KV-MMU holds up (solid: tables on chip, dashed: in DRAM; "
        "line: the presets' ways)"
    )
    return figure


def _case(case: dict[str, Any]) -> str:
    return f"{case['model']}, batch {case['batch']}, {case['slots']} slots"
