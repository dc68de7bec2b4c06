"""The device under the controller: when each command may issue, and what issuing it changes.

State is plain int64 arrays so that numba can inline it: `banks` [ranks * groups * banks, 6],
`groups` [ranks * groups, 3], `ranks` [ranks, 9], `faw` [ranks, 4] (cycles of the last four ACTs)
and `bus` [1] (first free cycle of the row command bus). Times are cycles; a command is ready in
cycle t
if its ready time is <= t. `gaps` is Gaps.as_array().
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmmu.accel.dram.compiled import kernel

__all__ = [
    "ACT",
    "COMMANDS",
    "DeviceState",
    "OPEN_ROW",
    "PRE",
    "PREAB",
    "RD",
    "REF",
    "WR",
    "issue",
    "new_device",
    "ready_cycle",
]

ACT, RD, WR, PRE, PREAB, REF = range(6)
COMMANDS = ("ACT", "RD", "WR", "PRE", "PREab", "REFab")

# columns of `banks`, `groups` and `ranks`
OPEN_ROW, BANK_ACT, BANK_RD, BANK_WR, BANK_PRE, BANK_WAITING = range(6)
GROUP_ACT, GROUP_RD, GROUP_WR = range(3)
(
    RANK_ACT, RANK_RD, RANK_WR, RANK_PRE, RANK_PREAB, RANK_REF, RANK_FAW_HEAD, RANK_OPEN,
    RANK_WAITING,
) = range(9)  # fmt: skip

# places in Gaps.as_array()
(
    _BURST, _CL, _CWL, _RD_RD_S, _RD_RD_L, _WR_WR_S, _WR_WR_L, _RD_WR, _WR_RD_S, _WR_RD_L, _RD_PRE,
    _WR_PRE, _ACT_ACT_BANK, _ACT_RD, _ACT_WR, _ACT_PRE, _PRE_ACT, _ACT_ACT_S, _ACT_ACT_L, _FAW,
    _REF_ACT, _PRE_REF, _ACT_REF, _REFI, _RD_RD_O, _RD_WR_O, _WR_RD_O, _WR_WR_O, _ACT_BUS, _PRE_PRE,
) = range(30)  # fmt: skip

_LONG_AGO = -(2**40)


class DeviceState(NamedTuple):
    """Arrays of one channel's state."""

    banks: NDArray[np.int64]
    groups: NDArray[np.int64]
    ranks: NDArray[np.int64]
    faw: NDArray[np.int64]
    bus: NDArray[np.int64]
    group_of: NDArray[np.int64]
    rank_of: NDArray[np.int64]


def new_device(org: NDArray[np.int64]) -> DeviceState:
    """Return a device with every bank closed and every command ready."""
    num_ranks, num_groups = int(org[0]), int(org[0] * org[1])
    banks = np.zeros((num_groups * int(org[2]), 6), np.int64)
    banks[:, OPEN_ROW] = -1
    groups = np.zeros((num_groups, 3), np.int64)
    ranks = np.zeros((num_ranks, 9), np.int64)
    faw = np.full((num_ranks, 4), _LONG_AGO, np.int64)
    group_of = np.arange(len(banks)) // org[2]
    return DeviceState(
        banks, groups, ranks, faw, np.zeros(1, np.int64), group_of, group_of // org[1]
    )


@kernel
def ready_cycle(state: DeviceState, command: int, bank: int, gaps: NDArray[np.int64]) -> int:
    """Return the first cycle in which `command` may issue to flat `bank` (any bank of a rank)."""
    group, rank = state.group_of[bank], state.rank_of[bank]
    banks, groups, ranks = state.banks, state.groups, state.ranks
    ready: int = state.bus[0]
    if command == RD:
        ready = max(banks[bank, BANK_RD], groups[group, GROUP_RD], ranks[rank, RANK_RD])
    elif command == WR:
        ready = max(banks[bank, BANK_WR], groups[group, GROUP_WR], ranks[rank, RANK_WR])
    elif command == PRE:
        ready = max(ready, banks[bank, BANK_PRE], ranks[rank, RANK_PRE])
    elif command == ACT:
        oldest = state.faw[rank, ranks[rank, RANK_FAW_HEAD]]
        ready = max(ready, banks[bank, BANK_ACT], groups[group, GROUP_ACT], ranks[rank, RANK_ACT])
        ready = max(ready, oldest + gaps[_FAW])
    elif command == PREAB:
        ready = max(ready, ranks[rank, RANK_PREAB], ranks[rank, RANK_PRE])
    else:
        ready = max(ready, ranks[rank, RANK_REF])
    return ready


