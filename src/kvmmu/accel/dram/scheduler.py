"""The scheduling of one channel, compiled: queues, write drain, FR-FCFS and refresh, event driven.

The rules are stated in controller.py. Every function takes the whole channel, a tuple of arrays,
and the cycle t; none keeps state of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmmu.accel.dram.compiled import kernel
from kvmmu.accel.dram.device import (
    ACT,
    BANK_WAITING,
    OPEN_ROW,
    PRE,
    PREAB,
    RANK_OPEN,
    RANK_WAITING,
    RD,
    REF,
    WR,
    DeviceState,
    issue,
    ready_cycle,
)

__all__ = [
    "Channel",
    "NUM_COUNTERS",
    "count_first",
    "feed",
    "record",
    "remove",
    "serve",
    "simulate",
]

_FAR = 2**60
_ANY, _COLUMN, _ROW = range(3)  # which commands a slot takes
_READS, _WRITES, _ACTIVATED = range(3)  # places in `counts`
_MODE, _NEXT = range(2)  # places in `progress`
_READ_ENTRIES, _WRITE_ENTRIES, _HIGH, _LOW, _PROTECT, _DUAL = range(6)  # places in `policy`
_WAITING, _RANK, _AT = range(3)  # places in `refresh`
_G_BURST, _G_CL, _G_CWL, _G_REFI = 0, 1, 2, 23  # places in `gaps`

# Counters: the six commands by their number, then:
NUM_COUNTERS = 12
N_HIT, N_MISS, N_CONFLICT, LAST_FED, LAST_DATA, N_TRACE = range(6, NUM_COUNTERS)


class Channel(NamedTuple):
    """All arrays of a run; N requests, int64 unless said."""

    state: DeviceState
    gaps: NDArray[np.int64]
    org: NDArray[np.int64]
    policy: NDArray[np.float64]
    banks: NDArray[np.int64]  # [N] flat bank
    rows: NDArray[np.int64]  # [N]
    is_write: NDArray[np.bool_]  # [N]
    arrived: NDArray[np.int64]  # [N] cycle a request entered its queue
    column_cycles: NDArray[np.int64]  # [N] cycle of its column command
    seen: NDArray[np.bool_]  # [N] counted as hit, miss or conflict
    entries: NDArray[np.int64]  # [2, capacity] requests of the read and the write queue, in order
    activated: NDArray[np.int64]  # [ranks * banks] requests whose row is being opened
    counts: NDArray[np.int64]  # [3]
    progress: NDArray[np.int64]  # [2] write mode, next request to feed
    refresh: NDArray[np.int64]  # [3] refreshes waiting, rank of the next one, cycle of the next
    hit_since: NDArray[np.int64]  # [ranks * banks] oldest arrival that hits the open row
    counters: NDArray[np.int64]  # [NUM_COUNTERS]
    trace: NDArray[np.int64]  # [capacity, 4], empty when none is wanted


@kernel
def feed(ch: Channel, t: int) -> None:
    """Push requests in order until one is refused."""
    n = ch.is_write.shape[0]
    while ch.progress[_NEXT] < n:
        request = ch.progress[_NEXT]
        side = _WRITES if ch.is_write[request] else _READS
        if ch.counts[side] >= ch.policy[side]:
            return
        ch.entries[side, ch.counts[side]] = request
        ch.counts[side] += 1
        ch.arrived[request] = t
        ch.progress[_NEXT] = request + 1
        ch.counters[LAST_FED] = t


@kernel
def _choose_write_mode(ch: Channel) -> None:
    reads, writes = ch.counts[_READS], ch.counts[_WRITES]
    if ch.progress[_MODE] == 0:
        if writes > ch.policy[_HIGH] or reads == 0:
            ch.progress[_MODE] = 1
    elif writes < ch.policy[_LOW] and reads != 0:
        ch.progress[_MODE] = 0


@kernel
def record(ch: Channel, command: int, bank: int, row: int, t: int) -> None:
    """Issue a command, count it, and write it down if there is a trace to write."""
    issue(ch.state, command, bank, row, t, ch.gaps)
    ch.counters[command] += 1
    place = ch.counters[N_TRACE]
    if place < ch.trace.shape[0]:
        ch.trace[place, 0] = t
        ch.trace[place, 1] = command
        ch.trace[place, 2] = bank
        ch.trace[place, 3] = row
    ch.counters[N_TRACE] = place + 1


@kernel
def serve(ch: Channel, request: int, t: int) -> None:
    """Issue a request's column command."""
    is_write = ch.is_write[request]
    record(ch, WR if is_write else RD, ch.banks[request], ch.rows[request], t)
    ch.column_cycles[request] = t
    data_end = t + ch.gaps[_G_BURST] + ch.gaps[_G_CWL if is_write else _G_CL]
    ch.counters[LAST_DATA] = max(ch.counters[LAST_DATA], data_end)


@kernel
def count_first(ch: Channel, request: int, command: int) -> None:
    """Count a request once, by its first command, as row hit, miss or conflict."""
    if not ch.seen[request]:
        ch.seen[request] = True
        ch.counters[N_MISS if command == ACT else (N_CONFLICT if command == PRE else N_HIT)] += 1


@kernel
def remove(array: NDArray[np.int64], place: int, count: int) -> None:
    """Take out one entry of a list of `count`."""
    for i in range(place, count - 1):
        array[i] = array[i + 1]


