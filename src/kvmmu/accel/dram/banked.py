"""The other controller: a command queue per bank, as DRAMsim3 has it; compiled and event driven.

Requests wait in the read or the write queue of scheduler.py's channel. At the end of every cycle
the oldest one whose bank queue has room moves there; writes are moved only while they drain: from
a full write queue, or from more than 8 writes when all bank queues are empty, as many as were
there at the start; at the end of the requests any number drains (there DRAMsim3 keeps up to 8 for
ever). A command slot takes the first ready command of the next bank queue in turn. PRE needs the
head of its queue and no hit behind it, unless the open row was hit 4 times. A waiting refresh
closes the banks of its rank one by one and stops their queues. With two slots the second is used
if exactly one of both commands is a column command.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmmu.accel.dram.compiled import kernel
from kvmmu.accel.dram.device import ACT, OPEN_ROW, PRE, RANK_OPEN, RD, REF, WR, ready_cycle
from kvmmu.accel.dram.scheduler import Channel, count_first, feed, record, remove, serve

__all__ = ["BankedChannel", "simulate_banked"]

_FAR = 2**60
_READS, _WRITES = range(2)
_TURN, _DRAINING = range(2)  # places in `turn`
_DUAL, _WAITING, _RANK, _AT, _NEXT, _G_REFI = 5, 0, 1, 2, 1, 23
_MAX_HITS, _MIN_WRITES = 4, 8


class BankedChannel(NamedTuple):
    """A channel with a command queue per bank."""

    base: Channel
    queues: NDArray[np.int64]  # [ranks * banks, entries] requests
    lengths: NDArray[np.int64]  # [ranks * banks]
    hits: NDArray[np.int64]  # [ranks * banks] column commands since ACT
    turn: NDArray[np.int64]  # [2] bank queue served last, writes still to drain


@kernel
def _issue(ch: BankedChannel, command: int, bank: int, row: int, t: int) -> None:
    record(ch.base, command, bank, row, t)
    if command == PRE:
        ch.hits[bank] = 0
    if command == REF:
        ch.base.refresh[_WAITING] -= 1
        ch.base.refresh[_RANK] = (ch.base.refresh[_RANK] + 1) % ch.base.org[0]


@kernel
def _refresh_step(ch: BankedChannel, t: int) -> tuple[bool, int]:
    """Close the rank's next bank, or refresh the rank; return (issued, next ready cycle)."""
    state, gaps, rank = ch.base.state, ch.base.gaps, ch.base.refresh[_RANK]
    soonest, last = _FAR, 0
    for bank in range(state.banks.shape[0]):
        if state.rank_of[bank] != rank:
            continue
        last = bank
        if state.banks[bank, OPEN_ROW] >= 0:
            ready = ready_cycle(state, PRE, bank, gaps)
            if ready <= t:
                _issue(ch, PRE, bank, -1, t)
                return True, t
            soonest = min(soonest, ready)
    if state.ranks[rank, RANK_OPEN] > 0:
        return False, soonest
    ready = ready_cycle(state, REF, last, gaps)
    if ready <= t:
        _issue(ch, REF, last, -1, t)
        return True, t
    return False, ready


@kernel
def _may_precharge(ch: BankedChannel, bank: int, place: int) -> bool:
    if place > 0:
        return False
    if ch.hits[bank] >= _MAX_HITS:
        return True
    open_row = ch.base.state.banks[bank, OPEN_ROW]
    for other in range(ch.lengths[bank]):
        if ch.base.rows[ch.queues[bank, other]] == open_row:
            return False
    return True


@kernel
def _pick_in_bank(ch: BankedChannel, bank: int, t: int) -> tuple[int, int, int]:
    """Return (place or -1, command, next ready cycle): the first ready one of a bank queue."""
    state, soonest = ch.base.state, _FAR
    for place in range(ch.lengths[bank]):
        request = ch.queues[bank, place]
        open_row = state.banks[bank, OPEN_ROW]
        if open_row == ch.base.rows[request]:
            command = WR if ch.base.is_write[request] else RD
        elif open_row < 0:
            command = ACT
        else:
            command = PRE
            if not _may_precharge(ch, bank, place):
                continue
        ready = ready_cycle(state, command, bank, ch.base.gaps)
        if ready <= t:
            return place, command, t
        soonest = min(soonest, ready)
    return -1, ACT, soonest


