"""A search of designs: the answer, the best and the runners-up, what binds, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from kvmmu.report.accelerator.names import energy_text, share_text, three_digits, time_text, times

__all__ = [
    "EXPLORATION",
    "explore_answer",
    "explore_notes",
    "explore_table",
    "plot_designs",
    "ratio_table",
]

EXPLORATION = "exploration.json"
"""The file that `kvmmu explore --output` writes; no other command's file has this name."""

Results = Mapping[str, Any]
CACHES = {"rce": "RCE", "full": "full cache"}
WIDE = 97
"""Columns that the whole table takes."""

COLOURS = {"rce": "#0072b2", "full": "#d55e00"}
MARKERS = {"rce": "o", "full": "s"}
_FIELDS = {"edp": "edp_js", "delay": "delay_s", "energy": "energy_j"}
_AXES = {
    "edp": "energy x delay of the run [J s]",
    "delay": "delay of the run [s]",
    "energy": "energy of the run [J]",
}


def explore_answer(results: Results) -> str:
    """Say in two or three sentences what the search found."""
    about = results["about"]
    run = f"{about['model']}, batch {about['batch']}, {about['prompt']:,} + {about['generate']:,}"
    budget = f"{about['area_mm2']:.2f} mm2"
    if "best_to_best" not in results["ratios"]:
        none = [CACHES[kind] for kind in CACHES if "best" not in results[kind]]
        return f"No design of {budget} was found for {run} with {' and '.join(none)} (simulated)."
    best, same = results["ratios"]["best_to_best"], results["ratios"]["equal_hardware"]
    told = (
        f"At {budget} the best design with RCE takes {times(best['energy'])} less energy and "
        f"{times(best['delay'])} less time than the best with the full cache ({run}; simulated); "
        f"on RCE's best hardware the full cache would take {times(same['energy'])} and "
        f"{times(same['delay'])}."
    )
    gained = results["ratios"].get("rce_over_original")
    if gained is None:
        return told
    return (
        f"{told} The search itself is worth {times(gained['edp'])} in energy x delay over "
        f"{about['accelerator']} as it is, for the full cache "
        f"{times(results['ratios']['full_over_original']['edp'])}."
    )


def explore_table(results: Results, *, width: int = WIDE) -> Table:
    """Lay out the accelerator as it is, the best and the runners-up of each cache.

    Narrower than WIDE, the column of DRAM, layout and softmax is left out (the notes have them).
    """
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("design", no_wrap=True)
    heads = ["PEs", "buffers, KiB\nW/KV/act/log", "ways\nS/V/M"]
    is_wide = width >= WIDE
    for head in [*heads, "DRAM/layout/softmax"] if is_wide else heads:
        table.add_column(head, no_wrap=True)
    for head in ("mm2", "delay", "energy", "EDP\n(x s)"):
        table.add_column(head, justify="right", no_wrap=True)
    for kind, title in CACHES.items():
        if "best" not in results[kind]:
            continue
        table.add_row(title, style="bold")
        for name, entry in _designs(results, kind):
            cells = _cells(results, name, entry)
            table.add_row(*(cells if is_wide else [*cells[:4], *cells[5:]]))
    return table


def _designs(results: Results, kind: str) -> list[tuple[str, Results]]:
    own = results.get("original", {}).get(kind)
    rows = [] if own is None else [(" as it is", {"point": None, "outcome": own})]
    rows.append((" best", results[kind]["best"]))
    return rows + [(f" {n}.", e) for n, e in enumerate(results[kind]["runners_up"][:3], 2)]


def _cells(results: Results, name: str, entry: Results) -> list[str]:
    point, outcome = entry["point"], entry["outcome"]
    figures = [
        f"{outcome['area_mm2']:.2f}",
        time_text(outcome["delay_s"]),
        energy_text(outcome["energy_j"]),
        energy_text(outcome["edp_js"]),
    ]
    spec = results["about"]["specification"]
    if point is None:
        sides, sizes = spec["array"], spec["buffers"]
        kib = [sizes[f"{b}_kib"] for b in ("weight", "kv", "activation", "logits")]
        ways = [spec[unit]["ways"] for unit in ("softmax", "vector", "mmu")]
        rest = [spec["dram"], spec["layout"], spec["softmax"]["form"]]
    else:
        sides, bank = point, spec["buffers"]["bank_kib"]
        kib = [point[f"{b}_banks"] * bank for b in ("weight", "kv", "activation", "logits")]
        ways = [point["softmax_ways"], point["vector_ways"], point.get("mmu_ways", "-")]
        rest = [point["dram"], point["layout"], point.get("softmax_form", "online")]
    dram = str(rest[0]).removesuffix("_x64").replace("_", "-")
    return [
        name,
        f"{sides['rows']}x{sides['cols']}",
        "/".join(map(str, kib)),
        "/".join(map(str, ways)),
        f"{dram}/{rest[1]}/{str(rest[2]).replace('_pass', '')}{_widths(results, point)}",
        *figures,
    ]


