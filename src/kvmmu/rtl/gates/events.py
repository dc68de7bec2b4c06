"""Which power arc a change of a cell's inputs counts for, compiled to tables once a cell type.

A node's row is the bits of its inputs, input i at bit i; a flip-flop's row has its state above
them. Zero delay: all inputs of a cell change at once and its output at most once a cycle, so
glitches are not counted.

Attribution. When an output toggles, each input that toggled claims it with its arc to that output
whose `when` holds after the change, else the one whose `when` held before it, else the arc without
`when`; the inputs that claim share the transition equally. If none can claim by these rules, the
first arc of each toggled input is taken; if there is none at all, the transition is counted as
unattributed. An input's own arcs count at each of its toggles: the arc whose `when` holds after
the change, else the one without `when` - but beside arcs with `when`, that one counts only where
no output toggles, because then the output's arc holds the energy.

Counts are in sixtieths (SHARE), so that a transition splits exactly among up to six inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.liberty import Cell, PowerArc
from kvmmu.rtl.gates.netlist import ENABLE, signal_inputs

__all__ = ["SHARE", "CellEvents", "compile_events"]

_Bools = NDArray[np.bool_]
SHARE = 60
"""Counts that one whole event makes: the least common multiple of 1 to 6."""
RISE, FALL = 0, 1

Entry = tuple[int, int]
"""A slot, and the sixtieths that it gets."""


@dataclass(frozen=True)
class CellEvents:
    """Hold the tables of one cell type.

    Slots: 2 * arc + edge (edge 0 rise, 1 fall), the last one counts unattributed transitions.
    A flip-flop has its input arcs twice: as counted early in a cycle, while the clock is high (low
    behind a shut clock gate), and, low_offset slots on, late in it. settle: (old row, new row) ->
    entries. edge: row before a clock edge -> entries of its outputs. clock_arc[row]: the clock
    pin's arc, -1 where none.
    """

    cell: Cell
    bits: int
    num_slots: int
    low_offset: int
    out_mask: NDArray[np.uint8]
    next_state: NDArray[np.uint8]
    settle: dict[tuple[int, int], list[Entry]]
    edge: dict[int, list[Entry]]
    clock_arc: NDArray[np.int64]
    leakage_nw: NDArray[np.float64]


def compile_events(cell: Cell) -> CellEvents:
    """Compile a gate or a flip-flop. Raises SpecError if a `when` names an unknown pin."""
    columns, bits = _columns(cell)
    rows = 1 << bits
    high = dict(columns)
    low = dict(columns)
    clock = "" if cell.flip_flop is None else cell.flip_flop.clocked_on.text
    if clock:
        high[clock], low[clock] = np.ones(rows, np.bool_), np.zeros(rows, np.bool_)
    outputs = [columns[name] for name in cell.outputs]
    out_mask = sum(
        (column.astype(np.uint8) << j for j, column in enumerate(outputs)),
        np.zeros(rows, np.uint8),
    )
    num_arcs = len(cell.power)
    low_offset = 2 * num_arcs if clock else 0
    num_slots = 2 * num_arcs + low_offset + 1
    compiler = _Compiler(cell, columns, bits, num_slots - 1, outputs)
    whens = [_when(arc, high, rows) for arc in cell.power]
    settle: dict[tuple[int, int], list[Entry]] = {}
    edge: dict[int, list[Entry]] = {}
    next_state = np.zeros(rows, np.uint8)
    clock_arc = np.full(rows, -1, np.int64)
    if cell.flip_flop is None:
        settle = compiler.gate(whens)
    else:
        whens_low = [_when(arc, low, rows) for arc in cell.power]
        settle = compiler.data(whens, whens_low, low_offset)
        next_state = cell.flip_flop.next_state.over(columns, rows).astype(np.uint8)
        edge = compiler.clocked(whens, next_state, clock)
        clock_arc = _clock_arcs(cell, columns, rows, clock)
    return CellEvents(
        cell=cell,
        bits=bits,
        num_slots=num_slots,
        low_offset=low_offset,
        out_mask=out_mask.astype(np.uint8),
        next_state=next_state,
        settle=settle,
        edge=edge,
        clock_arc=clock_arc,
        leakage_nw=(_leakage(cell, high, rows) + _leakage(cell, low, rows)) / 2,
    )


def _columns(cell: Cell) -> tuple[dict[str, _Bools], int]:
    """Return the value of each pin but the clock in each row, and the bits of a row."""
    names = signal_inputs(cell)
    bits = len(names) + (cell.flip_flop is not None)
    rows = np.arange(1 << bits)
    columns = {name: (rows >> i & 1).astype(np.bool_) for i, name in enumerate(names)}
    if cell.flip_flop is not None:
        state = (rows >> len(names) & 1).astype(np.bool_)
        columns[cell.flip_flop.state] = state
        columns[cell.flip_flop.inverse] = ~state
    for name in cell.outputs:
        function = cell.pins[name].function
        assert function is not None  # classify() refuses such a cell
        columns[name] = function.over(columns, len(rows))
    return columns, bits


def _when(arc: PowerArc, columns: dict[str, _Bools], rows: int) -> _Bools | None:
    return None if arc.when is None else arc.when.over(columns, rows)


def _leakage(cell: Cell, columns: dict[str, _Bools], rows: int) -> NDArray[np.float64]:
    """Return the leakage in each row: the first state that holds, else the cell's own figure."""
    leakage = np.full(rows, cell.leakage_nw)
    for state in reversed(cell.leakage_states):
        if state.when is None:
            leakage[:] = state.leakage_nw
        else:
            leakage[state.when.over(columns, rows)] = state.leakage_nw
    return leakage


