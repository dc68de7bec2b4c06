"""Energy of counted activity from a liberty's tables.

    internal    power arcs of gates and of flip-flops' outputs and data pins, at (slew of the
                related input, load of the output); who gets a transition: see events.py
    switching   1/2 C V^2 a toggle of every net but the clock; C is the readers' pins
    clock       power arcs of flip-flops' clock pins, a rise and a fall a cycle in the row of the
                cycle, and C V^2 a cycle of the clock pins; behind a clock gate in the cycles in
                which it is open, and the gate's own; no clock tree
    leakage     each cell's leakage in the row it was in, over the time it was in it
    sram_*      from the macros' tables: an access, a clock cycle without one, toggles of pins,
                leakage; the load of the pins is in `switching` like any other

Slews come from the timing pass and are the same for every toggle of an edge. A flip-flop's data
pin is charged as of a high clock if it settles within half the period after the edge and its clock
gate, where it has one, is open; else as of a low clock. Left out: wires, clock tree, glitches, and
what selects and merges rows of macros.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.arcs import arcs_in, causes
from kvmmu.rtl.gates.events import FALL, RISE, SHARE, CellEvents
from kvmmu.rtl.gates.liberty import Library, PowerArc
from kvmmu.rtl.gates.loads import memory_pins
from kvmmu.rtl.gates.netlist import ClockGate, Netlist, signal_inputs
from kvmmu.rtl.gates.simulate import Activity
from kvmmu.rtl.gates.timing import Timing

__all__ = ["LEFT_OUT", "Energy", "EnergyParts", "count_energy"]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
LEFT_OUT = ("wires", "clock tree", "glitches", "row decode and merge of SRAM macros")
_FJ = 1e-6
"""1 nW over 1 ns is 1e-6 pJ."""


@dataclass(frozen=True)
class EnergyParts:
    """Hold energy by kind in pJ."""

    internal_pj: float = 0.0
    switching_pj: float = 0.0
    clock_pj: float = 0.0
    leakage_pj: float = 0.0
    sram_read_pj: float = 0.0
    sram_write_pj: float = 0.0
    sram_idle_pj: float = 0.0
    sram_pins_pj: float = 0.0
    sram_leakage_pj: float = 0.0

    @property
    def total_pj(self) -> float:
        """All kinds."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Energy:
    """Hold the energy of a run.

    by_unit: the part of an instance's name before its last dot -> pJ of its cells and the nets
    that they drive; "(inputs)" is the nets that ports drive, "(clock)" the clock's pins.
    unattributed: transitions of outputs that no power arc could take.
    """

    parts: EnergyParts
    cycles: int
    period_ns: float
    by_unit: Mapping[str, float]
    unattributed: float
    library: str
    voltage_v: float
    left_out: tuple[str, ...] = LEFT_OUT

    @property
    def pj_per_cycle(self) -> float:
        """Total energy over cycles, 0 where there were none."""
        return self.parts.total_pj / self.cycles if self.cycles else 0.0

    def to_json(self) -> dict[str, object]:
        """Return plain values for a JSON file."""
        plain = asdict(self)
        plain["left_out"] = list(self.left_out)
        return plain | {"total_pj": self.parts.total_pj, "pj_per_cycle": self.pj_per_cycle}


def count_energy(
    netlist: Netlist, library: Library, activity: Activity, timing: Timing, *, period_ns: float
) -> Energy:
    """Turn counts into energy at one clock period. Raises ValueError if the period is not > 0.

    netlist, library and timing must be those that the activity was counted on.
    """
    if not period_ns > 0.0:
        raise ValueError(f"period_ns must be > 0, got {period_ns!r}")
    counter = _Counter(netlist, library, activity, timing, period_ns)
    counter.cells()
    counter.nets()
    counter.memories()
    return Energy(
        parts=EnergyParts(**counter.parts),
        cycles=activity.cycles,
        period_ns=period_ns,
        by_unit=dict(sorted(counter.by_unit.items())),
        unattributed=counter.unattributed,
        library=library.name,
        voltage_v=library.voltage_v,
    )


def _unit_of(name: str) -> str:
    return name.rpartition(".")[0] or "(top)"


