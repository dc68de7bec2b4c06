"""What loads each net: pin capacitances of its readers. Wires are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.macros import Macro, MacroComposition, compose
from kvmmu.rtl.gates.netlist import ENABLE, Memory, Netlist, signal_inputs

__all__ = ["MemoryPin", "compose_memories", "memory_pins", "net_loads"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MemoryPin:
    """Say that a net of a memory is `copies` pins of a macro: role, bit of a bus, capacitance."""

    net: int
    role: str
    bit: int
    copies: int
    capacitance_pf: float


def compose_memories(netlist: Netlist, macros: tuple[Macro, ...]) -> tuple[MacroComposition, ...]:
    """Compose each memory of a netlist. Raises SpecError if there are memories and no macro."""
    if netlist.memories and not macros:
        raise SpecError(f"macros must be given for {netlist.memories[0].name!r}, got none")
    sizes: dict[tuple[int, int], MacroComposition] = {}
    for memory in netlist.memories:
        size = (memory.depth, memory.width)
        sizes.setdefault(size, compose(*size, macros))
    return tuple(sizes[memory.depth, memory.width] for memory in netlist.memories)


def memory_pins(memory: Memory, composition: MacroComposition) -> Iterator[MemoryPin]:
    """Yield the macros' pins behind each net, outputs too.

    All rows see address, data, mask and write enable; REN is the inverse of WEN; MEN is one pin
    a column, that of the selected row.
    """
    macro, columns, rows = composition.macro, composition.columns, composition.rows

    def pin(net: int, role: str, bit: int, copies: int) -> MemoryPin:
        return MemoryPin(int(net), role, bit, copies, macro.pin(role, bit).capacitance_pf)

    yield pin(memory.en, "MEN", 0, columns)
    yield pin(memory.we, "WEN", 0, columns * rows)
    yield pin(memory.we, "REN", 0, columns * rows)
    wired = macro.words.bit_length() - 1
    for bit, net in enumerate(memory.addr):
        if bit < wired:  # higher bits select a row
            yield pin(net, "ADDR", bit, columns * rows)
    for bit in range(memory.width):
        yield pin(memory.wdata[bit], "DIN", bit % macro.bits, rows)
        yield pin(memory.wmask[bit // memory.granule], "BM", bit % macro.bits, rows)
        yield pin(memory.rdata[bit], "DOUT", bit % macro.bits, 1)


def net_loads(
    netlist: Netlist, compositions: tuple[MacroComposition, ...], *, output_load_pf: float
) -> tuple[_Floats, float]:
    """Return the load of each net [nets] and of the clock in pF."""
    loads = np.zeros(netlist.num_nets)
    clock_pf = 0.0
    for kind, cell in enumerate(netlist.types):
        nodes = np.flatnonzero(netlist.node_type == kind)
        for place, name in enumerate(signal_inputs(cell)):
            nets = netlist.in_net[netlist.in_ptr[nodes] + place]
            np.add.at(loads, nets, cell.pins[name].capacitance_pf)
        if cell.flip_flop is not None and ENABLE not in cell.pins:
            clock_pf += len(nodes) * cell.pins[cell.flip_flop.clocked_on.text].capacitance_pf
    for gate in netlist.clock_gates:
        assert gate.cell.clock_gate is not None
        clock_pf += gate.cell.pins[gate.cell.clock_gate.clock].capacitance_pf
        loads[gate.enable] += gate.cell.pins[gate.cell.clock_gate.enable].capacitance_pf
    for memory, composition in zip(netlist.memories, compositions):
        count = composition.columns * composition.rows
        clock_pf += count * composition.macro.pin("CLK").capacitance_pf
        for pin in memory_pins(memory, composition):
            if pin.role != "DOUT":
                loads[pin.net] += pin.copies * pin.capacitance_pf
    for nets in netlist.outputs.values():
        np.add.at(loads, nets, output_load_pf)
    return loads, clock_pf