def _widths(results: Results, point: Results | None) -> str:
    """Word slots and bits where there was a choice."""
    if point is None:
        return ""
    axes = results["about"]["axes"]
    made = ""
    if len(axes["weight_bits"]) > 1 or len(axes["kv_bits"]) > 1:
        made += f"/W{point['weight_bits']} KV{point['kv_bits']}"
    if len(axes["num_slots"]) > 1 and "num_slots" in point:
        made += f"/C{point['num_slots']}"
    return made


def ratio_table(results: Results) -> Table:
    """Lay out the ratios, full / RCE."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("full cache over RCE", no_wrap=True)
    for head in ("energy", "delay", "EDP", "decode energy", "decode delay"):
        table.add_column(head, justify="right", no_wrap=True)
    titles = {
        "best_to_best": "each on its best design",
        "equal_hardware": "both on RCE's best design",
        "original": f"both on {results['about']['accelerator']}",
    }
    for key, title in titles.items():
        row = results["ratios"].get(key)
        if row is not None:
            names = ("energy", "delay", "edp", "decode_energy", "decode_delay")
            table.add_row(title, *(times(row[name]) for name in names))
    return table


def explore_notes(results: Results) -> list[str]:
    """Say what binds, what was refused and what a reader must know."""
    about, axes = results["about"], results["about"]["axes"]
    made = [
        f"every figure is simulated; accuracy not measured; least {results['objective']} of the "
        f"whole run in {results['trials']} trials, seed {about['seed']}: not proved to be the least"
    ]
    if results["is_as_if"]:
        made.append(
            "the full cache fits none of these DRAMs at this batch: its figures are as if it did"
        )
    if len(axes["num_slots"]) > 1:
        made.append("designs differ in slots: fewer slots lose accuracy, which is not measured")
    if len(axes["weight_bits"]) > 1 or len(axes["kv_bits"]) > 1:
        made.append("designs differ in bits: fewer bits lose accuracy, which is not measured")
    for kind, title in CACHES.items():
        if "best" in results[kind]:
            choice = _cells(results, "", results[kind]["best"])[4]
            made.append(f"{title}, best: {choice}, {_binding(results[kind]['binding'])}")
        causes = [f"{count} {cause}" for cause, count in results[kind]["refused"].items()]
        made.append(
            f"{title}: {results[kind]['num_priced']} designs priced"
            + (f", refused: {', '.join(causes)}" if causes else "")
        )
    made.append(
        "ports are as wide as the banks give and take no area of their own; what drives the "
        f"DRAM's pins is in no budget, so only these were searched: {', '.join(axes['dram'])}"
    )
    return made


def _binding(binding: Results) -> str:
    """Word what holds a design back."""
    area = f"{share_text(binding['area_share'])} of the area"
    parts = [f"{area} (binds)" if binding["area_binds"] else area]
    parts += [f"{phase} bound by {bound}" for phase, bound in binding["bound"].items()]
    busy = binding["utilisation"][binding["busiest"]]
    parts.append(f"busiest: {binding['busiest']}, {share_text(busy)}")
    parts.append(f"DRAM filled to {share_text(binding['dram_share'])}")
    ends = [f"{name} {end}" for name, end in binding["at_an_end"].items()]
    return ", ".join(parts) + (f"; at the end of its range: {', '.join(ends)}" if ends else "")


# Picture --------------------------------------------------------------------------------------


def plot_designs(results: Results, path: Path) -> None:
    """Draw every design priced, area to the right, objective upward, and each cache's front."""
    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for kind in CACHES:
        if results[kind]["points"]:
            _draw(ax, results, kind)
    ax.axvline(results["about"]["area_mm2"], color="#666666", linestyle="--", linewidth=1)
    ax.annotate(
        f"budget {three_digits(results['about']['area_mm2'])} mm²",
        (results["about"]["area_mm2"], 0.99),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color="#444444",
    )
    ax.set_yscale("log")
    ax.set_xlabel("area of the chip [mm²]")
    ax.set_ylabel(_AXES[results["objective"]])
    ax.grid(alpha=0.25, which="both")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=6)
    about = results["about"]
    ax.set_title(
        f"{about['model']}, batch {about['batch']}, {about['prompt']:,} + {about['generate']:,} "
        f"tokens, process of {about['accelerator']} (simulated)",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)


def _draw(ax: Axes, results: Results, kind: str) -> None:
    """Draw one cache's designs, its front as a stair, its best and the accelerator as it is."""
    points, field = results[kind]["points"], _FIELDS[results["objective"]]
    colour, title = COLOURS[kind], CACHES[kind]
    x, y = zip(*points, strict=True)
    ax.scatter(x, y, s=14, color=colour, alpha=0.35, marker=MARKERS[kind], linewidths=0)
    stair = sorted(map(tuple, results[kind]["front"]))
    ends = [*stair, (results["about"]["area_mm2"], stair[-1][1])]
    ax.step(*zip(*ends, strict=True), where="post", color=colour, linewidth=1.5, label=title)
    best_x, best_y = points[0]
    ax.scatter(best_x, best_y, s=60, color=colour, marker=MARKERS[kind], zorder=3, label="its best")
    own = results.get("original", {}).get(kind)
    if own is not None:
        label = f"{results['about']['accelerator']} as it is"
        ax.scatter(
            own["area_mm2"], own[field], s=60, marker="x", color=colour, zorder=4, label=label
        )
