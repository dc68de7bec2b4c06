"""Synthesis with Yosys and ABC: Verilog to gates of a library, then buffers between the units.

Units are mapped one by one and flattened afterwards, so a gate's name begins with its unit,
pipeline.update.g17, and area and energy can be told unit by unit. No logic is shared across the
border of two units. Initial values are dropped: silicon has none, only the reset.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from kvmmu.errors import SpecError
from kvmmu.rtl.clock_gates import split_clock_gates
from kvmmu.rtl.emit import BLOCK, SRAM, TOP, Emitted
from kvmmu.rtl.fanout import buffer_nets, buffers_of
from kvmmu.rtl.gates.liberty import Cell, ClockGate, Library
from kvmmu.rtl.gates.liberty_syntax import read_text
from kvmmu.rtl.gates.macros import Macro
from kvmmu.rtl.yosys import run_yosys

__all__ = [
    "LOG",
    "NETLIST",
    "VERILOG",
    "CellChoice",
    "Goal",
    "Recipe",
    "avoid_cells",
    "choose_cells",
    "synthesise",
]

NETLIST, VERILOG, STAT, LOG = "netlist.json", "netlist.v", "stat.json", "synth.log"
_CELLS, _CONSTRAINTS, _RECIPE = "cells.lib", "abc.constr", "abc.script"
_MAPPED = "mapped.json"
_FINISH = f"""\
read_json {_MAPPED}
hierarchy -check -top {TOP}
check -mapped -assert
tee -q -o {STAT} stat -liberty {_CELLS} -json
write_json {NETLIST}
write_verilog -noattr -simple-lhs {VERILOG}
"""
Goal = Literal["area", "delay"]
"""What mapping makes small; gates are sized for the clock in both."""
_RECIPES: dict[Goal, str] = {
    "area": (
        "strash; &get -n; &fraig -x; &put; scorr; dc2; strash; &get -n; &dch -f; &nf; &put; "
        "topo; buffer -c; upsize {D}; dnsize {D}; stime -p"
    ),
    "delay": (
        "strash; &get -n; &fraig -x; &put; scorr; dc2; strash; if -g -K 6; strash; &get -n; "
        "&dch -f; &nf; &put; topo; buffer -c; upsize {D}; dnsize {D}; stime -p"
    ),
}
"""ABC's commands; {D} is the clock's period. "delay" balances the logic before it maps."""
_GATED_TOGETHER = 8
"""Flip-flops of one enable from which a clock gate pays: its area is that of some four
multiplexers; assumed."""
_LOAD_FANOUT = 4
"""Inputs of the driving cell that an output of a unit is taken to drive; assumed."""


@dataclass(frozen=True)
class CellChoice:
    """Name the cells of a library that Yosys must be told: ties (cell, pin) and a driver.

    A library without tie cells leaves constants in the netlist.
    """

    tie_high: tuple[str, str] | None
    tie_low: tuple[str, str] | None
    driver: str
    load_pf: float
    clock_gate: tuple[str, ClockGate] | None = None


def avoid_cells(library: Library, names: Sequence[str]) -> Library:
    """Return the library with the named cells unusable; names may hold the wildcards * and ?.

    Raises ValueError for a name that fits no cell.
    """
    cells = dict(library.cells)
    for name in names:
        found = [cell for cell in cells if fnmatchcase(cell, name)]
        if not found:
            raise ValueError(f"dont_use must name cells of the liberty, got {name!r}")
        cells |= {cell: replace(cells[cell], unusable="it is to be avoided") for cell in found}
    return replace(library, cells=cells)


def choose_cells(library: Library) -> CellChoice:
    """Find the tie cells, the smallest buffer and the smallest clock gate.

    Raises SpecError unless the library has a flip-flop, a buffer and an inverter; ABC needs both.
    """
    usable = [cell for cell in library.cells.values() if not cell.unusable]
    buffers = buffers_of(library)
    needed = {
        "a flip-flop": any(cell.kind == "flip_flop" for cell in usable),
        "a buffer": bool(buffers),
        "an inverter": any(_is_inverter(cell) for cell in usable),
    }
    for name, is_there in needed.items():
        if not is_there:
            raise SpecError(f"liberty must hold {name}, got {library.name!r} without one to use")
    driver = buffers[0]
    load_pf = _LOAD_FANOUT * driver.pins[driver.inputs[0]].capacitance_pf
    gates = [cell for cell in usable if cell.clock_gate is not None]
    gate = min(gates, key=lambda cell: (cell.area_um2, cell.name), default=None)
    pins = None if gate is None or gate.clock_gate is None else (gate.name, gate.clock_gate)
    return CellChoice(_tie(usable, True), _tie(usable, False), driver.name, load_pf, pins)


def _is_inverter(cell: Cell) -> bool:
    if cell.kind != "combinational" or not len(cell.inputs) == len(cell.outputs) == 1:
        return False
    function = cell.pins[cell.outputs[0]].function
    return function is not None and list(function.table(cell.inputs)) == [True, False]


def _tie(cells: list[Cell], is_high: bool) -> tuple[str, str] | None:  # noqa: FBT001
    """Find the smallest cell that has no input and drives a constant."""
    found = [
        cell
        for cell in cells
        if not cell.inputs and len(cell.outputs) == 1 and _constant(cell) is is_high
    ]
    if not found:
        return None
    cell = min(found, key=lambda c: (c.area_um2, c.name))
    return cell.name, cell.outputs[0]


def _constant(cell: Cell) -> bool | None:
    """Return what a cell without inputs drives; None where the file does not say."""
    function = cell.pins[cell.outputs[0]].function
    return None if function is None or function.names else bool(function.table(())[0])


@dataclass(frozen=True)
class Recipe:
    """Say how to map: the cells to know of, the clock aimed at, what to make small, what to avoid.

    Names in dont_use may hold the wildcards * and ?.
    """

    choice: CellChoice
    clock_mhz: float
    goal: Goal = "area"
    dont_use: tuple[str, ...] = ()
    gates_clock: bool = True

    def files(self) -> dict[str, str]:
        """Write ABC's commands and constraints (loads in fF); they lie beside the script."""
        load_ff = self.choice.load_pf * 1e3
        return {
            _RECIPE: _RECIPES[self.goal] + "\n",
            _CONSTRAINTS: f"set_driving_cell {self.choice.driver}\nset_load {load_ff:.3f}\n",
        }

    def script(self) -> str:
        """Write the Yosys script; all its files lie in its folder."""
        avoid = "".join(f" -dont_use {name}" for name in self.dont_use)
        abc = f"abc -liberty {_CELLS}{avoid} -D {1e6 / self.clock_mhz:.0f}"
        lines = [
            f"read_verilog -lib {SRAM}",
            f"read_verilog {BLOCK}",
            f"hierarchy -check -top {TOP}",
            "setattr -unset init w:*",
            f"synth -top {TOP} -noabc",
            *(_clock_gates(self.choice) if self.gates_clock else ()),
            f"dfflibmap -liberty {_CELLS}{avoid}",
            f"{abc} -script {_RECIPE} -constr {_CONSTRAINTS}",
            f"read_liberty -lib -ignore_miss_func {_CELLS}",
            "setundef -zero",
            *_ties(self.choice),
            "opt_clean -purge",
            "rename -enumerate -pattern g%",
            "flatten -noscopeinfo",
            f"write_json {_MAPPED}",
        ]
        return "\n".join(lines) + "\n"


