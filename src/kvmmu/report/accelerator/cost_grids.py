"""Tables of costs: delay, energy, bytes beside their bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvmmu.report.accelerator.cells import Cell, make_grid, number
from kvmmu.report.accelerator.names import (
    BYTE_KINDS,
    SCOPES,
    by_group,
    bytes_text,
    energy_text,
    joined_kinds,
    plain,
    share_text,
    three_digits,
    time_text,
    unit_name,
)
from kvmmu.report.accelerator.study import (
    called,
    full_of,
    kv_traffic,
    ours_name,
    results_of,
    scopes_of,
)
from kvmmu.report.evaluation.tables import Grid

__all__ = ["bound_grid", "byte_grid", "delay_grid", "energy_grid", "unit_grid"]

Study = Mapping[str, Any]
Row = Mapping[str, float]


def delay_grid(study: Study) -> Grid:
    """Lay out delay, what binds and how busy units are, one row a phase of each design."""
    rows = []
    full = full_of(study)
    for label, made in [(ours_name(study), study["simulation"]["ours"]), ("full", full)]:
        if made is None:
            continue
        for name, part in {**made["phases"], "whole run": made["total"]}.items():
            used, delay = part["utilisation"], part["delay_s"]
            rows.append(
                [
                    (f"{label}, {plain(name)}", None),
                    number(part["steps"], "{:,}".format),
                    number(delay["overlapped"], time_text),
                    number(delay["serial"], time_text),
                    number(part["tokens"] / delay["overlapped"], three_digits),
                    (part["bound"], None),
                    *(number(used[unit], share_text) for unit in ("dram", "array", "macs")),
                    number(max(used["softmax"], used["vector"], used["mmu"]), share_text),
                ]
            )
    head = ["design, phase", "steps", "delay", "serial delay", "tokens/s", "bound by",
            "DRAM busy", "PEs busy", "MACs of peak", "other units, at most"]  # fmt: skip
    return make_grid(f"Delay, bound and utilisation ({_against(full)})", head, rows)


def energy_grid(study: Study) -> Grid:
    """Lay out energy by group of units, ours by phase beside the full cache's whole run."""
    ours, full = study["simulation"]["ours"], full_of(study)
    phases = list(ours["phases"]) if len(ours["phases"]) > 1 else []
    parts = [by_group(ours["phases"][p]["energy_by_unit_j"]["overlapped"]) for p in phases]
    whole = by_group(ours["total"]["energy_by_unit_j"]["overlapped"])
    other = by_group(full["total"]["energy_by_unit_j"]["overlapped"]) if full else {}
    groups = list(dict.fromkeys([*whole, *other]))
    rows = [[(g, None), *_energies(g, [*parts, whole], whole, other)] for g in groups]
    rows.append([("all", None), *_energies(None, [*parts, whole], whole, other)])
    name = ours_name(study)
    head = ["unit", *(f"{name}, {plain(p)}" for p in phases), f"{name}, whole run", "of all"]
    head += ["full, whole run", "of all"] if full else []
    return make_grid(f"Energy by unit, overlapped ({_against(full)})", head, rows)


def _energies(group: str | None, parts: Sequence[Row], whole: Row, other: Row) -> list[Cell]:
    """Write one group of each part, or its sum, with shares of the whole runs."""

    def of(part: Row) -> float:
        return sum(part.values()) if group is None else part.get(group, 0.0)

    cells = [number(of(part), energy_text) for part in parts]
    cells.append(number(of(whole) / sum(whole.values()), share_text))
    if other:
        cells.append(number(of(other), energy_text))
        cells.append(number(of(other) / sum(other.values()), share_text))
    return cells


def unit_grid(study: Study) -> Grid:
    """Lay out energy by every unit, one column a design; leakage is apart."""
    designs = results_of(study)
    made = [design["total"]["energy_by_unit_j"]["overlapped"] for design in designs]
    units = list(dict.fromkeys(unit for row in made for unit in row))
    rows = [
        [(unit_name(unit), None), *(number(row.get(unit), energy_text) for row in made)]
        for unit in units
        if any(row.get(unit) for row in made)
    ]
    rows.append([("all", None), *(number(sum(row.values()), energy_text) for row in made)])
    head = ["unit", *(called(design) for design in designs)]
    return make_grid("Energy by unit, whole run, overlapped (simulated)", head, rows)


def byte_grid(study: Study) -> Grid:
    """Lay out DRAM bytes by kind, ours by scope beside the full cache."""
    columns = [
        (f"{label}, {SCOPES[scope]}", _part(made, scope)["dram_bytes"])
        for label, made in (
            (ours_name(study), study["simulation"]["ours"]),
            ("full", full_of(study)),
        )
        if made is not None
        for scope in scopes_of(study)
    ]
    rows = [
        [(BYTE_KINDS.get(kind, plain(kind)), None)]
        + [number(made.get(kind, 0.0), bytes_text) for _, made in columns]
        for kind in joined_kinds([made for _, made in columns])
    ]
    rows.append([("all", None), *(number(sum(m.values()), bytes_text) for _, m in columns)])
    title = f"DRAM bytes by kind ({_against(full_of(study))})"
    return make_grid(title, ["kind", *(label for label, _ in columns)], rows)


def _against(full: Mapping[str, Any] | None) -> str:
    return f"simulated; full: {called(full)}" if full else "simulated"


def _part(made: Mapping[str, Any], scope: str) -> Mapping[str, Any]:
    part = made["total"] if scope == "end_to_end" else made["phases"][scope]
    return dict(part)


def bound_grid(study: Study) -> Grid:
    """Lay out attention's own traffic beside the least that any schedule must move."""
    titles = {made["name"]: made["title"] for made in results_of(study)}
    traffic = {name: kv_traffic(made) for name, made in study["bounds"].items() if name in titles}
    phases = list(dict.fromkeys(phase for row in traffic.values() for phase in row))
    rows = [
        [
            (titles[name], None),
            *(number(value, bytes_text) for p in phases for value in row.get(p, (None, None))),
            number(sum(study["bounds"][name]["order_bytes"].values()), bytes_text),
        ]
        for name, row in traffic.items()
    ]
    head = ["design", *(f"{phase}, {what}" for phase in phases for what in ("moved", "least"))]
    title = "K and V moved by attention beside the I/O lower bound (simulated)"
    return make_grid(title, [*head, "prefill, order of any schedule"], rows)
