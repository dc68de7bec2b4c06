"""A memory bank made of SRAM macros: columns beside each other, rows of macros below each other.

columns = ceil(width / word), rows = ceil(depth / words). An access enables the macros of one row;
address and data pins of all rows see the toggles. What selects the row and merges the outputs of
several rows is not part of it: no area, delay or energy is counted for them where rows > 1.

A macro's pins follow the naming PREFIX + CLK, MEN, WEN, REN, ADDR, DIN, DOUT, BM (enable, write,
read, bit mask), as IHP's do; the prefix is that of the bus of its memory_read group. Energy of an
access is what the clock pin's internal_power says for the rising edge of a read, or a write.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.liberty import Cell, Library, Pin, PowerArc

__all__ = ["Macro", "MacroComposition", "compose", "macros_of"]

_ROLES = ("CLK", "MEN", "WEN", "REN", "ADDR", "DIN", "DOUT", "BM")
_NOMINAL_SLEW_NS = 0.1
"""Slew at which a macro's summary timing is read; assumed."""
_NOMINAL_LOAD_PF = 0.01
"""Load at which a macro's summary timing is read; assumed."""


@dataclass(frozen=True)
class Macro:
    """Hold one SRAM macro and the prefix of its functional pins."""

    cell: Cell
    prefix: str

    @property
    def words(self) -> int:
        """Words that the macro holds."""
        assert self.cell.memory is not None
        return 1 << int(self.cell.memory.address_width)

    @property
    def bits(self) -> int:
        """Bits of a word."""
        assert self.cell.memory is not None
        return int(self.cell.memory.word_width)

    def pin(self, role: str, bit: int = 0) -> Pin:
        """Return a pin by its role; of a bus, one bit."""
        name = self.prefix + role
        return self.cell.pins[name] if name in self.cell.pins else self.cell.bus_pins(name)[bit]

    def access_pj(self, *, write: bool) -> float:
        """Return the energy of one access: the clock's rising edge with MEN and WEN or REN."""
        return self._clock_pj(enabled=True, write=write)

    def idle_pj(self) -> float:
        """Return the energy of a clock cycle without access."""
        return self._clock_pj(enabled=False, write=False)

    def _clock_pj(self, *, enabled: bool, write: bool) -> float:
        levels = {
            self.prefix + "MEN": enabled,
            self.prefix + "WEN": enabled and write,
            self.prefix + "REN": enabled and not write,
        }
        arc = self.arc("CLK", levels)
        if arc is None:
            raise SpecError(f"{self.cell.name} must give internal_power of {levels}, got none")
        slew = _NOMINAL_SLEW_NS
        return float(arc.rise_pj.at(slew=slew)) + float(arc.fall_pj.at(slew=slew))

    def arc(self, role: str, levels: dict[str, bool]) -> PowerArc | None:
        """Return the pin's power arc whose `when` holds at `levels`, else one without `when`."""
        columns = {name: np.array([level]) for name, level in levels.items()}
        arcs = [a for a in self.cell.power if a.pin == self.prefix + role and not a.related]
        for arc in arcs:
            if arc.when is not None and set(arc.when.names) <= set(columns):
                if arc.when.over(columns, 1)[0]:
                    return arc
        return next((arc for arc in arcs if arc.when is None), None)

    def pin_pj(self, role: str, *, rising: bool, enabled_share: float, slew_ns: float) -> float:
        """Return the energy of a toggle of one pin, weighed over enabled and idle cycles.

        No internal_power for the pin is no energy.
        """
        total = 0.0
        for enabled, share in ((True, enabled_share), (False, 1.0 - enabled_share)):
            arc = self.arc(role, {self.prefix + "MEN": enabled})
            if arc is not None:
                table = arc.rise_pj if rising else arc.fall_pj
                total += share * float(table.at(slew=slew_ns, load=0.0))
        return total


@dataclass(frozen=True)
class MacroComposition:
    """Hold a bank of depth x width as columns x rows of one macro.

    read_pj and write_pj are of one access of the selected row, all columns; idle_pj of a clock
    cycle without access, all macros; clock_to_q_ns and setup_ns the macro's own largest, at a
    slew of 0.1 ns and a load of 0.01 pF.
    """

    depth: int
    width: int
    macro: Macro
    columns: int
    rows: int
    area_um2: float
    leakage_nw: float
    read_pj: float
    write_pj: float
    idle_pj: float
    clock_to_q_ns: float
    setup_ns: float


def macros_of(library: Library) -> tuple[Macro, ...]:
    """Return the SRAM macros of a library. Raises SpecError if one lacks a pin by role."""
    found = []
    for cell in library.cells.values():
        if cell.memory is None:
            continue
        reads = list(cell.memory.read_buses)
        if len(reads) != 1 or not reads[0].endswith("DOUT"):
            raise SpecError(f"{cell.name} must read one bus ..DOUT, got {reads}")
        prefix = reads[0].removesuffix("DOUT")
        names = set(cell.pins) | {pin.bus for pin in cell.pins.values()}
        missing = [role for role in _ROLES if prefix + role not in names]
        if missing:
            raise SpecError(f"{cell.name} must have a pin {prefix}{missing[0]}")
        found.append(Macro(cell=cell, prefix=prefix))
    return tuple(found)


def compose(depth: int, width: int, macros: Iterable[Macro]) -> MacroComposition:
    """Choose the macro that makes depth x width on the least area; ties: fewer macros, name.

    Raises SpecError if there is no macro.
    """
    options = []
    for macro in macros:
        columns, rows = -(-width // macro.bits), -(-depth // macro.words)
        area = columns * rows * macro.cell.area_um2
        options.append((area, columns * rows, macro.cell.name, macro, columns, rows))
    if not options:
        raise SpecError(f"macros must hold one for {depth} x {width}, got none")
    area, count, _, macro, columns, rows = min(options, key=lambda option: option[:3])
    return MacroComposition(
        depth=depth,
        width=width,
        macro=macro,
        columns=columns,
        rows=rows,
        area_um2=area,
        leakage_nw=count * macro.cell.leakage_nw,
        read_pj=columns * macro.access_pj(write=False) + columns * (rows - 1) * macro.idle_pj(),
        write_pj=columns * macro.access_pj(write=True) + columns * (rows - 1) * macro.idle_pj(),
        idle_pj=count * macro.idle_pj(),
        clock_to_q_ns=_largest(macro, ("rising_edge",), ("cell_rise", "cell_fall")),
        setup_ns=_largest(macro, ("setup_rising",), ("rise_constraint", "fall_constraint")),
    )


def _largest(macro: Macro, kinds: tuple[str, ...], tables: tuple[str, ...]) -> float:
    slew = _NOMINAL_SLEW_NS
    values = [
        float(
            arc.tables[name].at(
                slew=slew, load=_NOMINAL_LOAD_PF, related_slew=slew, constrained_slew=slew
            )
        )
        for arc in macro.cell.timing
        if arc.kind in kinds and arc.related == macro.prefix + "CLK"
        for name in tables
        if name in arc.tables
    ]
    if not values:
        raise SpecError(f"{macro.cell.name} must have {kinds[0]} arcs of {macro.prefix}CLK")
    return max(values)