def _clock_gates(choice: CellChoice) -> Iterator[str]:
    """Gate the clock of flip-flops that share an enable, where the library has a cell for it."""
    if choice.clock_gate is not None:
        cell, pins = choice.clock_gate
        ports = f"{pins.enable}:{pins.clock}:{pins.output}"
        yield f"clockgate -pos {cell} {ports} -min_net_size {_GATED_TOGETHER}"


def _ties(choice: CellChoice) -> Iterator[str]:
    if choice.tie_high is not None and choice.tie_low is not None:
        (high, high_pin), (low, low_pin) = choice.tie_high, choice.tie_low
        yield f"hilomap -singleton -hicell {high} {high_pin} -locell {low} {low_pin}"


def synthesise(
    emitted: Emitted,
    folder: Path,
    *,
    liberty: Path,
    library: Library,
    macros: Sequence[Macro],
    recipe: Recipe,
) -> dict[str, Any]:
    """Map the block onto a library; leaves the netlist, its Verilog, scripts and logs in folder.

    Returns what Yosys counts: cells by type, area, and the buffers that were added between units.
    Raises YosysError if a step fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for source in emitted.sources:
        shutil.copyfile(source, folder / source.name)
    for name, text in (recipe.files() | {_CELLS: read_text(liberty)}).items():
        (folder / name).write_text(text, encoding="utf-8")
    run_yosys(recipe.script(), folder, name="synth")
    mapped = json.loads((folder / _MAPPED).read_text(encoding="utf-8"))
    if recipe.gates_clock and recipe.choice.clock_gate is not None:
        split_clock_gates(mapped["modules"][TOP], library)
    added = buffer_nets(mapped["modules"][TOP], library, macros)
    (folder / _MAPPED).write_text(json.dumps(mapped), encoding="utf-8")
    run_yosys(_FINISH, folder, name="finish")
    stat = json.loads((folder / STAT).read_text(encoding="utf-8"))
    return _counted(stat) | {"buffers_added": added}


def _counted(stat: Mapping[str, Any]) -> dict[str, Any]:
    """Take out what the report needs."""
    design = stat["design"]
    return {
        "cells_by_type": dict(sorted(design["num_cells_by_type"].items())),
        "logic_area_um2": design.get("area", 0.0),
    }