@kernel
def _bank_slot(ch: BankedChannel, wanted: int, t: int) -> tuple[int, int]:
    """Issue from the next bank queue that has a ready command; return (command or -1, next ready).

    `wanted` 0 takes any command, 1 only column commands, 2 only others; an unwanted one ends the
    turn.
    """
    num_banks, soonest = ch.lengths.shape[0], _FAR
    for _ in range(num_banks):
        bank = (ch.turn[_TURN] + 1) % num_banks
        ch.turn[_TURN] = bank
        state = ch.base.state
        if ch.base.refresh[_WAITING] > 0 and state.rank_of[bank] == ch.base.refresh[_RANK]:
            continue
        place, command, ready = _pick_in_bank(ch, bank, t)
        if place < 0:
            soonest = min(soonest, ready)
            continue
        is_column = command in (RD, WR)
        if wanted > 0 and (wanted == 1) != is_column:
            return -1, t
        request = ch.queues[bank, place]
        count_first(ch.base, request, command)
        if is_column:
            serve(ch.base, request, t)
            ch.hits[bank] += 1
            remove(ch.queues[bank], place, ch.lengths[bank])
            ch.lengths[bank] -= 1
        else:
            _issue(ch, command, bank, ch.base.rows[request], t)
        return command, t
    return -1, soonest


@kernel
def _move_request(ch: BankedChannel) -> bool:
    """Move the oldest request whose bank queue has room; return whether one moved."""
    counts, entries = ch.base.counts, ch.base.entries
    if ch.turn[_DRAINING] == 0:
        writes, full = counts[_WRITES], counts[_WRITES] >= ch.base.policy[_WRITES]
        at_end = counts[_READS] == 0 and ch.base.progress[_NEXT] == ch.base.is_write.shape[0]
        if full or ((at_end or writes > _MIN_WRITES) and ch.lengths.sum() == 0):
            ch.turn[_DRAINING] = writes
    side = _WRITES if ch.turn[_DRAINING] > 0 else _READS
    for place in range(counts[side]):
        request = entries[side, place]
        bank = ch.base.banks[request]
        if ch.lengths[bank] < ch.queues.shape[1]:
            ch.queues[bank, ch.lengths[bank]] = request
            ch.lengths[bank] += 1
            remove(entries[side], place, counts[side])
            counts[side] -= 1
            if side == _WRITES:
                ch.turn[_DRAINING] -= 1
            return True
    return False


@kernel
def _one_cycle(ch: BankedChannel, t: int) -> tuple[bool, int]:
    """Fill the command slots of cycle t; return (issued, next ready cycle)."""
    issued, soonest, is_column = False, _FAR, False
    if ch.base.refresh[_WAITING] > 0:
        issued, soonest = _refresh_step(ch, t)
    if not issued:
        command, ready = _bank_slot(ch, 0, t)
        issued, soonest = command >= 0, min(soonest, ready)
        is_column = command in (RD, WR)
    if issued and ch.base.policy[_DUAL] > 0:
        _bank_slot(ch, 2 if is_column else 1, t)
    return issued, soonest


@kernel
def simulate_banked(ch: BankedChannel) -> None:
    """Serve every request of the channel; results are left in its arrays."""
    base, t = ch.base, 0
    num_requests = base.is_write.shape[0]
    feed(base, t)
    while base.counters[RD] + base.counters[WR] < num_requests:
        while base.refresh[_AT] <= t:
            base.refresh[_WAITING] += base.org[0]
            base.refresh[_AT] += base.gaps[_G_REFI]
        issued, ready = _one_cycle(ch, t)
        moved = _move_request(ch)
        if issued or moved:
            t += 1
            feed(base, t)
        elif min(ready, base.refresh[_AT]) > t:
            t = min(ready, base.refresh[_AT])
        else:
            t += 1
