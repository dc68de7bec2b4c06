"""Gaps: the smallest distances between DRAM commands, derived from a data sheet's timings.

A gap is counted in clock cycles from issue to issue: a command with gap n after another, issued in
cycle t, may issue in cycle t + n and not before. `other_rank` gaps bind across ranks of a channel.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

__all__ = ["Gaps", "Timings"]


@dataclass(frozen=True)
class Timings:
    """Timings of a device in clock cycles, named as JEDEC standards name them.

    `burst_cycles` is BL/2 of the clock that commands use; `act_bus_cycles` is how long one ACT
    holds the row command bus (2 in HBM2); `rank_switch_cycles` is the bubble of the data bus
    between ranks; `turnaround_cycles` the one between a read and a write.
    """

    burst_cycles: int
    t_cl_cycles: int
    t_cwl_cycles: int
    t_rcd_rd_cycles: int
    t_rcd_wr_cycles: int
    t_rp_cycles: int
    t_ras_cycles: int
    t_rc_cycles: int
    t_wr_cycles: int
    t_rtp_cycles: int
    t_ccd_s_cycles: int
    t_ccd_l_cycles: int
    t_wtr_s_cycles: int
    t_wtr_l_cycles: int
    t_rrd_s_cycles: int
    t_rrd_l_cycles: int
    t_faw_cycles: int
    t_rfc_cycles: int
    t_refi_cycles: int
    rank_switch_cycles: int
    turnaround_cycles: int
    act_bus_cycles: int = 1
    t_ppd_cycles: int = 1


@dataclass(frozen=True)
class Gaps:
    """Every gap that the controller keeps and the checker tests, in cycles; order is the kernel's.

    `_s` is another bank group of the rank, `_l` the same one. refi is a period, cl, cwl and burst
    place the data; the others are distances between commands.
    """

    burst: int
    cl: int
    cwl: int
    rd_rd_s: int
    rd_rd_l: int
    wr_wr_s: int
    wr_wr_l: int
    rd_wr: int
    wr_rd_s: int
    wr_rd_l: int
    rd_pre: int
    wr_pre: int
    act_act_bank: int
    act_rd: int
    act_wr: int
    act_pre: int
    pre_act: int
    act_act_s: int
    act_act_l: int
    faw: int
    ref_act: int
    pre_ref: int
    act_ref: int
    refi: int
    rd_rd_other_rank: int
    rd_wr_other_rank: int
    wr_rd_other_rank: int
    wr_wr_other_rank: int
    act_bus: int
    pre_pre: int

    @classmethod
    def from_timings(cls, t: Timings) -> Gaps:
        """Derive the gaps of a device from its timings by the rules of the JEDEC state diagrams.

        A column command finds its data `cl` or `cwl` cycles later; a write recovers after its last
        data beat. A command bus held for n cycles by ACT moves ACT n - 1 cycles ahead of its
        effect.
        """
        held = t.act_bus_cycles - 1
        burst, cl, cwl = t.burst_cycles, t.t_cl_cycles, t.t_cwl_cycles
        column_s, column_l = max(burst, t.t_ccd_s_cycles), max(burst, t.t_ccd_l_cycles)
        return cls(
            burst=burst,
            cl=cl,
            cwl=cwl,
            rd_rd_s=column_s,
            rd_rd_l=column_l,
            wr_wr_s=column_s,
            wr_wr_l=column_l,
            rd_wr=cl + burst + t.turnaround_cycles - cwl,
            wr_rd_s=cwl + burst + t.t_wtr_s_cycles,
            wr_rd_l=cwl + burst + t.t_wtr_l_cycles,
            rd_pre=t.t_rtp_cycles,
            wr_pre=cwl + burst + t.t_wr_cycles,
            act_act_bank=t.t_rc_cycles,
            act_rd=t.t_rcd_rd_cycles + held,
            act_wr=t.t_rcd_wr_cycles + held,
            act_pre=t.t_ras_cycles + held,
            pre_act=t.t_rp_cycles - held,
            act_act_s=t.t_rrd_s_cycles,
            act_act_l=t.t_rrd_l_cycles,
            faw=t.t_faw_cycles,
            ref_act=t.t_rfc_cycles - held,
            pre_ref=t.t_rp_cycles,
            act_ref=t.t_rc_cycles + held,
            refi=t.t_refi_cycles,
            rd_rd_other_rank=burst + t.rank_switch_cycles,
            rd_wr_other_rank=max(1, cl + burst + t.rank_switch_cycles - cwl),
            wr_rd_other_rank=max(1, cwl + burst + t.rank_switch_cycles - cl),
            wr_wr_other_rank=burst + t.rank_switch_cycles,
            act_bus=t.act_bus_cycles,
            pre_pre=t.t_ppd_cycles,
        )

    @classmethod
    def from_effective(
        cls,
        effective: dict[str, int],
        *,
        refi_cycles: int,
        act_bus_cycles: int = 1,
        ppd_cycles: int = 1,
    ) -> Gaps:
        """Build gaps from distances measured on a command trace, named as the golden cases do."""
        held = act_bus_cycles - 1
        burst, cl, cwl = (effective[k] for k in ("burst_cycles", "t_cl_cycles", "t_cwl_cycles"))
        names = {short: f"{long}_cycles" for short, long in _EFFECTIVE.items()}
        return cls(
            burst=burst,
            cl=cl,
            cwl=cwl,
            pre_ref=effective["pre_to_act_cycles"] + held,
            act_ref=effective["act_to_act_same_bank_cycles"] + held,
            refi=refi_cycles,
            rd_rd_other_rank=burst,
            rd_wr_other_rank=max(1, cl + burst - cwl),
            wr_rd_other_rank=max(1, cwl + burst - cl),
            wr_wr_other_rank=burst,
            act_bus=act_bus_cycles,
            pre_pre=ppd_cycles,
            **{short: effective[long] for short, long in names.items()},
        )

    def as_array(self) -> NDArray[np.int64]:
        """Return the gaps in the kernel's order, int64 [number of gaps]."""
        return np.array(astuple(self), dtype=np.int64)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names in the kernel's order."""
        return tuple(field.name for field in fields(cls))


_EFFECTIVE = {
    "rd_rd_s": "rd_to_rd_other_bankgroup",
    "rd_rd_l": "rd_to_rd_same_bankgroup",
    "wr_wr_s": "wr_to_wr_other_bankgroup",
    "wr_wr_l": "wr_to_wr_same_bankgroup",
    "rd_wr": "rd_to_wr",
    "wr_rd_s": "wr_to_rd_other_bankgroup",
    "wr_rd_l": "wr_to_rd_same_bankgroup",
    "rd_pre": "rd_to_pre",
    "wr_pre": "wr_to_pre",
    "act_act_bank": "act_to_act_same_bank",
    "act_rd": "act_to_rd",
    "act_wr": "act_to_wr",
    "act_pre": "act_to_pre",
    "pre_act": "pre_to_act",
    "act_act_s": "act_to_act_other_bankgroup",
    "act_act_l": "act_to_act_same_bankgroup",
    "faw": "act_window_of_4",
    "ref_act": "ref_to_act",
}
