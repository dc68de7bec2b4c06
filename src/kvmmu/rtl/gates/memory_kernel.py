"""The numba loops of memories: what they read is shown a cycle later, writes act at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.jit import kernel
from kvmmu.rtl.gates.net_kernel import toggle

__all__ = ["MEMORY", "end_cycle", "show_memories"]

_Ints = NDArray[np.int32]
_Words = NDArray[np.uint64]
_Bytes = NDArray[np.uint8]
_Records = Any  # structured arrays; numpy's stubs do not know their fields


def _longs(*names: str) -> list[tuple[str, str]]:
    return [(name, "i8") for name in names]


MEMORY = np.dtype(
    _longs("depth", "width", "granule", "words", "en", "we", "addr", "addr_bits", "wdata", "rdata")
    + _longs("mask", "mask_bits", "out", "base", "reads", "writes", "outside")
)
"""addr, wdata, rdata, mask are places in `pins`; out in the out words; base in the store."""


@kernel
def show_memories(
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
                    toggle(nets, nodes, fan, dirty, now, pins[place + b])


@kernel
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


@kernel
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