@kernel
def _raise_to(array: NDArray[np.int64], row: int, column: int, value: int) -> None:
    if value > array[row, column]:
        array[row, column] = value


@kernel
def _issue_act(state: DeviceState, bank: int, row: int, t: int, gaps: NDArray[np.int64]) -> None:
    group, rank = state.group_of[bank], state.rank_of[bank]
    banks, ranks = state.banks, state.ranks
    banks[bank, OPEN_ROW] = row
    ranks[rank, RANK_OPEN] += 1
    _raise_to(banks, bank, BANK_RD, t + gaps[_ACT_RD])
    _raise_to(banks, bank, BANK_WR, t + gaps[_ACT_WR])
    _raise_to(banks, bank, BANK_PRE, t + gaps[_ACT_PRE])
    _raise_to(banks, bank, BANK_ACT, t + gaps[_ACT_ACT_BANK])
    _raise_to(state.groups, group, GROUP_ACT, t + gaps[_ACT_ACT_L])
    _raise_to(ranks, rank, RANK_ACT, t + gaps[_ACT_ACT_S])
    _raise_to(ranks, rank, RANK_PREAB, t + gaps[_ACT_PRE])
    _raise_to(ranks, rank, RANK_REF, t + gaps[_ACT_REF])
    head = ranks[rank, RANK_FAW_HEAD]
    state.faw[rank, head] = t
    ranks[rank, RANK_FAW_HEAD] = (head + 1) % 4
    state.bus[0] = t + gaps[_ACT_BUS]


@kernel
def _issue_column(
    state: DeviceState, command: int, bank: int, t: int, gaps: NDArray[np.int64]
) -> None:
    group, rank = state.group_of[bank], state.rank_of[bank]
    is_write = command == WR
    to_pre = t + (gaps[_WR_PRE] if is_write else gaps[_RD_PRE])
    to_rd_s = t + (gaps[_WR_RD_S] if is_write else gaps[_RD_RD_S])
    to_rd_l = t + (gaps[_WR_RD_L] if is_write else gaps[_RD_RD_L])
    to_wr_s = t + (gaps[_WR_WR_S] if is_write else gaps[_RD_WR])
    to_wr_l = t + (gaps[_WR_WR_L] if is_write else gaps[_RD_WR])
    _raise_to(state.banks, bank, BANK_PRE, to_pre)
    _raise_to(state.ranks, rank, RANK_PREAB, to_pre)
    _raise_to(state.ranks, rank, RANK_RD, to_rd_s)
    _raise_to(state.groups, group, GROUP_RD, to_rd_l)
    _raise_to(state.ranks, rank, RANK_WR, to_wr_s)
    _raise_to(state.groups, group, GROUP_WR, to_wr_l)
    for other in range(state.ranks.shape[0]):
        if other != rank:
            _raise_to(state.ranks, other, RANK_RD, t + gaps[_WR_RD_O if is_write else _RD_RD_O])
            _raise_to(state.ranks, other, RANK_WR, t + gaps[_WR_WR_O if is_write else _RD_WR_O])


@kernel
def _issue_row_close(
    state: DeviceState, command: int, bank: int, t: int, gaps: NDArray[np.int64]
) -> None:
    rank, banks, ranks = state.rank_of[bank], state.banks, state.ranks
    state.bus[0] = t + 1
    _raise_to(ranks, rank, RANK_PRE, t + gaps[_PRE_PRE])
    if command == PRE:
        banks[bank, OPEN_ROW] = -1
        ranks[rank, RANK_OPEN] -= 1
        _raise_to(banks, bank, BANK_ACT, t + gaps[_PRE_ACT])
        _raise_to(ranks, rank, RANK_REF, t + gaps[_PRE_REF])
    elif command == PREAB:
        for other in range(banks.shape[0]):
            if state.rank_of[other] == rank:
                banks[other, OPEN_ROW] = -1
        ranks[rank, RANK_OPEN] = 0
        _raise_to(ranks, rank, RANK_ACT, t + gaps[_PRE_ACT])
        _raise_to(ranks, rank, RANK_REF, t + gaps[_PRE_REF])
    else:
        _raise_to(ranks, rank, RANK_ACT, t + gaps[_REF_ACT])
        _raise_to(ranks, rank, RANK_REF, t + gaps[_REF_ACT])


@kernel
def issue(
    state: DeviceState, command: int, bank: int, row: int, t: int, gaps: NDArray[np.int64]
) -> None:
    """Issue `command` in cycle t: change rows and raise the ready cycles that it binds."""
    if command == ACT:
        _issue_act(state, bank, row, t, gaps)
    elif command in (RD, WR):
        _issue_column(state, command, bank, t, gaps)
    else:
        _issue_row_close(state, command, bank, t, gaps)
