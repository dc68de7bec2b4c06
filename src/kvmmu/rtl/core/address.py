"""Where a slot's row lies in DRAM, in four cycles; no page table.

address = layer's base + lane * lane_stride + (head * C_l + slot) * slot_stride  (modulo 2**40)

Sums of 40 bits are made in two limbs of 20, and a product in two halves, so that no carry runs
further than some 25 bits in one cycle:

    cycle 1   index = head * C_l + slot; lane * both limbs of lane_stride
    cycle 2   index * both halves of slot_stride; base + lane's part, limb by limb
    cycle 3   the slot's part; low limb of the address
    cycle 4   high limb
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import ADDRESS_BITS, STRIDE_BITS, BlockConfig
from kvmmu.rtl.ports import settings_layout, write_layout

__all__ = ["AddressPipe", "target_layout"]

LIMB = ADDRESS_BITS // 2
HALF = STRIDE_BITS // 2


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
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self._held = [
            Signal(write_layout(self.config), name=f"write_{n}", reset_less=True) for n in (1, 2, 3)
        ]
        self._has = Signal(3)
        self._moves = Signal(4)  # what is before stage n goes into it
        m.d.comb += [
            self._moves[3].eq(~self.write.valid | self.write.ready),
            *(self._moves[n].eq(~self._has[n] | self._moves[n + 1]) for n in (2, 1, 0)),
            self.target.ready.eq(self._moves[0]),
            self.busy.eq(self._has.any() | self.write.valid),
        ]
        arrives = [self.target.valid, *self._has]
        for n in range(3):
            with m.If(self._moves[n]):
                m.d.sync += self._has[n].eq(arrives[n])
        with m.If(self._moves[3]):
            m.d.sync += self.write.valid.eq(self._has[2])
        self._add_up(m, [self._moves[n] & arrives[n] for n in range(4)])
        return m

    def _add_up(self, m: Module, goes: list[Any]) -> None:
        """Compute, stage by stage, in the cycle in which a write goes into the stage."""
        target, settings = self.target.payload, self.settings
        first, second, third = self._held
        index_bits = self.config.slot_bits + 1 + len(target.write.head)
        index = Signal(index_bits, reset_less=True)  # rows in front of the slot's
        base = Signal(ADDRESS_BITS, reset_less=True)
        lane_low = Signal(LIMB + len(target.write.lane), reset_less=True)
        lane_high = Signal(LIMB, reset_less=True)
        by_low = Signal(index_bits + HALF, reset_less=True)
        by_high = Signal(index_bits + HALF, reset_less=True)
        start_low = Signal(LIMB + 1, reset_less=True)
        start_high = Signal(LIMB, reset_less=True)
        offset, low = Signal(ADDRESS_BITS), Signal(LIMB + 2)
        kept_low = Signal(LIMB + 2, reset_less=True)
        high = Signal(LIMB, reset_less=True)
        made = Signal(write_layout(self.config), reset_less=True)
        m.d.comb += self.write.payload.eq(made)
        with m.If(goes[0]):
            m.d.sync += [
                first.eq(target.write),
                base.eq(target.base),
                index.eq(target.write.head * target.num_slots + target.write.slot),
                lane_low.eq(target.write.lane * settings.lane_stride[:LIMB]),
                lane_high.eq(target.write.lane * settings.lane_stride[LIMB:]),
            ]
        with m.If(goes[1]):
            m.d.sync += [
                second.eq(first),
                by_low.eq(index * settings.slot_stride[:HALF]),
                by_high.eq(index * settings.slot_stride[HALF:]),
                start_low.eq(base[:LIMB] + lane_low[:LIMB]),
                start_high.eq(base[LIMB:] + lane_high + lane_low[LIMB:]),
            ]
        m.d.comb += [
            offset.eq(Cat(by_low[:HALF], by_low[HALF:] + by_high)),
            low.eq(start_low + offset[:LIMB]),
        ]
        with m.If(goes[2]):
            m.d.sync += [
                third.eq(second),
                kept_low.eq(low),
                high.eq(start_high + offset[LIMB:]),
            ]
        with m.If(goes[3]):
            m.d.sync += [
                made.eq(third),
                made.address.eq(Cat(kept_low[:LIMB], high + kept_low[LIMB:])),
            ]
