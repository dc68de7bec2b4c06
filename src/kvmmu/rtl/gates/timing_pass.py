"""One pass of static timing: launch, propagate level by level, end; see timing.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.liberty import Cell, Library, TimingArc
from kvmmu.rtl.gates.loads import memory_pins
from kvmmu.rtl.gates.macros import MacroComposition
from kvmmu.rtl.gates.netlist import Memory, Netlist, signal_inputs

__all__ = ["Endpoint", "PathPoint", "TimingPass", "input_edges"]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
RISE, FALL = 0, 1
_DELAYS = (("cell_rise", "rise_transition"), ("cell_fall", "fall_transition"))
_CONSTRAINTS = ("rise_constraint", "fall_constraint")
_COMBINATIONAL = frozenset({"combinational", "combinational_rise", "combinational_fall"})


@dataclass(frozen=True)
class PathPoint:
    """Say when an edge reaches a pin: the driver's instance, cell and output pin."""

    instance: str
    cell: str
    pin: str
    net: str
    edge: str
    arrival_ns: float


@dataclass(frozen=True)
class Endpoint:
    """Say when an edge reaches the end of a path and how long before the clock it must."""

    instance: str
    cell: str
    pin: str
    net: int
    edge: int
    arrival_ns: float
    setup_ns: float

    @property
    def period_ns(self) -> float:
        """The least period that this path allows."""
        return self.arrival_ns + self.setup_ns


def input_edges(sense: str, out_edge: int) -> tuple[int, ...]:
    """Return the edges of an input that make this edge of the output."""
    if sense == "positive_unate":
        return (out_edge,)
    return (1 - out_edge,) if sense == "negative_unate" else (RISE, FALL)


