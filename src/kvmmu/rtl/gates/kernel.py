"""The numba loops: one zero-delay settle a cycle, only over cells whose inputs changed.

Arrays are passed one by one: numba pays for every array of a tuple at every call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.jit import kernel
from kvmmu.rtl.gates.memory_kernel import end_cycle, show_memories
from kvmmu.rtl.gates.net_kernel import drive, toggle

__all__ = ["begin_cycle", "run_rows", "settle"]

_Ints = NDArray[np.int32]
_Words = NDArray[np.uint64]
_Bytes = NDArray[np.uint8]
_Records = Any  # structured arrays; numpy's stubs do not know their fields


@kernel
def _change_outputs(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    dirty: _Bytes,
    now: int,
    out_net: _Ints,
    place: int,
    change: int,
) -> None:
    while change:
        if change & 1 and out_net[place] >= 0:
            toggle(nets, nodes, fan, dirty, now, out_net[place])
        change >>= 1
        place += 1


@kernel
def settle(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    kinds: _Records,
    rows: _Records,
    pair_ptr: _Ints,
    pairs: _Ints,
    out_net: _Ints,
    dirty: _Bytes,
    words: _Words,
    check: _Bytes,
    tally: _Ints,
    num_gates: int,
    now: int,
) -> None:
    """Evaluate dirty nodes in topological order; a node dirties only later ones."""
    for word in range(len(words)):
        if words[word] == 0:
            continue
        for index in range(8 * word, 8 * word + 8):
            if not dirty[index]:
                continue
            dirty[index] = 0
            node = nodes[index]
            old, new = node.seen, node.row
            if old == new:
                continue
            kind = kinds[node.kind]
            tally[node.tally + old] += now - node.since
            node.since = now
            node.seen = new
            pair = kind.pair + (old << kind.bits) + new
            for k in range(pair_ptr[pair], pair_ptr[pair + 1]):
                tally[node.tally + kind.slot + pairs[k, 0]] += pairs[k, 1]
            if index >= num_gates:
                check[index] = 1
                continue
            change = rows[kind.row + old].outputs ^ rows[kind.row + new].outputs
            _change_outputs(nets, nodes, fan, dirty, now, out_net, node.out, change)


@kernel
def _clock_flip_flops(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    kinds: _Records,
    rows: _Records,
    edges: _Ints,
    out_net: _Ints,
    dirty: _Bytes,
    check: _Bytes,
    words: _Words,
    tally: _Ints,
    now: int,
) -> None:
    """Clock from the rows settled last (`seen`), not from rows that change meanwhile."""
    for word in range(len(words)):
        if words[word] == 0:
            continue
        for index in range(8 * word, 8 * word + 8):
            if not check[index]:
                continue
            check[index] = 0
            node = nodes[index]
            old = node.seen
            kind = kinds[node.kind]
            state = 1 << (kind.bits - 1)
            row = rows[kind.row + old]
            if (old & state != 0) == (row.next_state != 0):
                continue
            tally[node.tally + old] += now - node.since
            node.since = now
            for k in range(row.edge, row.edge_end):
                tally[node.tally + kind.slot + edges[k, 0]] += edges[k, 1]
            node.seen = old ^ state
            node.row ^= state
            check[index] = 1  # it may toggle again without a new input
            change = row.outputs ^ rows[kind.row + (old ^ state)].outputs
            _change_outputs(nets, nodes, fan, dirty, now, out_net, node.out, change)


@kernel
def begin_cycle(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    kinds: _Records,
    rows: _Records,
    edges: _Ints,
    out_net: _Ints,
    dirty: _Bytes,
    check: _Bytes,
    check_words: _Words,
    tally: _Ints,
    memories: _Records,
    pins: _Ints,
    out: _Words,
    out_next: _Words,
    now: int,
) -> None:
    """Apply the clock edge."""
    _clock_flip_flops(
        nets, nodes, fan, kinds, rows, edges, out_net, dirty, check, check_words, tally, now
    )
    show_memories(nets, nodes, fan, dirty, memories, pins, out, out_next, now)


@kernel
def run_rows(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    kinds: _Records,
    rows: _Records,
    pair_ptr: _Ints,
    pairs: _Ints,
    edges: _Ints,
    out_net: _Ints,
    dirty: _Bytes,
    dirty_words: _Words,
    check: _Bytes,
    check_words: _Words,
    tally: _Ints,
    memories: _Records,
    pins: _Ints,
    store: _Words,
    out: _Words,
    out_next: _Words,
    num_gates: int,
    hold: int,
    now: int,
    in_nets: _Ints,
    levels: _Bytes,
    out_nets: _Ints,
    result: _Bytes,
) -> None:
    """Run a cycle for each row of levels [cycles, inputs]; fill result [cycles, outputs]."""
    for cycle in range(len(levels)):
        begin_cycle(
            nets, nodes, fan, kinds, rows, edges, out_net, dirty, check, check_words, tally,
            memories, pins, out, out_next, now,
        )  # fmt: skip
        for i in range(len(in_nets)):
            drive(nets, nodes, fan, dirty, now, in_nets[i], levels[cycle, i])
        settle(
            nets, nodes, fan, kinds, rows, pair_ptr, pairs, out_net, dirty, dirty_words, check,
            tally, num_gates, now,
        )  # fmt: skip
        for i in range(len(out_nets)):
            result[cycle, i] = nets[out_nets[i]].level
        end_cycle(nets, memories, pins, store, out_next, hold)
        now += 1