class _Counter:
    """Sum energy by kind and by unit."""

    def __init__(
        self,
        netlist: Netlist,
        library: Library,
        activity: Activity,
        timing: Timing,
        period_ns: float,
    ) -> None:
        self.netlist = netlist
        self.library = library
        self.activity = activity
        self.timing = timing
        self.period_ns = period_ns
        self.parts = {field.name: 0.0 for field in fields(EnergyParts)}
        self.by_unit: dict[str, float] = defaultdict(float)
        self.unattributed = 0.0
        self.units = np.array([_unit_of(name) for name in netlist.node_names], dtype=object)

    def add(self, kind: str, energy_pj: float, unit: str) -> None:
        self.parts[kind] += energy_pj
        self.by_unit[unit] += energy_pj

    def add_nodes(self, kind: str, nodes: _Ints, energies_pj: _Floats) -> None:
        self.parts[kind] += float(energies_pj.sum())
        for unit, energy in zip(self.units[nodes], energies_pj.tolist()):
            self.by_unit[unit] += energy

    def cells(self) -> None:
        """Count internal, clock pin and leakage energy, one cell type at a time."""
        activity = self.activity
        for kind, events in enumerate(activity.events):
            nodes = np.flatnonzero(self.netlist.node_type == kind)
            cycles = activity.row_base[nodes][:, None] + np.arange(1 << events.bits)
            rows = activity.tally[cycles]
            slots = activity.slot_base[nodes][:, None] + np.arange(events.num_slots)
            counts = activity.tally[slots] / SHARE
            self.unattributed += float(counts[:, -1].sum())
            self.add_nodes("leakage_pj", nodes, rows @ events.leakage_nw * self.period_ns * _FJ)
            for place, arc in enumerate(events.cell.power):
                for edge in (RISE, FALL):
                    high = counts[:, 2 * place + edge]
                    low = np.zeros(len(nodes))
                    if events.low_offset:
                        low = counts[:, 2 * place + edge + events.low_offset]
                    if high.any() or low.any():
                        number = np.where(self._settles_late(events, arc, nodes), low, high)
                        energy = self._arc_pj(events, arc, nodes, edge)
                        self.add_nodes("internal_pj", nodes, number * energy)
                if events.cell.flip_flop is not None:
                    number = rows @ (events.clock_arc == place).astype(np.float64)
                    if number.any():
                        point = {"slew": self.timing.clock_slew_ns, "load": 0.0}
                        both_pj = float(arc.rise_pj.at(**point)) + float(arc.fall_pj.at(**point))
                        self.add_nodes("clock_pj", nodes, number * both_pj)

    def _settles_late(self, events: CellEvents, arc: PowerArc, nodes: _Ints) -> NDArray[np.bool_]:
        """Say which nodes' data pin settles after half a period; only data pins can."""
        names = signal_inputs(events.cell)
        if not events.low_offset or arc.pin not in names:
            return np.zeros(len(nodes), np.bool_)
        nets = self._input_nets(nodes, names.index(arc.pin))
        return np.asarray(self.timing.arrival_ns[:, nets].max(axis=0) >= self.period_ns / 2)

    def _input_nets(self, nodes: _Ints, place: int) -> _Ints:
        return np.asarray(self.netlist.in_net[self.netlist.in_ptr[nodes] + place])

    def _arc_pj(self, events: CellEvents, arc: PowerArc, nodes: _Ints, edge: int) -> _Floats:
        """Look an arc up for each node at its slew and load."""
        cell = events.cell
        load = np.zeros(len(nodes))
        if arc.pin in cell.outputs:
            outs = self.netlist.out_net[self.netlist.out_ptr[nodes] + cell.outputs.index(arc.pin)]
            load = np.where(outs >= 0, self.timing.load_pf[outs], 0.0)
        names = signal_inputs(cell)
        source = arc.related or arc.pin
        if source in names:
            nets = self._input_nets(nodes, names.index(source))
            slew = self.timing.slew_ns[list(causes(events, arc, edge))][:, nets].mean(axis=0)
        else:  # the clock
            slew = np.full(len(nodes), self.timing.clock_slew_ns)
        return (arc.rise_pj if edge == RISE else arc.fall_pj).at(slew=slew, load=load)

    def nets(self) -> None:
        """Count the charging of nets, and of the clock's pins twice a cycle."""
        half_v2 = 0.5 * self.library.voltage_v**2
        clock_pj = self.timing.clock_load_pf * half_v2 * 2 * self.activity.cycles
        self.add("clock_pj", clock_pj, "(clock)")
        for gate in self.netlist.clock_gates:
            self.clock_gate(gate, half_v2)
        toggles = self.activity.rises + self.activity.falls
        energies = toggles * self.timing.load_pf * half_v2
        driver = np.full(self.netlist.num_nets, -1)
        node = np.repeat(np.arange(self.netlist.num_nodes), np.diff(self.netlist.out_ptr))
        used = self.netlist.out_net >= 0
        driver[self.netlist.out_net[used]] = node[used]
        driven = np.flatnonzero(driver >= 0)
        self.add_nodes("switching_pj", driver[driven], energies[driven])
        energies[driven] = 0.0
        for memory in self.netlist.memories:
            self.add("switching_pj", float(energies[memory.rdata].sum()), _unit_of(memory.name))
            energies[memory.rdata] = 0.0
        self.add("switching_pj", float(energies.sum()), "(inputs)")

    def clock_gate(self, gate: ClockGate, half_v2: float) -> None:
        """Count a clock gate: its output and load while open, its clock pin while shut.

        Its enable counts as of a high clock unless it settles late, like a flip-flop's data; its
        leakage is the cell's average. Raises SpecError if power depends on another pin.
        """
        pins, unit = gate.cell.clock_gate, _unit_of(gate.name)
        assert pins is not None
        cycles = self.activity.cycles
        opened = int(self.activity.high_cycles[gate.enable])
        clock_ns = self.timing.clock_slew_ns
        enable_ns = float(self.timing.slew_ns[:, gate.enable].mean())
        is_late = float(self.timing.arrival_ns[:, gate.enable].max()) >= self.period_ns / 2
        clock_is = {pins.clock: np.array([not is_late])}
        rises = int(self.activity.rises[gate.enable])
        falls = int(self.activity.falls[gate.enable])
        for arc in arcs_in(gate.cell.power, clock_is):
            slew_ns = enable_ns if arc.pin == pins.enable else clock_ns
            point = {"slew": slew_ns, "load": gate.load_pf if arc.pin == pins.output else 0.0}
            rise_pj, fall_pj = float(arc.rise_pj.at(**point)), float(arc.fall_pj.at(**point))
            if arc.pin == pins.enable:
                energy_pj = rises * rise_pj + falls * fall_pj
            else:
                turns = opened if arc.pin == pins.output else cycles - opened
                energy_pj = turns * (rise_pj + fall_pj)
            self.add("clock_pj", energy_pj, unit)
        self.add("clock_pj", gate.load_pf * half_v2 * 2 * opened, unit)
        self.add("leakage_pj", gate.cell.leakage_nw * cycles * self.period_ns * _FJ, unit)

    def memories(self) -> None:
        """Count accesses, idle cycles, pins and leakage of the macros of each memory."""
        activity = self.activity
        for m, (memory, made) in enumerate(zip(self.netlist.memories, self.timing.compositions)):
            unit = _unit_of(memory.name)
            reads, writes = int(activity.reads[m]), int(activity.writes[m])
            idle = activity.cycles - reads - writes
            self.add("sram_read_pj", reads * made.read_pj, unit)
            self.add("sram_write_pj", writes * made.write_pj, unit)
            self.add("sram_idle_pj", idle * made.idle_pj, unit)
            time_ns = activity.cycles * self.period_ns
            self.add("sram_leakage_pj", made.leakage_nw * time_ns * _FJ, unit)
            share = (reads + writes) / activity.cycles if activity.cycles else 0.0
            energies: dict[tuple[str, bool], float] = {}
            for pin in memory_pins(memory, made):
                slew = self.timing.slew_ns[:, pin.net].mean()
                scale = made.macro.cell.slew_fraction / self.library.slew_fraction
                for rising, count in (
                    (True, activity.rises[pin.net]),
                    (False, activity.falls[pin.net]),
                ):
                    up = rising != (pin.role == "REN")
                    if not count:
                        continue
                    if (pin.role, up) not in energies:  # scalars in all known macros
                        energies[pin.role, up] = made.macro.pin_pj(
                            pin.role, rising=up, enabled_share=share, slew_ns=slew * scale
                        )
                    energy = int(count) * pin.copies * energies[pin.role, up]
                    self.add("sram_pins_pj", energy, unit)
