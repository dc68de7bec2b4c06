"""A mapped, flattened netlist (yosys `write_json`) as flat arrays in topological order.

One clock domain: every flip-flop and memory is clocked by one top-level input. Memory banks stay
black boxes named kvmmu_sram_{depth}x{width}m{granule} with the ports clk, en, we, addr, wdata,
wmask, rdata; granule is the bits that one mask bit writes.

A constant 'x' or 'z' is refused: run `setundef -zero` before `write_json`, so that synthesis and
simulation agree on what an undefined bit is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.liberty import Cell

__all__ = ["ONE", "ZERO", "Memory", "Netlist", "signal_inputs"]

_Ints = NDArray[np.int64]
ZERO, ONE = 0, 1
"""The nets of the two constants."""


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

    @property
    def num_nodes(self) -> int:
        """Combinational cells and flip-flops."""
        return len(self.node_type)

    @property
    def area_um2(self) -> float:
        """Area of the cells without memories."""
        return float(sum(self.types[t].area_um2 for t in self.node_type))

    def cell_of(self, node: int) -> Cell:
        """Return the cell of a node."""
        return self.types[int(self.node_type[node])]

    def inputs_of(self, node: int) -> _Ints:
        """Return the nets at a node's inputs."""
        return self.in_net[self.in_ptr[node] : self.in_ptr[node + 1]]

    def outputs_of(self, node: int) -> _Ints:
        """Return the nets at a node's outputs, -1 where open."""
        return self.out_net[self.out_ptr[node] : self.out_ptr[node + 1]]


def signal_inputs(cell: Cell) -> tuple[str, ...]:
    """Return the inputs that a node has: all but a flip-flop's clock."""
    if cell.flip_flop is None:
        return cell.inputs
    return tuple(name for name in cell.inputs if name != cell.flip_flop.clocked_on.text)
