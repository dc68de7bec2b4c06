"""Closed-form lower bounds on the cycles that a channel needs, from what it had to do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvmmu.accel.dram.controller import ChannelResult, Organization
from kvmmu.accel.dram.gaps import Gaps

__all__ = ["lower_bounds_cycles", "peak_fraction"]


def lower_bounds_cycles(
    result: ChannelResult, banks: NDArray[np.int64], gaps: Gaps, organization: Organization
) -> dict[str, int]:
    """Return for each resource the fewest cycles until `result.cycles` that its use allows.

    `banks` [N] are the flat banks of the requests. data_bus: bursts follow each other; with
    refresh: a channel of one rank stands still for each as well. t_rrd_s, t_faw: activations of one
    rank. t_ccd_l: the busiest bank group.
    """
    num_columns, org = len(banks), organization
    latency = min(gaps.cl, gaps.cwl) + gaps.burst
    column = min(gaps.rd_rd_s, gaps.wr_wr_s)
    if org.ranks > 1:
        column = min(column, gaps.rd_rd_other_rank, gaps.wr_wr_other_rank)
    groups = np.bincount(banks // org.banks_per_group, minlength=1)
    per_rank = -(-result.activates // org.ranks)
    first_column = min(gaps.act_rd, gaps.act_wr)
    bounds = {
        "data_bus": (num_columns - 1) * column + latency,
        "t_rrd_s": (per_rank - 1) * gaps.act_act_s + first_column + latency,
        "t_faw": ((per_rank - 1) // 4) * gaps.faw + first_column + latency,
        "t_ccd_l": (int(groups.max()) - 1) * min(gaps.rd_rd_l, gaps.wr_wr_l) + latency,
    }
    if org.ranks == 1:
        stalls = max(0, result.refreshes - 1) * gaps.ref_act
        bounds["data_bus_plus_refresh"] = bounds["data_bus"] + stalls
    return bounds


def peak_fraction(result: ChannelResult, gaps: Gaps) -> float:
    """Return the share of the cycles in which the data bus carried data."""
    return (result.reads + result.writes) * gaps.burst / result.cycles
