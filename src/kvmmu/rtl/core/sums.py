"""The beats of a row added up: one probability a cycle and way.

A row's beats come back to back and the sum stays in a register until row_end, so a beat never
waits for what the one before it wrote. A sum saturates at 2**24 - 1 instead of wrapping; with at
most 256 beats of 16 bits it does not get there.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import MASS_BITS, SUM_BITS, BlockConfig

__all__ = ["RowSums"]


class RowSums(wiring.Component):
    """Sum of the beats since the last row_end; valid in the cycle after a beat."""

    def __init__(self, config: BlockConfig) -> None:
        self.config = config
        super().__init__(
            {
                "accept": In(1),
                "masses": In(data.ArrayLayout(MASS_BITS, config.ways)),
                "row_end": In(1),
                "sums": Out(data.ArrayLayout(SUM_BITS, config.ways)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        starts = Signal(init=1)  # the next beat is a row's first
        sums = Signal(self.sums.shape(), reset_less=True)
        m.d.comb += self.sums.eq(sums)
        with m.If(self.accept):
            m.d.sync += starts.eq(self.row_end)
            for way in range(self.config.ways):
                held = Mux(starts, 0, sums[way])
                wide = Signal(SUM_BITS + 1, name=f"wide_{way}")
                m.d.comb += wide.eq(held + self.masses[way])
                m.d.sync += sums[way].eq(Mux(wide[-1], (1 << SUM_BITS) - 1, wide))
        return m
