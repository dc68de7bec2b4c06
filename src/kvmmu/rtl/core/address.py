"""Where a slot's row lies in DRAM, in three cycles; no page table.

address = layer's base + lane * lane_stride + (head * C_l + slot) * slot_stride  (modulo 2**40)
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import ADDRESS_BITS, BlockConfig
from kvmmu.rtl.ports import settings_layout, write_layout

__all__ = ["AddressPipe", "target_layout"]


def target_layout(config: BlockConfig) -> data.StructLayout:
    """Lay out a write without its address, and what the address is made of."""
    return data.StructLayout(
        {
            "write": write_layout(config),
            "num_slots": config.slot_bits + 1,
            "base": ADDRESS_BITS,
        }
    )


class AddressPipe(wiring.Component):
    """Add the address to a write; a stage waits only for the one behind it.

    Once ready, the input stays ready until it takes something.
    """

    def __init__(self, config: BlockConfig) -> None:
        self.config = config
        super().__init__(
            {
                "settings": In(settings_layout(config)),
                "target": In(stream.Signature(target_layout(config))),
                "write": Out(stream.Signature(write_layout(config))),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        moves_out, moves_second = Signal(), Signal()
        layout = write_layout(self.config)
        first, second = Signal(layout), Signal(layout)
        has_first, has_second = Signal(), Signal()
        target, settings = self.target.payload, self.settings
        index_bits = self.config.slot_bits + 1 + first.head.shape().width
        index = Signal(index_bits)  # rows of this lane and layer in front of the slot's
        lane_offset, start, slot_offset = (Signal(ADDRESS_BITS) for _ in range(3))
        base = Signal(ADDRESS_BITS)
        m.d.comb += [
            moves_out.eq(~self.write.valid | self.write.ready),
            moves_second.eq(~has_second | moves_out),
            self.target.ready.eq(~has_first | moves_second),
        ]
        with m.If(self.target.ready):
            m.d.sync += has_first.eq(self.target.valid)
            with m.If(self.target.valid):
                m.d.sync += [
                    first.eq(target.write),
                    base.eq(target.base),
                    index.eq(target.write.head * target.num_slots + target.write.slot),
                    lane_offset.eq(target.write.lane * settings.lane_stride),
                ]
        with m.If(moves_second):
            m.d.sync += has_second.eq(has_first)
            with m.If(has_first):
                m.d.sync += [
                    second.eq(first),
                    slot_offset.eq(index * settings.slot_stride),
                    start.eq(base + lane_offset),
                ]
        with m.If(moves_out):
            m.d.sync += self.write.valid.eq(has_second)
            with m.If(has_second):
                m.d.sync += [
                    self.write.payload.eq(second),
                    self.write.payload.address.eq(start + slot_offset),
                ]
        return m
