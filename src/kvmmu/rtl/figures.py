"""What a mapped netlist and its SRAM banks come to: cells, flip-flops, area, macros, delay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.liberty import Cell, Library
from kvmmu.rtl.gates.macros import Macro, compose, macros_of
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.timing import Endpoint, analyse_timing
from kvmmu.rtl.sram_verilog import SramShape

__all__ = ["SLEW_NS", "gate_figures", "macros_in", "sram_figures", "time_figures", "unit_of"]

SLEW_NS = 0.1
"""Slew of every input and of the clock; assumed."""

TOP_UNIT = "top"
"""Where cells of the top module itself are counted."""


def unit_of(name: str) -> str:
    """Return the unit that a cell belongs to: pipeline.update of pipeline.update.g17."""
    return name.rpartition(".")[0] or TOP_UNIT


def gate_figures(netlist: Netlist) -> dict[str, Any]:
    """Count cells, flip-flops and area of the logic, altogether and by unit; SRAM is left out."""
    gates = netlist.clock_gates
    cells = [netlist.cell_of(node) for node in range(netlist.num_nodes)]
    cells += [gate.cell for gate in gates]
    units: dict[str, list[Cell]] = {}
    for name, cell in zip((*netlist.node_names, *(gate.name for gate in gates)), cells):
        units.setdefault(unit_of(name), []).append(cell)
    return {
        **_sums(cells),
        "cells_by_type": dict(sorted(Counter(cell.name for cell in cells).items())),
        "units": [{"unit": name} | _sums(units[name]) for name in sorted(units)],
    }


def _sums(cells: Sequence[Cell]) -> dict[str, Any]:
    flip_flops = [cell for cell in cells if cell.kind == "flip_flop"]
    return {
        "cells": len(cells),
        "flip_flops": len(flip_flops),
        "clock_gates": sum(cell.clock_gate is not None for cell in cells),
        "logic_area_um2": sum(cell.area_um2 for cell in cells),
        "flip_flop_area_um2": sum(cell.area_um2 for cell in flip_flops),
    }


def macros_in(library: Library) -> tuple[Macro, ...]:
    """Return a library's SRAM macros. Raises SpecError if it holds none."""
    found = macros_of(library)
    if not found:
        raise SpecError(f"an SRAM liberty must hold a macro, got {library.source!r} without")
    return found


def sram_figures(srams: Mapping[SramShape, int], macros: Sequence[Macro]) -> dict[str, Any]:
    """Make every bank of macros and sum their area; None where there are no macros.

    What selects one of several rows of macros is counted nowhere.
    """
    banks = [_bank(shape, count, macros) for shape, count in srams.items()]
    area = sum(bank["instances"] * bank["area_um2"] for bank in banks) if macros else None
    return {"srams": banks, "sram_area_um2": area}


def time_figures(netlist: Netlist, library: Library, macros: Sequence[Macro]) -> dict[str, Any]:
    """Estimate the longest path; without macros the banks are cut out.

    Their pins are then inputs at time 0 and outputs due at the next edge.
    """
    made = analyse_timing(
        netlist if macros else _without_memories(netlist),
        library,
        tuple(macros),
        input_slew_ns=SLEW_NS,
        clock_slew_ns=SLEW_NS,
    )
    period_ns = made.minimum_period_ns
    first: dict[str, dict[str, Any]] = {}
    for end in made.endpoints:  # the longest first
        first.setdefault(unit_of(end.instance), _end(end))
    return {
        "critical_path_ns": period_ns,
        "fmax_mhz": 1e3 / period_ns,
        "input_slew_ns": SLEW_NS,
        "clock_slew_ns": SLEW_NS,
        "has_sram": bool(macros),
        "path": [asdict(point) for point in made.path],
        "ends_by_unit": list(first.values()),
    }


def _end(end: Endpoint) -> dict[str, Any]:
    return {
        "unit": unit_of(end.instance),
        "end": f"{end.instance}.{end.pin}" if end.pin else end.instance,
        "cell": end.cell,
        "period_ns": end.period_ns,
    }


def _without_memories(netlist: Netlist) -> Netlist:
    """Turn the pins of the banks into inputs and outputs."""
    inputs, outputs = dict(netlist.inputs), dict(netlist.outputs)
    for memory in netlist.memories:
        inputs[f"{memory.name}.rdata"] = memory.rdata
        single = np.array([memory.en, memory.we])
        parts = (single, memory.addr, memory.wdata, memory.wmask)
        outputs[f"{memory.name}.pins"] = np.concatenate(parts)
    return replace(netlist, memories=(), inputs=inputs, outputs=outputs)


def _bank(shape: SramShape, count: int, macros: Sequence[Macro]) -> dict[str, Any]:
    """Describe one kind of bank; area and energies are of one instance."""
    bank: dict[str, Any] = asdict(shape) | {"module": shape.name, "instances": count}
    if not macros:
        return bank | {"macro": None, "area_um2": None}
    made = compose(shape.depth, shape.width, macros)
    return bank | {
        "macro": made.macro.cell.name,
        "columns": made.columns,
        "rows": made.rows,
        "area_um2": made.area_um2,
        "leakage_nw": made.leakage_nw,
        "read_pj": made.read_pj,
        "write_pj": made.write_pj,
        "idle_pj": made.idle_pj,
        "clock_to_q_ns": made.clock_to_q_ns,
        "setup_ns": made.setup_ns,
        "filled": shape.bits / (made.columns * made.macro.bits * made.rows * made.macro.words),
    }
