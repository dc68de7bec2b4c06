"""Each constraint alone, blocked at n - 1 and ready at n; queues, write drain, refresh, slots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvmmu.accel.dram.checker import Command, check_trace, commands_of
from kvmmu.accel.dram.controller import ChannelResult, Organization, Policy, run_channel
from kvmmu.accel.dram.device import (
    ACT,
    COMMANDS,
    PRE,
    PREAB,
    RD,
    REF,
    WR,
    DeviceState,
    issue,
    new_device,
    ready_cycle,
)
from kvmmu.accel.dram.gaps import Gaps

BANKS = Organization(ranks=2, bank_groups=2, banks_per_group=2)
SAME, GROUP_MATE, RANK_MATE, OTHER_RANK = 0, 1, 2, 4  # banks as seen from bank 0
START = 1000

# earlier command, later command, bank of the later one, the gap between them
CONSTRAINTS = {
    "tRC": (ACT, ACT, SAME, "act_act_bank"),
    "tRRD_L": (ACT, ACT, GROUP_MATE, "act_act_l"),
    "tRRD_S": (ACT, ACT, RANK_MATE, "act_act_s"),
    "tRCD": (ACT, RD, SAME, "act_rd"),
    "tRCD of writes": (ACT, WR, SAME, "act_wr"),
    "tRAS": (ACT, PRE, SAME, "act_pre"),
    "tRAS before PREab": (ACT, PREAB, RANK_MATE, "act_pre"),
    "ACT before REF": (ACT, REF, RANK_MATE, "act_ref"),
    "tCCD_L": (RD, RD, GROUP_MATE, "rd_rd_l"),
    "tCCD_S": (RD, RD, RANK_MATE, "rd_rd_s"),
    "RD to RD of the other rank": (RD, RD, OTHER_RANK, "rd_rd_other_rank"),
    "tCCD_L of writes": (WR, WR, GROUP_MATE, "wr_wr_l"),
    "tCCD_S of writes": (WR, WR, RANK_MATE, "wr_wr_s"),
    "WR to WR of the other rank": (WR, WR, OTHER_RANK, "wr_wr_other_rank"),
    "read to write": (RD, WR, RANK_MATE, "rd_wr"),
    "read to write of the other rank": (RD, WR, OTHER_RANK, "rd_wr_other_rank"),
    "tWTR_L": (WR, RD, GROUP_MATE, "wr_rd_l"),
    "tWTR_S": (WR, RD, RANK_MATE, "wr_rd_s"),
    "write to read of the other rank": (WR, RD, OTHER_RANK, "wr_rd_other_rank"),
    "tRTP": (RD, PRE, SAME, "rd_pre"),
    "tRTP before PREab": (RD, PREAB, RANK_MATE, "rd_pre"),
    "write recovery": (WR, PRE, SAME, "wr_pre"),
    "write recovery before PREab": (WR, PREAB, RANK_MATE, "wr_pre"),
    "tRP": (PRE, ACT, SAME, "pre_act"),
    "tRP of PREab": (PREAB, ACT, RANK_MATE, "pre_act"),
    "tRP before REF": (PRE, REF, RANK_MATE, "pre_ref"),
    "tRP of PREab before REF": (PREAB, REF, RANK_MATE, "pre_ref"),
    "tPPD": (PRE, PRE, RANK_MATE, "pre_pre"),
    "tRFC": (REF, ACT, RANK_MATE, "ref_act"),
    "row bus held by ACT": (ACT, PRE, OTHER_RANK, "act_bus"),
}
FREE = Gaps(**dict.fromkeys(Gaps.names(), 1))
GAP = 37


def device() -> DeviceState:
    return new_device(np.array([BANKS.ranks, BANKS.bank_groups, BANKS.banks_per_group]))


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_command_is_blocked_at_n_minus_1_and_ready_at_n(name: str) -> None:
    earlier, later, bank, gap = CONSTRAINTS[name]
    gaps = replace(FREE, **{gap: GAP}).as_array()
    state = device()
    issue(state, earlier, SAME, 5, START, gaps)
    assert ready_cycle(state, later, bank, gaps) == START + GAP


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_checker_sees_a_command_one_cycle_early(name: str) -> None:
    """The checker was written from the list of constraints, not from the device."""
    earlier, later, bank, gap = CONSTRAINTS[name]
    gaps = replace(FREE, **{gap: GAP})
    for distance, expected in ((GAP - 1, True), (GAP, False)):
        commands = [
            Command(START, COMMANDS[earlier], SAME, 5),
            Command(START + distance, COMMANDS[later], bank, 5),
        ]
        found = [v for v in check_trace(commands, gaps, BANKS) if v.constraint != "row state"]
        assert bool(found) is expected


@pytest.mark.parametrize("bank", [GROUP_MATE, RANK_MATE, OTHER_RANK])
def test_gap_within_a_bank_binds_no_other_bank(bank: int) -> None:
    gaps = replace(FREE, act_act_bank=GAP, act_rd=GAP, act_pre=GAP).as_array()
    state = device()
    issue(state, ACT, SAME, 5, START, gaps)
    assert ready_cycle(state, ACT, bank, gaps) <= START + 1
    assert ready_cycle(state, RD, bank, gaps) <= START + 1


def test_fifth_activation_waits_for_the_window_of_four() -> None:
    gaps = replace(FREE, faw=100).as_array()
    state = device()
    for k, cycle in enumerate((START, START + 10, START + 20, START + 30)):
        assert ready_cycle(state, ACT, k % 4, gaps) <= cycle
        issue(state, ACT, k % 4, 5, cycle, gaps)
    assert ready_cycle(state, ACT, SAME, gaps) == START + 100
    assert ready_cycle(state, ACT, OTHER_RANK, gaps) == START + 31  # the bus alone
    issue(state, ACT, SAME, 6, START + 100, gaps)
    assert ready_cycle(state, ACT, GROUP_MATE, gaps) == START + 110


# ------------------------------------------------------------------------- the controller

DDR4 = Gaps(
    burst=4, cl=22, cwl=16, rd_rd_s=4, rd_rd_l=8, wr_wr_s=4, wr_wr_l=8, rd_wr=12, wr_rd_s=24,
    wr_rd_l=32, rd_pre=12, wr_pre=44, act_act_bank=74, act_rd=22, act_wr=22, act_pre=52, pre_act=22,
    act_act_s=4, act_act_l=8, faw=34, ref_act=576, pre_ref=22, act_ref=74, refi=12480,
    rd_rd_other_rank=6, rd_wr_other_rank=12, wr_rd_other_rank=1, wr_wr_other_rank=6, act_bus=1,
    pre_pre=1,
)  # fmt: skip
ONE_RANK = Organization(1, 4, 4)


def run(
    requests: list[tuple[int, int, bool]], *, policy: Policy | None = None, **changed: int
) -> ChannelResult:
    """Run (bank, row, is_write) requests on one rank of DDR4."""
    banks, rows, writes = (np.array(column) for column in zip(*requests))
    return run_channel(
        banks,
        rows,
        writes.astype(bool),
        gaps=replace(DDR4, **changed),
        organization=ONE_RANK,
        policy=policy or Policy(),
        with_trace=True,
    )


def kinds(result: ChannelResult) -> list[tuple[int, str]]:
    assert result.trace is not None
    return [(command.cycle, command.kind) for command in commands_of(result.trace)]


def test_one_read_takes_trcd_cl_and_its_burst() -> None:
    result = run([(0, 7, False)])
    assert kinds(result) == [(0, "ACT"), (22, "RD")]
    assert result.cycles == 22 + 22 + 4


def test_row_conflict_takes_trc_between_activations() -> None:
    assert [t for t, kind in kinds(run([(0, 1, False), (0, 2, False)])) if kind == "ACT"] == [0, 74]


def test_read_after_write_waits_for_twtr() -> None:
    result = run([(0, 1, True), (0, 1, False)], policy=Policy(write_high=0.5, write_low=0.25))
    assert kinds(result)[1:] == [(22, "WR"), (22 + 32, "RD")]


def test_oldest_ready_request_goes_first_and_hits_pass_a_conflict() -> None:
    result = run([(0, 1, False), (0, 2, False), (0, 1, False)])
    assert list(np.argsort(result.column_cycles)) == [0, 2, 1]


def test_window_is_the_number_of_read_entries() -> None:
    """The hit stands behind three conflicts: a window of 3 does not reach it."""
    requests = [(0, 1, False), (0, 2, False), (0, 2, False), (0, 2, False), (0, 1, False)]
    assert np.argsort(run(requests, policy=Policy(read_entries=4)).column_cycles)[1] == 4
    assert np.argsort(run(requests, policy=Policy(read_entries=3)).column_cycles)[1] != 4


def test_protected_row_hit_is_not_closed_by_a_younger_conflict() -> None:
    """tRTP < tCCD_L: a younger request may close the row between two hits if none protects them."""
    requests = [(0, 1, False)] * 12 + [(0, 2, False)]
    hasty = run(requests, act_pre=22, act_act_bank=44, rd_pre=4)
    patient = run(
        requests, policy=Policy(protect_row_hits=True), act_pre=22, act_act_bank=44, rd_pre=4
    )
    assert hasty.activates > patient.activates == 2


def test_writes_drain_between_the_watermarks() -> None:
    """32 queued writes go until fewer than 6.4 wait; then reads until more than 25.6 do."""
    requests = [(k % 16, 0, k % 2 == 0) for k in range(400)]
    order = np.argsort(run(requests).column_cycles, kind="stable")
    is_write = np.array([requests[k][2] for k in order])
    ends = np.flatnonzero(np.diff(is_write.astype(int))) + 1
    batches = np.split(is_write, ends)
    assert batches[0][0]
    assert len(batches[0]) >= 32 - 6
    assert min(len(batch) for batch in batches[:-2]) >= 19


def test_refresh_comes_every_refi_and_closes_all_rows() -> None:
    result = run([(k % 16, k // 512, False) for k in range(12000)])
    refreshes = [t for t, kind in kinds(result) if kind == "REFab"]
    assert len(refreshes) == result.cycles // DDR4.refi
    assert np.abs(np.diff(refreshes) - DDR4.refi).max() < 100
    before = [kind for t, kind in kinds(result) if t < refreshes[0]]
    assert before[-1] == "PREab"


def test_two_slots_let_a_row_and_a_column_command_share_a_cycle() -> None:
    requests = [(k % 16, k, False) for k in range(200)]
    one = [t for t, _ in kinds(run(requests))]
    two = [t for t, _ in kinds(run(requests, policy=Policy(dual_command=True)))]
    assert len(set(one)) == len(one)
    assert len(set(two)) < len(two)


def test_bank_queues_precharge_only_for_the_oldest_and_cap_hits_at_four() -> None:
    policy = Policy(per_bank_entries=8)
    requests = [(0, 1, False), (0, 2, False)] + [(0, 1, False)] * 5
    result = run(requests, policy=policy, rd_pre=4, act_pre=22, act_act_bank=44)
    assert np.argsort(result.column_cycles)[:5].tolist() == [0, 2, 3, 4, 1]


def test_trace_is_the_run_without_a_trace() -> None:
    generator = np.random.default_rng(1)
    banks, rows = generator.integers(0, 16, 500), generator.integers(0, 4, 500)
    writes = generator.random(500) < 0.3
    options: dict[str, Any] = {"gaps": DDR4, "organization": ONE_RANK, "policy": Policy()}
    plain = run_channel(banks, rows, writes, **options)
    traced = run_channel(banks, rows, writes, with_trace=True, **options)
    assert plain.cycles == traced.cycles
    assert traced.trace is not None
    counted = np.bincount(traced.trace.command, minlength=6)
    assert counted[[ACT, RD, WR]].tolist() == [plain.activates, plain.reads, plain.writes]


# -------------------------------------------------------------------- closed forms, no refresh

NO_REFRESH = {"refi": 2**40}
N = 2000


def test_row_misses_of_one_bank_take_trc_each() -> None:
    result = run([(0, k, False) for k in range(N)], **NO_REFRESH)
    assert result.cycles == (N - 1) * DDR4.act_act_bank + DDR4.act_rd + DDR4.cl + DDR4.burst


def test_hits_of_one_bank_group_take_tccd_l_each() -> None:
    result = run([(0, 0, False)] * N, **NO_REFRESH)
    assert result.cycles == DDR4.act_rd + (N - 1) * DDR4.rd_rd_l + DDR4.cl + DDR4.burst


def test_hits_of_two_bank_groups_fill_the_data_bus() -> None:
    result = run([(4 * (k % 2), 0, False) for k in range(N)], **NO_REFRESH)
    least = DDR4.act_rd + (N - 1) * DDR4.burst + DDR4.cl + DDR4.burst
    assert least <= result.cycles <= least + 2 * DDR4.rd_rd_l


def test_row_misses_of_all_banks_take_the_window_of_four_each_four() -> None:
    result = run([(4 * (k % 4) + k // 4 % 4, k // 16, False) for k in range(N)], **NO_REFRESH)
    least = (N // 4 - 1) * DDR4.faw
    assert least <= result.cycles <= 1.05 * least  # three commands a request share one slot


def test_refresh_takes_its_share_of_a_full_bus() -> None:
    """Per period: tRFC, and the rows of all banks closed before and opened again after it."""
    stream = [(4 * (k % 4), 0, False) for k in range(30000)]
    stretch = run(stream).cycles / run(stream, **NO_REFRESH).cycles
    share = DDR4.ref_act / DDR4.refi
    most = (DDR4.ref_act + DDR4.pre_ref + DDR4.rd_pre + DDR4.act_rd + 40) / DDR4.refi
    assert 1 / (1 - share) - 0.01 < stretch < 1 / (1 - most) + 0.005
