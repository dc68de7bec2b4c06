"""Which lanes are taken, and how many of their tables were touched since they were.

Both are a few registers a lane, so admission and release are O(1), and a released lane leaves no
score behind: the first step of a table counts its tokens from 0, whatever its SRAM holds.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import BlockConfig

__all__ = ["LaneTable"]


class LaneTable(wiring.Component):
    """Look a lane up, take the lowest free one, give one back, count a table's first touch.

    touch, take and give act in the cycle in which they are 1; is_active, touched and the lowest
    free lane are combinational.
    """

    def __init__(self, config: BlockConfig) -> None:
        self.config = config
        lane_bits = max(1, (config.lanes - 1).bit_length())
        count_bits = config.tables_per_lane.bit_length()
        super().__init__(
            {
                "lane": In(lane_bits),
                "is_active": Out(1),
                "touched": Out(count_bits),
                "touch": In(1),
                "give": In(1),
                "take": In(1),
                "free_lane": Out(lane_bits),
                "has_free": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        lanes = self.config.lanes
        active = Signal(lanes)
        counts = Array(
            Signal(self.touched.shape(), name=f"touched_{lane}") for lane in range(lanes)
        )
        m.d.comb += [
            self.is_active.eq(active.bit_select(self.lane, 1)),
            self.touched.eq(counts[self.lane]),
            self.has_free.eq(~active.all()),
        ]
        for lane in reversed(range(lanes)):  # the last assignment wins: the lowest free lane
            with m.If(~active[lane]):
                m.d.comb += self.free_lane.eq(lane)
        with m.If(self.touch):
            m.d.sync += counts[self.lane].eq(self.touched + 1)
        for lane in range(lanes):
            is_meant = self.lane == lane
            with m.If(self.take & (self.free_lane == lane) & self.has_free):
                m.d.sync += [active[lane].eq(1), counts[lane].eq(0)]
            with m.Elif(self.give & is_meant):
                m.d.sync += [active[lane].eq(0), counts[lane].eq(0)]
        return m
