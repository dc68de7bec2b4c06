"""The numba loops: one zero-delay settle a cycle, only over cells whose inputs changed.

Arrays are passed one by one: numba pays for every array of a tuple at every call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "MEMORY",
    "NET",
    "NODE",
    "ROW",
    "begin_cycle",
    "drive",
    "end_cycle",
    "run_rows",
    "settle",
]

_Ints = NDArray[np.int64]
_Words = NDArray[np.uint64]
_Bytes = NDArray[np.uint8]
_Records = Any  # structured arrays of the types below; numpy's stubs do not know their fields


def _longs(*names: str) -> list[tuple[str, str]]:
    return [(name, "i8") for name in names]


NET = np.dtype(_longs("level", "rises", "falls", "high", "since", "fan", "fan_end"))
"""fan to fan_end: rows of `fan` [n, 2], a node that reads the net and the row bit it flips."""
NODE = np.dtype(
    _longs("bits", "out", "row_base", "time_base", "slot_base", "pair_base", "row", "seen", "since")
)
"""row follows the nets at once, seen is the row settled last, since the cycle it was settled."""
ROW = np.dtype(_longs("outputs", "next_state", "edge", "edge_end"))
"""One row of a cell type: levels of the outputs as bits, the state clocked in, edge entries."""
MEMORY = np.dtype(
    _longs("depth", "width", "granule", "words", "en", "we", "addr", "addr_bits", "wdata", "rdata")
    + _longs("mask", "mask_bits", "out", "base", "reads", "writes", "outside")
)
"""addr, wdata, rdata, mask are places in `pins`; out in the out words; base in the store."""


@njit(cache=True)
def _toggle(nets: _Records, nodes: _Records, fan: _Ints, dirty: _Bytes, now: int, net: int) -> None:
    one = nets[net]
    if one.level:
        one.level = 0
        one.falls += 1
        one.high += now - one.since
    else:
        one.level = 1
        one.rises += 1
        one.since = now
    for k in range(one.fan, one.fan_end):
        node = fan[k, 0]
        nodes[node].row ^= fan[k, 1]
        dirty[node] = 1


@njit(cache=True)
def drive(
    nets: _Records, nodes: _Records, fan: _Ints, dirty: _Bytes, now: int, net: int, level: int
) -> None:
    """Set a net that no cell drives."""
    if nets[net].level != level:
        _toggle(nets, nodes, fan, dirty, now, net)


@njit(cache=True)
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
            _toggle(nets, nodes, fan, dirty, now, out_net[place])
        change >>= 1
        place += 1


@njit(cache=True)
def settle(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    rows: _Records,
    pair_ptr: _Ints,
    pairs: _Ints,
    out_net: _Ints,
    dirty: _Bytes,
    words: _Words,
    check: _Bytes,
    time: _Ints,
    count: _Ints,
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
            time[node.time_base + old] += now - node.since
            node.since = now
            node.seen = new
            pair = node.pair_base + (old << node.bits) + new
            for k in range(pair_ptr[pair], pair_ptr[pair + 1]):
                count[node.slot_base + pairs[k, 0]] += pairs[k, 1]
            if index >= num_gates:
                check[index] = 1
                continue
            change = rows[node.row_base + old].outputs ^ rows[node.row_base + new].outputs
            _change_outputs(nets, nodes, fan, dirty, now, out_net, node.out, change)


@njit(cache=True)
def _clock_flip_flops(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    rows: _Records,
    edges: _Ints,
    out_net: _Ints,
    dirty: _Bytes,
    check: _Bytes,
    words: _Words,
    time: _Ints,
    count: _Ints,
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
            state = np.int64(1) << (node.bits - 1)
            row = rows[node.row_base + old]
            if (old & state != 0) == (row.next_state != 0):
                continue
            time[node.time_base + old] += now - node.since
            node.since = now
            for k in range(row.edge, row.edge_end):
                count[node.slot_base + edges[k, 0]] += edges[k, 1]
            node.seen = old ^ state
            node.row ^= state
            check[index] = 1  # it may toggle again without a new input
            change = row.outputs ^ rows[node.row_base + (old ^ state)].outputs
            _change_outputs(nets, nodes, fan, dirty, now, out_net, node.out, change)


@njit(cache=True)
def _show_memories(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    dirty: _Bytes,
    memories: _Records,
    pins: _Ints,
    out: _Words,
    out_next: _Words,
    now: int,
) -> None:
    """Put the words that memories read last cycle on their outputs."""
    for m in range(len(memories)):
        memory = memories[m]
        for w in range(memory.words):
            change = out[memory.out + w] ^ out_next[memory.out + w]
            if change == 0:
                continue
            out[memory.out + w] = out_next[memory.out + w]
            place = memory.rdata + 64 * w
            for b in range(min(64, memory.width - 64 * w)):
                if change >> np.uint64(b) & np.uint64(1):
                    _toggle(nets, nodes, fan, dirty, now, pins[place + b])


@njit(cache=True)
def begin_cycle(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    rows: _Records,
    edges: _Ints,
    out_net: _Ints,
    dirty: _Bytes,
    check: _Bytes,
    check_words: _Words,
    time: _Ints,
    count: _Ints,
    memories: _Records,
    pins: _Ints,
    out: _Words,
    out_next: _Words,
    now: int,
) -> None:
    """Apply the clock edge."""
    _clock_flip_flops(
        nets, nodes, fan, rows, edges, out_net, dirty, check, check_words, time, count, now
    )
    _show_memories(nets, nodes, fan, dirty, memories, pins, out, out_next, now)


@njit(cache=True)
def _write(nets: _Records, memory: _Records, pins: _Ints, store: _Words, place: int) -> None:
    for g in range(memory.mask_bits):
        if nets[pins[memory.mask + g]].level == 0:
            continue
        for b in range(g * memory.granule, (g + 1) * memory.granule):
            bit = np.uint64(1) << np.uint64(b & 63)
            word = place + (b >> 6)
            if nets[pins[memory.wdata + b]].level:
                store[word] |= bit
            else:
                store[word] &= ~bit


@njit(cache=True)
def end_cycle(
    nets: _Records,
    memories: _Records,
    pins: _Ints,
    store: _Words,
    out_next: _Words,
    hold: int,
) -> None:
    """Let the memories see the settled nets at the end of the cycle."""
    for m in range(len(memories)):
        memory = memories[m]
        enabled = nets[memory.en].level != 0
        reads = enabled and nets[memory.we].level == 0
        address = 0
        if enabled:
            for k in range(memory.addr_bits):
                address |= nets[pins[memory.addr + k]].level << k
        inside = address < memory.depth
        place = memory.base + address * memory.words
        memory.outside += not inside
        memory.reads += reads
        if enabled and not reads:
            memory.writes += 1
            if inside:
                _write(nets, memory, pins, store, place)
        if not reads and hold:
            continue
        for w in range(memory.words):
            left = memory.width - 64 * w
            word = ~np.uint64(0)
            if left < 64:
                word = (np.uint64(1) << np.uint64(left)) - np.uint64(1)
            if reads and inside:
                word = store[place + w]
            out_next[memory.out + w] = word


@njit(cache=True)
def run_rows(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    rows: _Records,
    pair_ptr: _Ints,
    pairs: _Ints,
    edges: _Ints,
    out_net: _Ints,
    dirty: _Bytes,
    dirty_words: _Words,
    check: _Bytes,
    check_words: _Words,
    time: _Ints,
    count: _Ints,
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
            nets, nodes, fan, rows, edges, out_net, dirty, check, check_words, time, count,
            memories, pins, out, out_next, now,
        )  # fmt: skip
        for i in range(len(in_nets)):
            drive(nets, nodes, fan, dirty, now, in_nets[i], levels[cycle, i])
        settle(
            nets, nodes, fan, rows, pair_ptr, pairs, out_net, dirty, dirty_words, check, time,
            count, num_gates, now,
        )  # fmt: skip
        for i in range(len(out_nets)):
            result[cycle, i] = nets[out_nets[i]].level
        end_cycle(nets, memories, pins, store, out_next, hold)
        now += 1
