"""Random devices and streams: served once, no gap broken, never faster than the bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmmu.accel.dram.bounds import lower_bounds_cycles, peak_fraction
from kvmmu.accel.dram.checker import Command, check_trace, commands_of
from kvmmu.accel.dram.controller import ChannelResult, Organization, Policy, run_channel
from kvmmu.accel.dram.gaps import Gaps, Timings

TIMINGS = Timings(
    burst_cycles=4, t_cl_cycles=17, t_cwl_cycles=12, t_rcd_rd_cycles=17, t_rcd_wr_cycles=15,
    t_rp_cycles=16, t_ras_cycles=39, t_rc_cycles=56, t_wr_cycles=18, t_rtp_cycles=9,
    t_ccd_s_cycles=4, t_ccd_l_cycles=6, t_wtr_s_cycles=3, t_wtr_l_cycles=9, t_rrd_s_cycles=5,
    t_rrd_l_cycles=7, t_faw_cycles=26, t_rfc_cycles=120, t_refi_cycles=1500, rank_switch_cycles=2,
    turnaround_cycles=2,
)  # fmt: skip
MEASURED = {"refi", "burst", "cl", "cwl"}  # no distance between two commands


def random_run(
    seed: int,
    *,
    organization: Organization,
    policy: Policy,
    gaps: Gaps,
    num_requests: int = 400,
    num_rows: int = 3,
    write_share: float = 0.3,
) -> tuple[ChannelResult, np.ndarray]:
    generator = np.random.default_rng(seed)
    banks = generator.integers(0, organization.num_banks, num_requests)
    runs = np.repeat(np.arange(-(-num_requests // 4)), 4)[:num_requests]  # some locality
    banks = np.where(generator.random(num_requests) < 0.5, banks, banks[runs])
    rows = generator.integers(0, num_rows, num_requests)
    writes = generator.random(num_requests) < write_share
    result = run_channel(
        banks, rows, writes, gaps=gaps, organization=organization, policy=policy, with_trace=True
    )
    return result, banks


def organizations() -> st.SearchStrategy[Organization]:
    return st.builds(
        Organization,
        ranks=st.integers(1, 3),
        bank_groups=st.sampled_from([1, 2, 4]),
        banks_per_group=st.sampled_from([1, 2, 4]),
    )


def policies() -> st.SearchStrategy[Policy]:
    return st.builds(
        Policy,
        read_entries=st.integers(1, 40),
        write_entries=st.integers(4, 40),
        write_high=st.floats(2.0, 3.5),
        write_low=st.floats(0.5, 1.5),
        protect_row_hits=st.booleans(),
        dual_command=st.booleans(),
        per_bank_entries=st.sampled_from([0, 0, 1, 8]),
    )


def timings() -> st.SearchStrategy[Timings]:
    return st.builds(
        lambda **changed: replace(TIMINGS, **changed),
        burst_cycles=st.integers(1, 8),
        t_cwl_cycles=st.integers(2, 18),
        t_rcd_rd_cycles=st.integers(2, 30),
        t_rtp_cycles=st.integers(1, 20),
        t_ccd_l_cycles=st.integers(1, 12),
        t_rrd_s_cycles=st.integers(1, 12),
        t_faw_cycles=st.integers(4, 80),
        t_refi_cycles=st.integers(400, 2000),
        act_bus_cycles=st.integers(1, 2),
        t_ppd_cycles=st.integers(1, 4),
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    organization=organizations(),
    policy=policies(),
    device=timings(),
    write_share=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    num_rows=st.integers(1, 50),
)
def test_every_stream_is_served_once_within_all_constraints(
    seed: int,
    organization: Organization,
    policy: Policy,
    device: Timings,
    write_share: float,
    num_rows: int,
) -> None:
    gaps = Gaps.from_timings(device)
    result, banks = random_run(
        seed,
        organization=organization,
        policy=policy,
        gaps=gaps,
        num_rows=num_rows,
        write_share=write_share,
    )
    assert result.column_cycles.min() >= 0
    assert result.reads + result.writes == len(banks)
    assert result.trace is not None
    slots = 2 if policy.dual_command else 1
    assert check_trace(commands_of(result.trace), gaps, organization, slots=slots) == []
    bounds = lower_bounds_cycles(result, banks, gaps, organization)
    assert result.cycles >= max(bounds.values())
    assert peak_fraction(result, gaps) <= 1.0
    due = organization.ranks * (result.cycles // gaps.refi)
    assert due - 2 * organization.ranks <= result.refreshes <= due + organization.ranks


def _tight_traces() -> list[tuple[list[Command], Gaps, Organization, int]]:
    """Traces in which every constraint is met exactly somewhere."""
    organization = Organization(2, 2, 4)
    gaps = Gaps.from_timings(replace(TIMINGS, t_ppd_cycles=3))
    dual = replace(gaps, act_bus=2)
    found = []
    for policy in (
        Policy(write_high=3.5, write_low=1.5),
        Policy(per_bank_entries=8),
        Policy(dual_command=True),
    ):
        used = dual if policy.dual_command else gaps
        for seed in range(3):
            result, _ = random_run(
                seed, organization=organization, policy=policy, gaps=used, num_requests=3000
            )
            assert result.trace is not None
            slots = 2 if policy.dual_command else 1
            found.append((commands_of(result.trace), used, organization, slots))
    return found


@pytest.fixture(scope="module")
def tight_traces() -> list[tuple[list[Command], Gaps, Organization, int]]:
    return _tight_traces()


def test_checker_passes_the_controllers_traces(
    tight_traces: list[tuple[list[Command], Gaps, Organization, int]],
) -> None:
    for commands, gaps, organization, slots in tight_traces:
        assert check_trace(commands, gaps, organization, slots=slots) == []


@pytest.mark.parametrize("name", [name for name in Gaps.names() if name not in MEASURED])
def test_checker_reports_each_gap_raised_by_one(
    name: str, tight_traces: list[tuple[list[Command], Gaps, Organization, int]]
) -> None:
    """The controller is tight: no gap is kept longer than it must be, and none is overlooked."""
    for commands, gaps, organization, slots in tight_traces:
        raised = replace(gaps, **{name: getattr(gaps, name) + 1})
        if check_trace(commands[:6000], raised, organization, slots=slots):
            return
    pytest.fail(f"no trace meets {name} exactly")
