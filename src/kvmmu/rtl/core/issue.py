"""Which row enters the pipeline next: that of the last beat, or the next of a rescale."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.context import stage_layout

__all__ = ["RowIssue"]


class RowIssue(wiring.Component):
    """Take beats of the step whose turn it is; hold them back while a rescale runs.

    loaded pulses when context `loaded_which` gets a step; last_rows [2] are each context's last.
    is_writing and written_row tell of the write of this cycle: a row of the same parity waits.
    pending [2] marks steps to rescale, which starts once is_moving is 0; `started` acknowledges.
    """

    def __init__(self, config: BlockConfig) -> None:
        self.config = config
        super().__init__(
            {
                "halt": In(1),
                "valid": In(1),
                "row_end": In(1),
                "ready": Out(1),
                "accept": Out(1),
                "loaded": In(1),
                "loaded_which": In(1),
                "last_rows": In(data.ArrayLayout(config.row_bits, 2)),
                "is_writing": In(1),
                "written_row": In(config.row_bits),
                "is_moving": In(1),
                "pending": In(2),
                "started": Out(2),
                "issue": Out(stage_layout(config)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        row, fill = Signal(self.config.row_bits), Signal()
        streaming = Signal(2)  # contexts with rows still to come
        rescaling, which = Signal(), Signal()
        pass_row = Signal(self.config.row_bits)  # of the rescale
        takes_row, row_is_last, pass_is_last = Signal(), Signal(), Signal()
        meets_write = self.is_writing & (self.written_row[0] == row[0])
        m.d.comb += [
            self.ready.eq(
                streaming.bit_select(fill, 1)
                & ~(meets_write & self.row_end)
                & ~self.pending.any()
                & ~rescaling
                & ~self.halt
            ),
            self.accept.eq(self.ready & self.valid),
            takes_row.eq(self.accept & self.row_end),
            row_is_last.eq(row == self.last_rows[fill]),
            pass_is_last.eq(pass_row == self.last_rows[which]),
            self.issue.valid.eq(takes_row | rescaling),
            self.issue.rescales.eq(rescaling),
            self.issue.which.eq(Mux(rescaling, which, fill)),
            self.issue.row.eq(Mux(rescaling, pass_row, row)),
            self.issue.is_last.eq(Mux(rescaling, pass_is_last, row_is_last)),
        ]
        with m.If(takes_row):
            m.d.sync += row.eq(row + 1)
            with m.If(row_is_last):
                m.d.sync += [row.eq(0), fill.eq(~fill), streaming.bit_select(fill, 1).eq(0)]
        with m.If(self.loaded):
            m.d.sync += streaming.bit_select(self.loaded_which, 1).eq(1)
        with m.If(rescaling):
            m.d.sync += [pass_row.eq(pass_row + 1), rescaling.eq(~pass_is_last)]
        with m.Elif(self.pending.any() & ~self.is_moving):
            first = Mux(self.pending[0], 0, 1)
            m.d.comb += self.started.eq(Mux(self.pending[0], 0b01, 0b10))
            m.d.sync += [rescaling.eq(1), which.eq(first), pass_row.eq(0)]
        return m
