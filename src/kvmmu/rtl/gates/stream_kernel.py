"""The loop over cycles with ready/valid streams."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.jit import kernel
from kvmmu.rtl.gates.kernel import begin_cycle, settle
from kvmmu.rtl.gates.memory_kernel import end_cycle
from kvmmu.rtl.gates.net_kernel import drive

__all__ = ["STREAM", "run_streams"]

_Ints = NDArray[np.int32]
_Longs = NDArray[np.int64]
_Words = NDArray[np.uint64]
_Bytes = NDArray[np.uint8]
_Records = Any  # structured arrays; numpy's stubs do not know their fields

STREAM = np.dtype(
    [(name, "i8") for name in ("is_sink", "valid", "ready", "payload", "bits", "beat")]
    + [(name, "i8") for name in ("beat_words", "count", "after", "gate", "offered", "last")]
    + [("is_open", "i8")]
    + [("probability", "f8")]
)
"""payload: place in the payload nets; beat: place in the beats; last: beat whose bits are on the
payload, counted from 1; after: stream that gates this one, -1 for none; is_open: count is a sink's
room, and the run does not wait for it to fill."""


@kernel
def _chance(random: _Words) -> float:
    """Return the next number in [0, 1) of a 64-bit xorshift (Marsaglia 2003)."""
    x = random[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    random[0] = x
    return np.float64(x >> np.uint64(11)) * 2.0**-53


@kernel
def _offer(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    dirty: _Bytes,
    now: int,
    stream: _Records,
    payload: _Longs,
    beats: _Words,
    position: int,
) -> None:
    """Put the bits of a beat on the payload where they differ from the beat before."""
    for w in range(stream.beat_words):
        new = beats[stream.beat + position * stream.beat_words + w]
        change = ~np.uint64(0)
        if position > 0 and stream.last == position:
            change = new ^ beats[stream.beat + (position - 1) * stream.beat_words + w]
        if change == 0:
            continue
        for b in range(min(64, stream.bits - 64 * w)):
            if change >> np.uint64(b) & np.uint64(1):
                level = np.int64(new >> np.uint64(b) & np.uint64(1))
                drive(nets, nodes, fan, dirty, now, payload[stream.payload + 64 * w + b], level)
    stream.last = position + 1


@kernel
def _take(nets: _Records, stream: _Records, payload: _Longs, beats: _Words, position: int) -> None:
    for w in range(stream.beat_words):
        word = np.uint64(0)
        for b in range(min(64, stream.bits - 64 * w)):
            if nets[payload[stream.payload + 64 * w + b]].level:
                word |= np.uint64(1) << np.uint64(b)
        beats[stream.beat + position * stream.beat_words + w] = word


@kernel
def _inputs(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    dirty: _Bytes,
    now: int,
    streams: _Records,
    payload: _Longs,
    beats: _Words,
    gates: _Longs,
    counters: _Longs,
    random: _Words,
) -> None:
    for i in range(len(streams)):
        stream = streams[i]
        luck = stream.probability >= 1.0 or _chance(random) < stream.probability
        if stream.is_sink:
            drive(nets, nodes, fan, dirty, now, stream.ready, np.int64(luck))
            continue
        position = counters[i, 0]
        if not stream.offered and luck and position < stream.count:
            after = stream.after
            if after < 0 or counters[after, 0] >= gates[stream.gate + position]:
                stream.offered = 1
                _offer(nets, nodes, fan, dirty, now, stream, payload, beats, position)
        drive(nets, nodes, fan, dirty, now, stream.valid, stream.offered)


@kernel
def _handshakes(
    nets: _Records, streams: _Records, payload: _Longs, beats: _Words, counters: _Longs
) -> int:
    """Move beats; return 1 if one moved, -1 if a sink got one too many, else 0."""
    moved = 0
    for i in range(len(streams)):
        stream = streams[i]
        if nets[stream.valid].level == 0:
            continue
        if nets[stream.ready].level == 0:
            counters[i, 1] += 1
            continue
        moved = 1
        position = counters[i, 0]
        counters[i, 0] += 1
        stream.offered = 0
        if stream.is_sink:
            if position >= stream.count:
                return -1
            _take(nets, stream, payload, beats, position)
    return moved


@kernel
def run_streams(
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
    in_nets: _Longs,
    levels: _Bytes,
    streams: _Records,
    payload: _Longs,
    beats: _Words,
    gates: _Longs,
    counters: _Longs,
    random: _Words,
    max_cycles: int,
    stall_cycles: int,
    drain_cycles: int,
    asks: int,
) -> int:
    """Run until all beats moved, a stall or max_cycles; return cycles, negative on a surplus.

    asks: a stream after each of whose beats the run ends, -1 for none.
    """
    idle = 0
    drained = -1
    for cycle in range(max_cycles):
        begin_cycle(
            nets, nodes, fan, kinds, rows, edges, out_net, dirty, check, check_words, tally,
            memories, pins, out, out_next, now,
        )  # fmt: skip
        if cycle == 0:
            for i in range(len(in_nets)):
                drive(nets, nodes, fan, dirty, now, in_nets[i], levels[i])
        _inputs(nets, nodes, fan, dirty, now, streams, payload, beats, gates, counters, random)
        settle(
            nets, nodes, fan, kinds, rows, pair_ptr, pairs, out_net, dirty, dirty_words, check,
            tally, num_gates, now,
        )  # fmt: skip
        asked = counters[asks, 0] if asks >= 0 else 0
        moved = _handshakes(nets, streams, payload, beats, counters)
        end_cycle(nets, memories, pins, store, out_next, hold)
        now += 1
        idle = 0 if moved else idle + 1
        left = 0
        for i in range(len(streams)):
            if not streams[i].is_open:
                left += streams[i].count - counters[i, 0]
        if moved < 0:
            return -(cycle + 1)
        if left == 0:
            drained += 1
        if asks >= 0 and counters[asks, 0] > asked:
            return cycle + 1
        if drained == drain_cycles or idle >= stall_cycles:
            return cycle + 1
    return max_cycles
