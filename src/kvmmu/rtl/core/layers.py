"""C_l and the base address of each layer, in one small SRAM."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import ADDRESS_BITS, BlockConfig
from kvmmu.rtl.core.sram import SinglePortSRAM
from kvmmu.rtl.ports import layer_settings_signature

__all__ = ["LayerTable"]


class LayerTable(wiring.Component):
    """Give what was written for a layer in the cycle after it was asked for."""

    def __init__(self, config: BlockConfig, *, macros: bool) -> None:
        self.config = config
        self._memory = SinglePortSRAM(
            config.layers, config.slot_bits + 1 + ADDRESS_BITS, macros=macros
        )
        super().__init__(
            {
                "setup": In(layer_settings_signature(config)),
                "read": In(1),
                "layer": In(max(1, (config.layers - 1).bit_length())),
                "num_slots": Out(config.slot_bits + 1),
                "base": Out(ADDRESS_BITS),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.memory = memory = self._memory
        m.d.comb += [
            memory.en.eq(self.setup.enable | self.read),
            memory.we.eq(self.setup.enable),
            memory.addr.eq(Mux(self.setup.enable, self.setup.layer, self.layer)),
            memory.wdata.eq(Cat(self.setup.num_slots, self.setup.base)),
            memory.wmask.eq(1),
            self.num_slots.eq(memory.rdata[: len(self.num_slots)]),
            self.base.eq(memory.rdata[len(self.num_slots) :]),
        ]
        return m
