"""Accuracy, memory, speed and accelerator figures side by side, and what does not match."""

from __future__ import annotations

from typing import Any

from kvmmu.report.accelerator.cells import NONE, Cell, make_grid
from kvmmu.report.accelerator.names import MODES, energy_text, time_text, times
from kvmmu.report.accelerator.study import accuracy_words, called, full_of, scopes_of
from kvmmu.report.evaluation.names import at, find, listed, percent, span
from kvmmu.report.evaluation.results import FULL
from kvmmu.report.evaluation.tables import Grid
from kvmmu.report.joint.read import Run
from kvmmu.report.tables import titles_of
from kvmmu.units import KIB, MIB

__all__ = ["demo_grid", "mismatch", "overview_grid"]

Row = dict[str, Any]


def overview_grid(run: Run) -> Grid:
    """Lay out one row a cache of every part: measured figures and simulated ones."""
    rows = [*_of_demo(run), *_of_evaluation(run), *_of_study(run)]
    head = ["cache", "from", "accuracy", "K and V", "decode speed, measured",
            "energy, simulated", "delay, simulated"]  # fmt: skip
    return make_grid("Accuracy, memory, speed and accelerator of this run", head, rows)


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
                _text("demo"),
                _text(f"{right}/{total} answers, perplexity {row['perplexity']:.1f}"),
                _text(f"{_kib(row['kv_bytes'])} a row"),
                _text(f"{row['tokens_per_s']:,.0f} tokens/s"),
                _text(f"{energy_text(own['energy_j'])} a text") if own else NONE,
                _text(f"{time_text(own['delay_s'])} a text") if own else NONE,
            ]
        )
    return rows


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
                _text("evaluation"),
                _text(f"{percent(row['kept'])} % kept ({span(row['kept_interval'])})"),
                _text(f"{cost['kv_ratio']:.3f} of full") if cost.get("kv_ratio") else NONE,
                _text(f"{times(cost['ratio_to_static'])} StaticCache")
                if cost.get("ratio_to_static")
                else NONE,
                NONE,
                NONE,
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
                _text("simulation"),
                _text(accuracy_words(study)),
                _text(f"{times(rate)} fewer bytes read") if rate else NONE,
                NONE,
                _text(times(ratios[scope][mode]["energy"])),
                _text(times(ratios[scope][mode]["delay"])),
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
