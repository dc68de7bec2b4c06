"""Accuracy, memory, speed and accelerator figures side by side, and what does not match."""

from __future__ import annotations

from typing import Any

from kvmmu.report.accelerator.cells import NONE, Cell, make_grid, number
from kvmmu.report.accelerator.names import MODES, energy_text, time_text, times
from kvmmu.report.accelerator.study import accuracy_words, called, full_of, scopes_of
from kvmmu.report.evaluation.names import at, find, listed, percent, span
from kvmmu.report.evaluation.results import FULL
from kvmmu.report.evaluation.tables import Grid
from kvmmu.report.joint.read import Run
from kvmmu.report.tables import titles_of
from kvmmu.units import KIB, MIB

__all__ = ["demo_grid", "mismatch", "overview_grids"]

Row = dict[str, Any]


TITLE = "Accuracy, memory, speed and accelerator of this run"


def overview_grids(run: Run) -> dict[str, Grid]:
    """Lay out one table a part, a row a cache; no column of them mixes units."""
    simulated = ["energy a text, simulated", "delay a text, simulated"]
    measured = ["accuracy, measured", "K and V a row", "decode speed, measured"]
    made = {
        "overview_demo": make_grid(
            f"{TITLE}: demonstration", ["cache", *measured, *simulated], _of_demo(run)
        ),
        "overview_evaluation": make_grid(
            f"{TITLE}: evaluation (measured)",
            [
                "cache",
                "accuracy kept",
                "K and V, of the full cache's",
                "decode speed, StaticCache 1x",
            ],
            _of_evaluation(run),
        ),
        "overview_study": make_grid(
            f"{TITLE}: simulation (ratios, simulated)",
            ["caches and pipelines", "energy", "delay", "K and V read in decode", "accuracy"],
            _of_study(run),
        ),
    }
    return {name: grid for name, grid in made.items() if grid.rows}


def _kib(num_bytes: float) -> str:
    return f"{num_bytes / KIB:,.0f} KiB"


def _text(text: str) -> Cell:
    return text, None


def _of_demo(run: Run) -> list[list[Cell]]:
    if run.demo is None:
        return []
    block = run.demo.get("accelerator", {})
    simulated = {row["name"]: row["end_to_end"] for row in block.get("rows", [])}
    most = max(row["compression"] for row in run.demo["caches"])
    num_full = sum(row["policy"] is None for row in run.demo["caches"])
    width = block.get("bits", {}).get("kv", "?")
    rows = []
    for row in run.demo["caches"]:
        if row["compression"] not in (1, most):
            continue
        is_full = row["policy"] is None
        name = "full" if is_full else "rce"
        own = next((v for k, v in simulated.items() if k.startswith(name)), None)
        if not is_full and row["label"] != block.get("label"):
            own = None
        right = sum(made["right"] for made in row["answers"].values())
        total = sum(made["total"] for made in row["answers"].values())
        rows.append(
            [
                _text(row["label"]),
                _text(f"{right}/{total} answers, perplexity {row['perplexity']:.1f}"),
                _text(f"{_kib(row['kv_bytes'])} a row"),
                _text(f"{row['tokens_per_s']:,.0f} tokens/s"),
                *(_simulated(own, width, num_full if is_full else 1) if own else [NONE, NONE]),
            ]
        )
    return rows


def _simulated(own: Row, width: int | str, num_sharing: int) -> list[Cell]:
    """Write a cache's simulated cost so that none takes it for one of the measured run."""
    shared = "" if num_sharing == 1 else f", one figure for all {num_sharing} full caches"
    mark = f"(simulated, int{width}{shared}; accuracy not measured with it)"
    return [
        (f"{energy_text(own['energy_j'])} {mark}", own["energy_j"]),
        (f"{time_text(own['delay_s'])} {mark}", own["delay_s"]),
    ]


def _of_evaluation(run: Run) -> list[list[Cell]]:
    made = run.evaluation
    if made is None or made["focus"] is None:
        return []
    rows = []
    for row in made["headline"]:
        if row["compression"] != made["focus"] or row["label"] == FULL:
            continue
        cost = find(made["costs"], name=row["name"], compression=made["focus"])
        rows.append(
            [
                _text(f"{row['name']} {at(made['focus'])}"),
                _text(f"{percent(row['kept'])} % ({span(row['kept_interval'])})"),
                _text(f"{cost['kv_ratio']:.3f}") if cost.get("kv_ratio") else NONE,
                _text(times(cost["ratio_to_static"])) if cost.get("ratio_to_static") else NONE,
            ]
        )
    return rows


def _of_study(run: Run) -> list[list[Cell]]:
    study = run.study
    if study is None:
        return []
    full = full_of(study)
    if full is None:
        return []
    made, ratios = study["simulation"], study["simulation"]["ratios"][full["name"]]
    scope = scopes_of(study)[-1]
    rate = made["reduction"].get("decode_kv_bytes")
    rows = []
    for mode, name in MODES.items():
        rows.append(
            [
                _text(f"{called(full)} / {made['ours']['title']}, {name}"),
                number(ratios[scope][mode]["energy"], times),
                number(ratios[scope][mode]["delay"], times),
                _text(f"{times(rate)} fewer bytes") if rate else NONE,
                _text(accuracy_words(study)),
            ]
        )
    return rows


def demo_grid(demo: Row) -> Grid:
    """Lay out the demonstration's table."""
    head = ["cache", "slots", *titles_of(demo["tasks"]), "perplexity", "K and V a row",
            "peak memory", "tokens/s"]  # fmt: skip
    rows: list[list[Cell]] = []
    for row in demo["caches"]:
        answers = [row["answers"][task] for task in demo["tasks"]]
        rows.append(
            [
                _text(row["label"]),
                (f"{row['num_slots']:,}", float(row["num_slots"])),
                *((f"{a['right']}/{a['total']}", a["right"] / max(a["total"], 1)) for a in answers),
                (f"{row['perplexity']:.1f}", row["perplexity"]),
                (_kib(row["kv_bytes"]), float(row["kv_bytes"])),
                (f"{row['peak_bytes'] / MIB:,.1f} MiB", float(row["peak_bytes"])),
                (f"{row['tokens_per_s']:,.0f}", row["tokens_per_s"]),
            ]
        )
    return make_grid("Answers right, perplexity, memory and speed (measured)", head, rows)


def mismatch(run: Run) -> list[str]:
    """Say why measured accuracy does not belong to the simulated ratios, where it does not."""
    if run.study is None or run.study["accuracy"] is not None:
        return []
    made, told = run.study["simulation"]["configuration"], []
    simulated = (
        f"{made['model']}, {made['num_slots']:,} slots, a victim per {made['granularity']}, "
        f"int{made['bits']['kv']} K and V"
    )
    if run.evaluation is not None:
        about = run.evaluation["about"]
        names = [s["name"] for s in run.evaluation["settings"] if s["label"] != FULL]
        sizes = listed(at(c) for c in run.evaluation["compressions"])
        told.append(
            f"the evaluation is of {about.get('model', 'another model')} in "
            f"{about.get('dtype', 'an unknown type')} at {sizes or 'no smaller size'} "
            f"({listed(names) or 'no policy'})"
        )
    if run.demo is not None:
        told.append(f"the demonstration is of {run.demo['model']} in {run.demo['dtype']}")
    if not told:
        return ["No accuracy was measured in this folder; the simulated ratios stand without one."]
    return [
        f"The simulated ratios are of {simulated}; {' and '.join(told)}. Accuracy was not measured "
        "with the simulated numbers, so no measured accuracy stands for these ratios."
    ]
