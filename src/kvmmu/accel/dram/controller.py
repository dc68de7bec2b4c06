"""The memory controller of one channel: what it does, its policy and its result.

Requests are fed in order while their queue (read or write) has a free entry; the first refused one
blocks all behind it. Each cycle has one command slot, or one column and one row slot. Order in a
slot: requests whose row is being opened (the activated list), then refresh, then the read or write
queue; a waiting refresh stops the queues. In a queue the oldest request whose next command is
ready issues it ("first ready"); ACT moves a request to the activated list and frees its queue
entry. A row stays open until another request needs the bank or a refresh comes. PRE waits while an
activated request holds the bank and, with `protect_row_hits`, while an older queued request hits
the open row. Writes are served when more than `write_high` are queued or no read is, until fewer
than `write_low` are and a read waits. Nothing changes between two commands but by refresh: time
jumps to the next ready cycle.

Not modelled: reads answered from queued writes, merging of equal requests, power-down, per-bank
refresh, postponed refresh, commands that need several bus cycles (ACT of HBM2 excepted).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmmu.accel.dram.banked import BankedChannel, simulate_banked
from kvmmu.accel.dram.device import ACT, PRE, PREAB, RD, REF, WR, new_device
from kvmmu.accel.dram.gaps import Gaps
from kvmmu.accel.dram.scheduler import (
    LAST_DATA,
    LAST_FED,
    N_CONFLICT,
    N_HIT,
    N_MISS,
    N_TRACE,
    NUM_COUNTERS,
    Channel,
    simulate,
)

__all__ = ["ChannelResult", "Organization", "Policy", "Trace", "run_channel"]


@dataclass(frozen=True)
class Organization:
    """Banks of one channel."""

    ranks: int
    bank_groups: int
    banks_per_group: int

    @property
    def num_banks(self) -> int:
        """Banks of the channel, all ranks."""
        return self.ranks * self.bank_groups * self.banks_per_group


@dataclass(frozen=True)
class Policy:
    """Queues and scheduling; the window is `read_entries` reads or `write_entries` writes.

    With `per_bank_entries` the queues only feed command queues of that length, one per bank, and
    the rules are those of banked.py; watermarks and `protect_row_hits` then mean nothing.
    """

    read_entries: int = 32
    write_entries: int = 32
    write_high: float = 25.6
    write_low: float = 6.4
    protect_row_hits: bool = False
    dual_command: bool = False
    per_bank_entries: int = 0

    def as_array(self) -> NDArray[np.float64]:
        """Return the policy in the kernel's order, float64 [6]."""
        queues = [self.read_entries, self.write_entries, self.write_high, self.write_low]
        return np.array([*queues, self.protect_row_hits, self.dual_command], dtype=np.float64)