def _clock_arcs(cell: Cell, columns: dict[str, _Bools], rows: int, clock: str) -> NDArray[np.int64]:
    result = np.full(rows, -1, np.int64)
    arcs = [(i, arc) for i, arc in enumerate(cell.power) if arc.pin == clock and not arc.related]
    for i, arc in reversed([a for a in arcs if a[1].when is not None]):
        result[_when(arc, columns, rows)] = i
    for i, _ in [a for a in arcs if a[1].when is None][:1]:
        result[result < 0] = i
    return result


class _Compiler:
    """Match arcs to changes of one cell type."""

    def __init__(
        self,
        cell: Cell,
        columns: dict[str, _Bools],
        bits: int,
        unattributed: int,
        outputs: list[_Bools],
    ) -> None:
        self.cell = cell
        self.names = signal_inputs(cell)
        self.rows = 1 << bits
        self.unattributed = unattributed
        self.outputs = outputs
        if bits > 7:
            raise SpecError(f"{cell.name} must have at most 6 inputs, got {len(self.names)}")

    def gate(self, whens: Sequence[_Bools | None]) -> dict[tuple[int, int], list[Entry]]:
        """Compile every change of the inputs of a gate."""
        table: dict[tuple[int, int], list[Entry]] = {}
        for old in range(self.rows):
            for new in range(self.rows):
                if old == new:
                    continue
                toggled = [i for i in range(len(self.names)) if (old ^ new) >> i & 1]
                entries: list[Entry] = []
                switches = False
                for name, column in zip(self.cell.outputs, self.outputs):
                    if column[old] != column[new]:
                        switches = True
                        edge = RISE if column[new] else FALL
                        entries += self.output(name, toggled, edge, whens, (new, old))
                entries += self.passive(toggled, new, whens, switches=switches)
                table[old, new] = entries
        return table

    def output(
        self,
        output: str,
        toggled: Sequence[int],
        edge: int,
        whens: Sequence[_Bools | None],
        rows: tuple[int, int],
    ) -> list[Entry]:
        """Share one transition of an output among the inputs that toggled."""
        claims: list[int] = []
        spare: list[int] = []
        for i in toggled:
            arcs = [
                k
                for k, arc in enumerate(self.cell.power)
                if arc.pin == output and arc.related in (self.names[i], "")
            ]
            arc = _match(arcs, whens, rows)
            if arc >= 0:
                claims.append(arc)
            spare += arcs[:1]
        chosen = claims or spare
        if not chosen:
            return [(self.unattributed, SHARE)]
        return [(2 * arc + edge, SHARE // len(chosen)) for arc in chosen]

    def passive(
        self,
        toggled: Sequence[int],
        new: int,
        whens: Sequence[_Bools | None],
        *,
        switches: bool,
    ) -> list[Entry]:
        """Count the inputs' own arcs."""
        entries: list[Entry] = []
        for i in toggled:
            arcs = [
                k
                for k, arc in enumerate(self.cell.power)
                if arc.pin == self.names[i] and not arc.related
            ]
            named = [k for k in arcs if whens[k] is not None]
            arc = _match(named, whens, (new,))
            if arc < 0 and not (named and switches):
                arc = next((k for k in arcs if whens[k] is None), -1)
            if arc >= 0:
                entries.append((2 * arc + (RISE if new >> i & 1 else FALL), SHARE))
        return entries

    def data(
        self, high: Sequence[_Bools | None], low: Sequence[_Bools | None], offset: int
    ) -> dict[tuple[int, int], list[Entry]]:
        """Compile the changes of a flip-flop's inputs, state kept, for both clock levels.

        Behind a clock gate the clock is high only in a cycle before which the enable was 1.
        """
        table: dict[tuple[int, int], list[Entry]] = {}
        state = 1 << len(self.names)
        enable = 1 << self.names.index(ENABLE) if ENABLE in self.names else 0
        for old in range(self.rows):
            for new in range(self.rows):
                if old == new or (old ^ new) & state:
                    continue
                toggled = [i for i in range(len(self.names)) if (old ^ new) >> i & 1]
                early = high if old & enable == enable else low
                entries = self.passive(toggled, new, early, switches=False)
                for slot, share in self.passive(toggled, new, low, switches=False):
                    entries.append((slot + offset, share))
                table[old, new] = entries
        return table

    def clocked(
        self, whens: Sequence[_Bools | None], next_state: NDArray[np.uint8], clock: str
    ) -> dict[int, list[Entry]]:
        """Compile what a flip-flop's outputs do at the clock edge that leaves a row."""
        table: dict[int, list[Entry]] = {}
        state = 1 << len(self.names)
        for row in range(self.rows):
            after = row & ~state | (state if next_state[row] else 0)
            entries: list[Entry] = []
            for name, column in zip(self.cell.outputs, self.outputs):
                if column[row] == column[after]:
                    continue
                arcs = [
                    k
                    for k, arc in enumerate(self.cell.power)
                    if arc.pin == name and arc.related in (clock, "")
                ]
                arc = _match(arcs, whens, (row, after))
                arc = arcs[0] if arc < 0 and arcs else arc
                edge = RISE if column[after] else FALL
                entries.append((2 * arc + edge if arc >= 0 else self.unattributed, SHARE))
            table[row] = entries
        return table


def _match(arcs: Sequence[int], whens: Sequence[_Bools | None], rows: Sequence[int]) -> int:
    """Return the first arc whose `when` holds in the first row that has one, -1 if none."""
    for row in rows:
        for k in arcs:
            when = whens[k]
            if when is not None and when[row]:
                return k
    return next((k for k in arcs if whens[k] is None), -1)
