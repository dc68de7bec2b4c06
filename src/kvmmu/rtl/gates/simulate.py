"""Cycle-accurate zero-delay simulation of a mapped netlist, counting what energy needs.

A cycle: the clock edge moves flip-flops and memory outputs and the inputs change, all at once;
then everything settles; outputs are what is settled. Each net changes at most once a cycle, so
glitches are not seen. Flip-flops start at 0, or at random levels where a seed is given (a block
whose reset works gives the same answers from both); memories start at 0.

A memory's rdata holds the word in the cycle after a read. In other cycles it is all ones
(idle_rdata "ones": a block that looks at it then goes wrong), or the last word ("hold": what an
SRAM macro does, and what energy is counted with). An address past the depth reads all ones and
writes nothing; such accesses are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.compiled import compile_netlist
from kvmmu.rtl.gates.events import SHARE, CellEvents
from kvmmu.rtl.gates.kernel import run_rows
from kvmmu.rtl.gates.netlist import Netlist

__all__ = ["MOST_CYCLES", "Activity", "GateSimulation"]

_run_rows = cast("Callable[..., None]", run_rows)  # its many arrays travel as one tuple

MOST_CYCLES = (2**31 - 1) // SHARE
"""Cycles between two clear_activity(): tallies of sixtieths have 32 bits."""

_Ints = NDArray[np.int64]
_Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Activity:
    """Hold what was counted over `cycles`.

    rises, falls, high_cycles [nets]; tally holds, from row_base[node], the cycles that a node was
    settled in each row, and from slot_base[node] its slots' sixtieths of events; reads, writes,
    out_of_range [memories].
    """

    cycles: int
    rises: _Ints
    falls: _Ints
    high_cycles: _Ints
    tally: _Ints
    row_base: _Ints
    slot_base: _Ints
    events: tuple[CellEvents, ...]
    reads: _Ints
    writes: _Ints
    out_of_range: _Ints


class GateSimulation:
    """Simulate one netlist. idle_rdata and seed: see the module's docstring."""

    def __init__(
        self,
        netlist: Netlist,
        *,
        idle_rdata: Literal["ones", "hold"] = "ones",
        seed: int | None = None,
    ) -> None:
        if idle_rdata not in ("ones", "hold"):
            raise ValueError(f"idle_rdata must be 'ones' or 'hold', got {idle_rdata!r}")
        self.netlist = netlist
        self.idle_rdata = idle_rdata
        self.input_ports = tuple(name for name in netlist.inputs if name != netlist.clock)
        self.output_ports = tuple(netlist.outputs)
        self.input_nets = _join(netlist.inputs[n] for n in self.input_ports)
        self.output_nets = _join(netlist.outputs.values())
        self.compiled = compile_netlist(netlist)
        self.cycle = 0
        self._initialise(seed)

    def _initialise(self, seed: int | None) -> None:
        """Settle everything from the first levels, counting nothing."""
        c, netlist = self.compiled, self.netlist
        if self.idle_rdata == "ones":
            for memory, record in zip(netlist.memories, c.memories):
                c.nets["level"][memory.rdata] = 1
                for w in range(int(record["words"])):
                    ones = (1 << min(64, memory.width - 64 * w)) - 1
                    c.out[record["out"] + w] = c.out_next[record["out"] + w] = ones
        states = np.zeros(netlist.num_nodes, np.int64)
        if seed is not None:
            states = np.random.default_rng(seed).integers(0, 2, netlist.num_nodes)
        level = c.nets["level"].tolist()
        gates, nodes = range(netlist.num_gates), range(netlist.num_nodes)
        rows = [0] * netlist.num_nodes
        for node in nodes[netlist.num_gates :]:
            bits = c.events[netlist.node_type[node]].bits
            rows[node] = int(states[node]) << bits - 1
            self._set_outputs(node, rows[node], level)
        for node in [*gates, *nodes[netlist.num_gates :]]:
            for place, net in enumerate(netlist.inputs_of(node).tolist()):
                rows[node] |= level[net] << place
            if node in gates:
                self._set_outputs(node, rows[node], level)
        c.nets["level"] = level
        c.nodes["row"] = c.nodes["seen"] = rows
        c.check[netlist.num_gates : netlist.num_nodes] = 1

    def _set_outputs(self, node: int, row: int, level: list[int]) -> None:
        mask = int(self.compiled.events[self.netlist.node_type[node]].out_mask[row])
        for place, net in enumerate(self.netlist.outputs_of(node).tolist()):
            if net >= 0:
                level[net] = mask >> place & 1

    def levels(self, inputs: Mapping[str, int]) -> _Bytes:
        """Return one row for run(): `inputs` over the present levels. Raises ValueError."""
        row = self.compiled.nets["level"].astype(np.uint8)
        for name, number in inputs.items():
            if name not in self.input_ports:
                raise ValueError(f"input must be one of {self.input_ports}, got {name!r}")
            nets = self.netlist.inputs[name]
            if not 0 <= number < 1 << len(nets):
                raise ValueError(f"{name} must fit {len(nets)} bits, got {number!r}")
            row[nets] = [number >> i & 1 for i in range(len(nets))]
        return np.asarray(row[self.input_nets])

    def step(self, inputs: Mapping[str, int]) -> dict[str, int]:
        """Run one cycle; inputs and outputs are unsigned integers by port.

        Inputs that are not named keep their level.
        """
        row = iter(self.run(self.levels(inputs)[None])[0].tolist())
        return {
            name: sum(next(row) << i for i in range(len(nets)))
            for name, nets in self.netlist.outputs.items()
        }

    def run(self, rows: _Bytes) -> _Bytes:
        """Run a cycle a row of levels [cycles, input bits] -> [cycles, output bits].

        Bits stand in the order of `input_ports` and `output_ports`, bit 0 of a port first.
        Raises ValueError if the shape or a level is wrong.
        """
        if rows.ndim != 2 or rows.shape[1] != len(self.input_nets) or rows.dtype != np.uint8:
            raise ValueError(
                f"rows must be uint8 [cycles, {len(self.input_nets)}], "
                f"got {rows.dtype} {list(rows.shape)}"
            )
        if rows.size and rows.max() > 1:
            raise ValueError(f"levels must be 0 or 1, got {rows.max()}")
        self.reserve(len(rows))
        result = np.zeros((len(rows), len(self.output_nets)), np.uint8)
        _run_rows(
            *self.compiled.core(),
            self.netlist.num_gates,
            int(self.idle_rdata == "hold"),
            self.cycle,
            self.input_nets,
            np.ascontiguousarray(rows),
            self.output_nets,
            result,
        )
        self.cycle += len(rows)
        return result

    def reserve(self, cycles: int) -> None:
        """Raise ValueError if so many more cycles could overflow the tallies."""
        if self.cycle + cycles > MOST_CYCLES:
            raise ValueError(
                f"cycles must be at most {MOST_CYCLES} between two clear_activity(), "
                f"got {self.cycle + cycles}"
            )

    def clear_activity(self) -> None:
        """Begin counting anew, e.g. after reset; levels and memories stay."""
        c = self.compiled
        self.cycle = 0
        c.tally[:] = 0
        for array, names in (
            (c.nets, ("rises", "falls", "high", "since")),
            (c.nodes, ("since",)),
            (c.memories, ("reads", "writes", "outside")),
        ):
            for name in names:
                array[name] = 0

    def activity(self) -> Activity:
        """Return what was counted since the start or the last clear_activity()."""
        c, now = self.compiled, self.cycle
        nodes, nets = c.nodes, c.nets
        tally = c.tally.astype(np.int64)
        tally[nodes["tally"] + nodes["seen"]] += now - nodes["since"]
        row_base = nodes["tally"].astype(np.int64)
        high = nets["high"] + np.where(nets["level"] == 1, now - nets["since"], 0)
        return Activity(
            cycles=now,
            rises=nets["rises"].astype(np.int64),
            falls=nets["falls"].astype(np.int64),
            high_cycles=high.astype(np.int64),
            tally=tally,
            row_base=row_base,
            slot_base=row_base + c.kinds["slot"][nodes["kind"]],
            events=c.events,
            reads=c.memories["reads"].copy(),
            writes=c.memories["writes"].copy(),
            out_of_range=c.memories["outside"].copy(),
        )


def _join(arrays: Iterable[_Ints]) -> _Ints:
    return np.concatenate([np.zeros(0, np.int64), *arrays])