class Trace(NamedTuple):
    """Commands in issue order, int64 [M] each: cycle, kind (device.COMMANDS), flat bank, row."""

    cycle: NDArray[np.int64]
    command: NDArray[np.int64]
    bank: NDArray[np.int64]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class ChannelResult:
    """What one channel did; `cycles` ends with the last data beat; `column_cycles` [N]."""

    cycles: int
    column_cycles: NDArray[np.int64]
    last_fed_cycle: int
    activates: int
    reads: int
    writes: int
    precharges: int
    precharges_all: int
    refreshes: int
    row_hits: int
    row_misses: int
    row_conflicts: int
    trace: Trace | None

    def steady_cycles(self, refi: int = 0) -> tuple[int, int]:
        """Return (requests, cycles) of the steady state.

        With a refresh period: all column commands of the whole periods between 10 % and 90 % of the
        run, if there is one. Else from the column command at 10 % of them to that at 90 %.
        """
        order = np.sort(self.column_cycles)
        if refi:
            first, last = -(-self.cycles // (10 * refi)), self.cycles * 9 // (10 * refi)
            if last > first:
                inside = np.searchsorted(order, [first * refi, last * refi])
                return int(inside[1] - inside[0]), (last - first) * refi
        low, high = len(order) // 10, len(order) * 9 // 10
        if high <= low:
            return len(order), self.cycles
        return high - low, int(order[high] - order[low])


def run_channel(
    banks: NDArray[np.int64],
    rows: NDArray[np.int64],
    is_write: NDArray[np.bool_],
    *,
    gaps: Gaps,
    organization: Organization,
    policy: Policy,
    with_trace: bool = False,
) -> ChannelResult:
    """Serve requests to flat `banks` [N] and `rows` [N] in order; return cycles and counts.

    Flat bank = (rank * bank_groups + group) * banks_per_group + bank.
    """
    channel = _new_channel(banks, rows, is_write, gaps, organization, policy)
    _run(channel, policy)
    if with_trace:  # how many commands there are is known only after a run
        capacity = int(channel.counters[N_TRACE])
        channel = _new_channel(banks, rows, is_write, gaps, organization, policy, capacity)
        _run(channel, policy)
    counters = [int(value) for value in channel.counters]
    return ChannelResult(
        cycles=counters[LAST_DATA],
        column_cycles=channel.column_cycles,
        last_fed_cycle=counters[LAST_FED],
        activates=counters[ACT],
        reads=counters[RD],
        writes=counters[WR],
        precharges=counters[PRE],
        precharges_all=counters[PREAB],
        refreshes=counters[REF],
        row_hits=counters[N_HIT],
        row_misses=counters[N_MISS],
        row_conflicts=counters[N_CONFLICT],
        trace=Trace(*(channel.trace[:, i] for i in range(4))) if with_trace else None,
    )


def _run(channel: Channel, policy: Policy) -> None:
    """Serve all requests by the policy's rules."""
    if not policy.per_bank_entries:
        simulate(channel)
        return
    num_banks = len(channel.hit_since)
    banked = BankedChannel(
        base=channel,
        queues=np.zeros((num_banks, policy.per_bank_entries), np.int64),
        lengths=np.zeros(num_banks, np.int64),
        hits=np.zeros(num_banks, np.int64),
        turn=np.zeros(2, np.int64),
    )
    channel.refresh[2] += 1  # its refresh timer starts with the first command slot
    simulate_banked(banked)


def _new_channel(
    banks: NDArray[np.int64],
    rows: NDArray[np.int64],
    is_write: NDArray[np.bool_],
    gaps: Gaps,
    organization: Organization,
    policy: Policy,
    trace_capacity: int = 0,
) -> Channel:
    """Return a channel before its first cycle."""
    org = np.array(
        [organization.ranks, organization.bank_groups, organization.banks_per_group], np.int64
    )
    num_requests, num_banks = len(banks), organization.num_banks
    gap_array = gaps.as_array()
    first_refresh = (
        gaps.refi - 1
    )  # the refresh timer starts one cycle before the first command slot
    return Channel(
        state=new_device(org),
        gaps=gap_array,
        org=org,
        policy=policy.as_array(),
        banks=np.ascontiguousarray(banks, np.int64),
        rows=np.ascontiguousarray(rows, np.int64),
        is_write=np.ascontiguousarray(is_write, np.bool_),
        arrived=np.zeros(num_requests, np.int64),
        column_cycles=np.full(num_requests, -1, np.int64),
        seen=np.zeros(num_requests, np.bool_),
        entries=np.zeros((2, max(policy.read_entries, policy.write_entries)), np.int64),
        activated=np.zeros(num_banks, np.int64),
        counts=np.zeros(3, np.int64),
        progress=np.zeros(2, np.int64),
        refresh=np.array([0, 0, first_refresh], np.int64),
        hit_since=np.full(num_banks, 2**60, np.int64),
        counters=np.zeros(NUM_COUNTERS, np.int64),
        trace=np.zeros((trace_capacity, 4), np.int64),
    )
