"""A netlist and its cells' event tables as the arrays of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.events import CellEvents, Entry, compile_events
from kvmmu.rtl.gates.memory_kernel import MEMORY
from kvmmu.rtl.gates.net_kernel import KIND, NET, NODE, ROW
from kvmmu.rtl.gates.netlist import ONE, ZERO, Netlist, signal_inputs

__all__ = ["Compiled", "compile_netlist", "constant_nets"]

_Ints = NDArray[np.int32]
_Words = NDArray[np.uint64]
_Bytes = NDArray[np.uint8]
_Records = NDArray[Any]


@dataclass
class Compiled:
    """Hold the kernel's arrays, which it changes; see KIND, NET, NODE, ROW and MEMORY."""

    events: tuple[CellEvents, ...]
    nets: _Records
    nodes: _Records
    fan: _Ints
    kinds: _Records
    rows: _Records
    pair_ptr: _Ints
    pairs: _Ints
    edges: _Ints
    out_net: _Ints
    dirty: _Bytes
    check: _Bytes
    tally: _Ints
    memories: _Records
    pins: _Ints
    store: _Words
    out: _Words
    out_next: _Words

    def core(self) -> tuple[Any, ...]:
        """Return the arrays in the order in which the kernel's loops take them."""
        words = (self.dirty.view(np.uint64), self.check.view(np.uint64))
        return (
            *(self.nets, self.nodes, self.fan, self.kinds, self.rows, self.pair_ptr, self.pairs),
            *(self.edges, self.out_net, self.dirty, words[0], self.check, words[1], self.tally),
            *(self.memories, self.pins, self.store, self.out, self.out_next),
        )


def constant_nets(netlist: Netlist) -> dict[int, int]:
    """Return nets that never change and their level: the constants and what tie cells drive."""
    levels = {ZERO: 0, ONE: 1}
    for node in range(netlist.num_gates):
        cell = netlist.cell_of(node)
        if not cell.inputs:
            for name, net in zip(cell.outputs, netlist.outputs_of(node)):
                function = cell.pins[name].function
                assert function is not None  # classify() refuses such a cell
                levels[int(net)] = int(function.table(())[0])
    return levels