class TimingPass:
    """Hold the arrays of one pass; where_from [2, nets] is the input net * 2 + edge, or -1."""

    def __init__(
        self,
        netlist: Netlist,
        library: Library,
        loads: _Floats,
        compositions: tuple[MacroComposition, ...],
        input_slew_ns: float,
        clock_slew_ns: float,
    ) -> None:
        self.netlist = netlist
        self.library = library
        self.loads = loads
        self.compositions = compositions
        self.clock_slew = clock_slew_ns
        self.arrival: _Floats = np.full((2, netlist.num_nets), -np.inf)
        self.slew: _Floats = np.full((2, netlist.num_nets), input_slew_ns)
        self.where_from: _Ints = np.full((2, netlist.num_nets), -1)

    def launch(self) -> None:
        """Set arrivals at inputs, flip-flops and memories."""
        for name, nets in self.netlist.inputs.items():
            if name != self.netlist.clock:
                self.arrival[:, nets] = 0.0
        first, last = self.netlist.num_gates, self.netlist.num_nodes
        for kind, cell in enumerate(self.netlist.types):
            if cell.flip_flop is None:
                continue
            nodes = np.arange(first, last)[self.netlist.node_type[first:last] == kind]
            for place, pin in enumerate(cell.outputs):
                nets = self.netlist.out_net[self.netlist.out_ptr[nodes] + place]
                arcs = _arcs(cell, pin, cell.flip_flop.clocked_on.text, ("rising_edge",))
                self._clock_to_q(arcs, nets[nets >= 0], f"{cell.name}.{pin}", scale=1.0)
        for memory, composition in zip(self.netlist.memories, self.compositions):
            macro = composition.macro
            arcs = _arcs(macro.cell, macro.prefix + "DOUT", macro.prefix + "CLK", ("rising_edge",))
            self._clock_to_q(arcs, memory.rdata, macro.cell.name, scale=self._scale(composition))

    def _scale(self, composition: MacroComposition) -> float:
        """Return what a slew of the library is in the macro's tables."""
        return composition.macro.cell.slew_fraction / self.library.slew_fraction

    def _clock_to_q(self, arcs: list[TimingArc], nets: _Ints, where: str, *, scale: float) -> None:
        if not arcs:
            raise SpecError(f"{where} must have a rising_edge arc of its clock")
        slew = np.full(len(nets), self.clock_slew * scale)
        for edge, (delay, transition) in enumerate(_DELAYS):
            for arc in arcs:
                if delay not in arc.tables:
                    continue
                point = {"slew": slew, "load": self.loads[nets]}
                self.arrival[edge, nets] = np.maximum(
                    self.arrival[edge, nets], arc.tables[delay].at(**point)
                )
                self.slew[edge, nets] = arc.tables[transition].at(**point) / scale

    def propagate(self) -> None:
        """Walk the gates level by level, all gates of one type at once."""
        netlist = self.netlist
        level = np.zeros(netlist.num_nets, np.int64)
        levels = np.zeros(netlist.num_gates, np.int64)
        for node in range(netlist.num_gates):
            nets = netlist.inputs_of(node)
            levels[node] = 1 + (level[nets].max() if len(nets) else 0)
            level[netlist.outputs_of(node)] = levels[node]
        for depth in range(1, int(levels.max(initial=0)) + 1):
            nodes = np.flatnonzero(levels == depth)
            for kind in np.unique(netlist.node_type[nodes]):
                self._gates(netlist.types[kind], nodes[netlist.node_type[nodes] == kind])

    def _gates(self, cell: Cell, nodes: _Ints) -> None:
        netlist = self.netlist
        for place, pin in enumerate(cell.outputs):
            outs = netlist.out_net[netlist.out_ptr[nodes] + place]
            used = outs >= 0
            outs = outs[used]
            fresh = np.full((2, len(outs)), -np.inf)
            for i, name in enumerate(cell.inputs):
                ins = netlist.in_net[netlist.in_ptr[nodes[used]] + i]
                arcs = _arcs(cell, pin, name, tuple(_COMBINATIONAL))
                if not arcs:
                    raise SpecError(f"{cell.name}.{pin} must have a timing arc of {name}")
                for arc in arcs:
                    for edge in (RISE, FALL):
                        for cause in input_edges(arc.sense, edge):
                            self._arc(arc, ins, outs, cause, edge, fresh)

    def _arc(
        self, arc: TimingArc, ins: _Ints, outs: _Ints, cause: int, edge: int, slews: _Floats
    ) -> None:
        """Let one arc of a group of gates push arrivals and slews."""
        delay, transition = _DELAYS[edge]
        if delay not in arc.tables:
            return
        point = {"slew": self.slew[cause, ins], "load": self.loads[outs]}
        start = self.arrival[cause, ins]
        arrival = start + arc.tables[delay].at(**point)
        later = arrival > self.arrival[edge, outs]
        self.arrival[edge, outs[later]] = arrival[later]
        self.where_from[edge, outs[later]] = ins[later] * 2 + cause
        moves = np.isfinite(start)
        slew = arc.tables[transition].at(**point)
        slews[edge] = np.where(moves, np.maximum(slews[edge], slew), slews[edge])
        found = np.isfinite(slews[edge])
        self.slew[edge, outs[found]] = slews[edge][found]

    def endpoints(self) -> Iterator[Endpoint]:
        """Yield the later edge of every path's end."""
        netlist = self.netlist
        for node in range(netlist.num_gates, netlist.num_nodes):
            cell = netlist.cell_of(node)
            assert cell.flip_flop is not None
            clock = cell.flip_flop.clocked_on.text
            for pin, net in zip(signal_inputs(cell), netlist.inputs_of(node)):
                arcs = _arcs(cell, pin, clock, ("setup_rising",))
                yield from self._end(netlist.node_names[node], cell, pin, int(net), arcs, 1.0)
        for gate in netlist.clock_gates:
            gate_pins = gate.cell.clock_gate
            assert gate_pins is not None
            arcs = _arcs(gate.cell, gate_pins.enable, gate_pins.clock, ("setup_rising",))
            yield from self._end(gate.name, gate.cell, gate_pins.enable, gate.enable, arcs, 1.0)
        for memory, composition in zip(netlist.memories, self.compositions):
            yield from self._memory_ends(memory, composition)
        for name, nets in netlist.outputs.items():
            for bit, net in enumerate(nets):
                edge = int(np.argmax(self.arrival[:, net]))
                arrival = float(self.arrival[edge, net])
                if np.isfinite(arrival):
                    yield Endpoint(f"{name}[{bit}]", "output", "", int(net), edge, arrival, 0.0)

    def _memory_ends(self, memory: Memory, composition: MacroComposition) -> Iterator[Endpoint]:
        macro = composition.macro
        clock = macro.prefix + "CLK"
        seen: set[tuple[int, str]] = set()
        for pin in memory_pins(memory, composition):
            if pin.role == "DOUT" or (pin.net, pin.role) in seen:
                continue
            seen.add((pin.net, pin.role))
            arcs = _arcs(macro.cell, macro.prefix + pin.role, clock, ("setup_rising",))
            name = f"{pin.role}[{pin.bit}]"
            scale = self._scale(composition)
            yield from self._end(memory.name, macro.cell, name, pin.net, arcs, scale)

    def _end(
        self, instance: str, cell: Cell, pin: str, net: int, arcs: list[TimingArc], scale: float
    ) -> Iterator[Endpoint]:
        ends = []
        for arc in arcs:
            for edge, name in enumerate(_CONSTRAINTS):
                arrival = float(self.arrival[edge, net])
                if name in arc.tables and np.isfinite(arrival):
                    setup = arc.tables[name].at(
                        constrained_slew=self.slew[edge, net] * scale,
                        related_slew=self.clock_slew * scale,
                    )
                    ends.append(
                        Endpoint(instance, cell.name, pin, net, edge, arrival, float(setup))
                    )
        if ends:
            yield max(ends, key=lambda end: end.period_ns)

    def trace(self, end: Endpoint) -> list[PathPoint]:
        """Walk back from an endpoint; the launching pin comes first."""
        drivers = self._drivers()
        edges = ("rise", "fall")
        points = []
        net, edge = end.net, end.edge
        while True:
            instance, cell, pin = drivers.get(net, ("", "input", ""))
            name = self.netlist.net_names[net]
            arrival = float(self.arrival[edge, net])
            points.append(PathPoint(instance, cell, pin, name, edges[edge], arrival))
            origin = int(self.where_from[edge, net])
            if origin < 0:
                break
            net, edge = origin // 2, origin % 2
        name = self.netlist.net_names[end.net]
        last = PathPoint(
            end.instance, end.cell, end.pin, name, edges[end.edge], end.arrival_ns + end.setup_ns
        )
        return points[::-1] + [last]

    def _drivers(self) -> dict[int, tuple[str, str, str]]:
        netlist = self.netlist
        found = {}
        for node in range(netlist.num_nodes):
            cell = netlist.cell_of(node)
            for pin, net in zip(cell.outputs, netlist.outputs_of(node)):
                found[int(net)] = (netlist.node_names[node], cell.name, pin)
        for memory, composition in zip(netlist.memories, self.compositions):
            for bit, net in enumerate(memory.rdata):
                found[int(net)] = (memory.name, composition.macro.cell.name, f"DOUT[{bit}]")
        return found


def _arcs(cell: Cell, pin: str, related: str, kinds: tuple[str, ...]) -> list[TimingArc]:
    return [a for a in cell.timing if a.pin == pin and a.related == related and a.kind in kinds]
