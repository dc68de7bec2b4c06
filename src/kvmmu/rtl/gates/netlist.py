"""A mapped, flattened netlist (yosys `write_json`) as flat arrays in topological order.

One clock domain: every flip-flop and memory is clocked by one top-level input, flip-flops also by
what clock gates make of it. A gated flip-flop has one input more, its gate's enable: it keeps its
state, and its clock pin rests, in a cycle in which that is 0. Memory banks stay
black boxes named kvmmu_sram_{depth}x{width}m{granule} with the ports clk, en, we, addr, wdata,
wmask, rdata; granule is the bits that one mask bit writes.

A constant 'x' or 'z' is refused: run `setundef -zero` before `write_json`, so that synthesis and
simulation agree on what an undefined bit is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.boolean import Expression, parse_expression
from kvmmu.rtl.gates.liberty import Cell, Pin

__all__ = ["ENABLE", "ONE", "ZERO", "ClockGate", "Memory", "Netlist", "gated", "signal_inputs"]

_Ints = NDArray[np.int64]
ZERO, ONE = 0, 1
"""The nets of the two constants."""
ENABLE = "clock_enable__"
"""The input that a gated flip-flop has besides its cell's pins."""


@dataclass(frozen=True)
class Memory:
    """Hold one memory bank and the nets at its ports, bit 0 first."""

    name: str
    depth: int
    width: int
    granule: int
    en: int
    we: int
    addr: _Ints
    wdata: _Ints
    wmask: _Ints
    rdata: _Ints


@dataclass(frozen=True)
class ClockGate:
    """Hold one clock gating cell, the net that opens it, and the load of the pins it clocks."""

    name: str
    cell: Cell
    enable: int
    load_pf: float


@dataclass(frozen=True)
class Netlist:
    """Hold a netlist; nets are numbered from 0, net 0 is constant 0 and net 1 constant 1.

    Nodes [0, num_gates) are combinational in topological order, [num_gates, num_nodes) are
    flip-flops. in_net[in_ptr[n]:in_ptr[n + 1]] are a node's inputs in the cell's order, a
    flip-flop's without its clock; out_net likewise, -1 where an output is not connected.
    """

    top: str
    types: tuple[Cell, ...]
    node_type: _Ints
    node_names: tuple[str, ...]
    num_gates: int
    in_ptr: _Ints
    in_net: _Ints
    out_ptr: _Ints
    out_net: _Ints
    num_nets: int
    net_names: tuple[str, ...]
    inputs: Mapping[str, _Ints]
    outputs: Mapping[str, _Ints]
    clock: str
    memories: tuple[Memory, ...]
    clock_gates: tuple[ClockGate, ...] = ()

    @property
    def num_nodes(self) -> int:
        """Combinational cells and flip-flops."""
        return len(self.node_type)

    @property
    def area_um2(self) -> float:
        """Area of the cells without memories."""
        gates = sum(gate.cell.area_um2 for gate in self.clock_gates)
        return float(sum(self.types[t].area_um2 for t in self.node_type) + gates)

    def cell_of(self, node: int) -> Cell:
        """Return the cell of a node."""
        return self.types[int(self.node_type[node])]

    def inputs_of(self, node: int) -> _Ints:
        """Return the nets at a node's inputs."""
        return self.in_net[self.in_ptr[node] : self.in_ptr[node + 1]]

    def outputs_of(self, node: int) -> _Ints:
        """Return the nets at a node's outputs, -1 where open."""
        return self.out_net[self.out_ptr[node] : self.out_ptr[node + 1]]


def gated(cell: Cell) -> Cell:
    """Return a flip-flop as it is behind a clock gate: ENABLE holds its state and clock pin.

    Its name, area and every table stay those of the cell.
    """
    flip_flop = cell.flip_flop
    assert flip_flop is not None
    power = tuple(
        replace(arc, when=_enabled(arc.when)) if arc.pin == flip_flop.clocked_on.text else arc
        for arc in cell.power
    )
    pin = Pin(ENABLE, "input", 0.0, None, is_clock=False, is_three_state=False)
    held = f"{ENABLE}&({flip_flop.next_state.text})|!{ENABLE}&{flip_flop.state}"
    return replace(
        cell,
        pins={**cell.pins, ENABLE: pin},
        power=power,
        flip_flop=replace(flip_flop, next_state=parse_expression(held)),
    )


def _enabled(when: Expression | None) -> Expression:
    return parse_expression(ENABLE if when is None else f"({when.text})&{ENABLE}")


def signal_inputs(cell: Cell) -> tuple[str, ...]:
    """Return the inputs that a node has: all but a flip-flop's clock."""
    if cell.flip_flop is None:
        return cell.inputs
    return tuple(name for name in cell.inputs if name != cell.flip_flop.clocked_on.text)