def compile_netlist(netlist: Netlist) -> Compiled:
    """Flatten a netlist, all levels 0 and nothing settled.

    Raises SpecError if an asynchronous clear or preset is not tied inactive.
    """
    _refuse_asynchronous(netlist)
    events = tuple(compile_events(cell) for cell in netlist.types)
    pair_ptr, pairs = _flatten(
        [
            e.settle.get((old, new), [])
            for e in events
            for old in range(1 << e.bits)
            for new in range(1 << e.bits)
        ]
    )
    rows, edges = _rows(events)
    kinds = _kinds(events)
    nodes, tallies = _nodes(netlist, events)
    nets, fan = _nets(netlist)
    memories, pins = _memories(netlist)
    padded = -(-netlist.num_nodes // 8) * 8
    out = np.zeros(int(memories["words"].sum()), np.uint64)
    return Compiled(
        events=events,
        nets=nets,
        nodes=nodes,
        fan=fan,
        kinds=kinds,
        rows=rows,
        pair_ptr=pair_ptr,
        pairs=pairs,
        edges=edges,
        out_net=netlist.out_net.astype(np.int32),
        dirty=np.zeros(padded, np.uint8),
        check=np.zeros(padded, np.uint8),
        tally=np.zeros(tallies, np.int32),
        memories=memories,
        pins=pins,
        store=np.zeros(int((memories["depth"] * memories["words"]).sum()), np.uint64),
        out=out,
        out_next=out.copy(),
    )


def _refuse_asynchronous(netlist: Netlist) -> None:
    constants = constant_nets(netlist)
    for node in range(netlist.num_gates, netlist.num_nodes):
        cell = netlist.cell_of(node)
        assert cell.flip_flop is not None
        nets = dict(zip(signal_inputs(cell), (int(n) for n in netlist.inputs_of(node))))
        for line in (cell.flip_flop.clear, cell.flip_flop.preset):
            if line is None:
                continue
            levels = [constants.get(nets[name]) for name in line.names]
            tied = {name: np.array([level == 1]) for name, level in zip(line.names, levels)}
            if None in levels or line.over(tied, 1)[0]:
                raise SpecError(
                    f"clear and preset of {netlist.node_names[node]!r} must be tied inactive, "
                    f"got {[netlist.net_names[nets[n]] for n in line.names]}; reset synchronously"
                )


def _starts(sizes: Sequence[int] | NDArray[np.int64]) -> _Ints:
    """Return where parts of these sizes begin, and where the last one ends."""
    ends = np.cumsum(np.asarray(sizes, np.int64))
    if len(ends) and ends[-1] >= 1 << 31:
        raise SpecError(f"netlist must fit 32-bit places, got {ends[-1]}")
    return np.concatenate([np.zeros(1, np.int32), ends.astype(np.int32)])


def _flatten(lists: Sequence[list[Entry]]) -> tuple[_Ints, _Ints]:
    entries = [entry for one in lists for entry in one]
    return _starts([len(one) for one in lists]), np.array(entries, np.int32).reshape(-1, 2)


def _rows(events: Sequence[CellEvents]) -> tuple[_Records, _Ints]:
    starts, edges = _flatten([e.edge.get(row, []) for e in events for row in range(1 << e.bits)])
    rows = np.zeros(len(starts) - 1, ROW)
    if len(rows):
        rows["outputs"] = np.concatenate([e.out_mask for e in events])
        rows["next_state"] = np.concatenate([e.next_state for e in events])
    rows["edge"], rows["edge_end"] = starts[:-1], starts[1:]
    return rows, edges


def _kinds(events: Sequence[CellEvents]) -> _Records:
    kinds = np.zeros(len(events), KIND)
    kinds["bits"] = [e.bits for e in events]
    kinds["row"] = _starts([1 << e.bits for e in events])[:-1]
    kinds["pair"] = _starts([1 << 2 * e.bits for e in events])[:-1]
    kinds["slot"] = [1 << e.bits for e in events]
    return kinds


def _nodes(netlist: Netlist, events: Sequence[CellEvents]) -> tuple[_Records, int]:
    """Return the nodes and how many tallies they have."""
    sizes = np.array([(1 << e.bits) + e.num_slots for e in events], np.int64)
    starts = _starts(sizes[netlist.node_type])
    nodes = np.zeros(netlist.num_nodes, NODE)
    nodes["kind"] = netlist.node_type
    nodes["out"] = netlist.out_ptr[:-1]
    nodes["tally"] = starts[:-1]
    return nodes, int(starts[-1])


def _nets(netlist: Netlist) -> tuple[_Records, _Ints]:
    """Return the nets, and for each reader of a net its node and the row's bit that flips."""
    node = np.repeat(np.arange(netlist.num_nodes), np.diff(netlist.in_ptr))
    place = np.arange(len(netlist.in_net)) - netlist.in_ptr[node]
    order = np.argsort(netlist.in_net, kind="stable")
    starts = _starts(np.bincount(netlist.in_net, minlength=netlist.num_nets))
    nets = np.zeros(netlist.num_nets, NET)
    nets["fan"], nets["fan_end"] = starts[:-1], starts[1:]
    nets["level"][ONE] = 1
    return nets, np.stack([node, np.int64(1) << place], axis=1)[order].astype(np.int32)


def _memories(netlist: Netlist) -> tuple[_Records, _Ints]:
    records = np.zeros(len(netlist.memories), MEMORY)
    pins: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    place = out = base = 0
    for record, memory in zip(records, netlist.memories):
        words = -(-memory.width // 64)
        for name in ("depth", "width", "granule", "en", "we"):
            record[name] = getattr(memory, name)
        for name, nets in (
            ("addr", memory.addr),
            ("wdata", memory.wdata),
            ("rdata", memory.rdata),
            ("mask", memory.wmask),
        ):
            record[name] = place
            place += len(nets)
            pins.append(nets)
        record["addr_bits"], record["mask_bits"] = len(memory.addr), len(memory.wmask)
        record["words"], record["out"], record["base"] = words, out, base
        out += words
        base += memory.depth * words
    return records, np.concatenate(pins).astype(np.int32)