@kernel
def _activated_slot(ch: Channel, t: int) -> tuple[bool, int]:
    """Serve the earliest arrival whose row is open and ready; return (issued, next ready cycle)."""
    best, soonest = -1, _FAR
    for place in range(ch.counts[_ACTIVATED]):
        request = ch.activated[place]
        command = WR if ch.is_write[request] else RD
        ready = ready_cycle(ch.state, command, ch.banks[request], ch.gaps)
        if ready > t:
            soonest = min(soonest, ready)
        elif best < 0 or ch.arrived[request] < ch.arrived[ch.activated[best]]:
            best = place
    if best < 0:
        return False, soonest
    request = ch.activated[best]
    bank = ch.banks[request]
    serve(ch, request, t)
    remove(ch.activated, best, ch.counts[_ACTIVATED])
    ch.counts[_ACTIVATED] -= 1
    ch.state.banks[bank, BANK_WAITING] -= 1
    ch.state.ranks[ch.state.rank_of[bank], RANK_WAITING] -= 1
    return True, t


@kernel
def _refresh_slot(ch: Channel, t: int) -> tuple[bool, int]:
    """Take one step of the oldest waiting refresh; return (issued, next ready cycle)."""
    rank = ch.refresh[_RANK]
    bank = rank * ch.org[1] * ch.org[2]
    command = PREAB if ch.state.ranks[rank, RANK_OPEN] > 0 else REF
    if command == PREAB and ch.state.ranks[rank, RANK_WAITING] > 0:
        return False, _FAR  # an activated request goes first, and moves time on itself
    ready = ready_cycle(ch.state, command, bank, ch.gaps)
    if ready > t:
        return False, ready
    record(ch, command, bank, -1, t)
    if command == REF:
        ch.refresh[_WAITING] -= 1
        ch.refresh[_RANK] = (rank + 1) % ch.org[0]
    return True, t


@kernel
def _note_hits(ch: Channel, side: int) -> None:
    """Note for every bank since when a queued request hits its open row."""
    ch.hit_since[:] = _FAR
    if ch.policy[_PROTECT] > 0:
        for place in range(ch.counts[side]):
            request = ch.entries[side, place]
            bank = ch.banks[request]
            if ch.state.banks[bank, OPEN_ROW] == ch.rows[request]:
                ch.hit_since[bank] = min(ch.hit_since[bank], ch.arrived[request])


@kernel
def _pick_queued(ch: Channel, side: int, slot: int, t: int) -> tuple[int, int, int]:
    """Return (place or -1, command, next ready cycle) of the oldest ready queued request."""
    soonest = _FAR
    for place in range(ch.counts[side]):
        request = ch.entries[side, place]
        bank = ch.banks[request]
        open_row = ch.state.banks[bank, OPEN_ROW]
        if open_row == ch.rows[request]:
            command = WR if side == _WRITES else RD
        elif open_row < 0:
            command = ACT
        else:
            command = PRE
            if ch.state.banks[bank, BANK_WAITING] > 0:
                continue
            if ch.hit_since[bank] <= ch.arrived[request]:
                continue
        if slot != _ANY and (slot == _COLUMN) != (command in (RD, WR)):
            continue
        ready = ready_cycle(ch.state, command, bank, ch.gaps)
        if ready <= t:
            return place, command, t
        soonest = min(soonest, ready)
    return -1, ACT, soonest


@kernel
def _queue_slot(ch: Channel, slot: int, t: int) -> tuple[bool, int]:
    """Issue the best command of the selected queue; return (issued, next ready cycle)."""
    _choose_write_mode(ch)
    side = ch.progress[_MODE]
    if ch.policy[_PROTECT] > 0:
        _note_hits(ch, side)
    place, command, ready = _pick_queued(ch, side, slot, t)
    if place < 0:
        return False, ready
    request = ch.entries[side, place]
    bank = ch.banks[request]
    count_first(ch, request, command)
    if command == PRE:
        record(ch, PRE, bank, ch.rows[request], t)
        return True, t
    if command == ACT:
        record(ch, ACT, bank, ch.rows[request], t)
        ch.activated[ch.counts[_ACTIVATED]] = request
        ch.counts[_ACTIVATED] += 1
        ch.state.banks[bank, BANK_WAITING] += 1
        ch.state.ranks[ch.state.rank_of[bank], RANK_WAITING] += 1
    else:
        serve(ch, request, t)
    remove(ch.entries[side], place, ch.counts[side])
    ch.counts[side] -= 1
    return True, t


@kernel
def _slot(ch: Channel, slot: int, t: int) -> tuple[bool, int]:
    """Fill one command slot of cycle t; return (issued, next ready cycle)."""
    soonest = _FAR
    if slot != _ROW:
        issued, soonest = _activated_slot(ch, t)
        if issued:
            return True, t
    if ch.refresh[_WAITING] > 0:
        if slot == _COLUMN:
            return False, soonest
        issued, ready = _refresh_slot(ch, t)
    else:
        issued, ready = _queue_slot(ch, slot, t)
    return issued, min(soonest, ready)


@kernel
def simulate(ch: Channel) -> None:
    """Serve every request of the channel; results are left in its arrays."""
    num_requests, t = ch.is_write.shape[0], 0
    feed(ch, t)
    while ch.counters[RD] + ch.counters[WR] < num_requests:
        while ch.refresh[_AT] <= t:
            ch.refresh[_WAITING] += ch.org[0]
            ch.refresh[_AT] += ch.gaps[_G_REFI]
        if ch.policy[_DUAL] > 0:
            column, column_ready = _slot(ch, _COLUMN, t)
            row, row_ready = _slot(ch, _ROW, t)
            issued, ready = column or row, min(column_ready, row_ready)
        else:
            issued, ready = _slot(ch, _ANY, t)
        if issued:
            t += 1
            feed(ch, t)
        else:
            t = min(ready, ch.refresh[_AT])
