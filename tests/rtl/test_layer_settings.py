"""A layer's settings are checked when they are written: the block stops at a C it cannot hold."""

from __future__ import annotations

from typing import Any

import pytest
from amaranth.sim import Simulator

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.kv_mmu import KvMmu
from kvmmu.rtl.ports import BlockError

CONFIG = BlockConfig(slots=8, ways=2, lanes=1, layers=3, position_bits=8)


def error_after(layer: int, num_slots: int) -> Any:
    """Write one layer's settings and return what the block says."""
    block = KvMmu(CONFIG)
    simulator = Simulator(block)
    simulator.add_clock(1e-6)
    said = []

    async def bench(context: Any) -> None:
        context.set(block.layer_settings.layer, layer)
        context.set(block.layer_settings.num_slots, num_slots)
        context.set(block.layer_settings.enable, 1)
        await context.tick()
        context.set(block.layer_settings.enable, 0)
        await context.tick().repeat(2)
        said.append(context.get(block.error))

    simulator.add_testbench(bench)
    simulator.run()
    return said[0]


@pytest.mark.parametrize(("layer", "num_slots"), [(0, 1), (2, 8), (1, 5)])
def test_a_layer_that_fits_is_taken(layer: int, num_slots: int) -> None:
    assert error_after(layer, num_slots) == BlockError.NONE


@pytest.mark.parametrize(("layer", "num_slots"), [(0, 0), (0, 9), (0, 15), (3, 8)])
def test_a_layer_that_does_not_fit_stops_the_block(layer: int, num_slots: int) -> None:
    assert error_after(layer, num_slots) == BlockError.OUT_OF_RANGE
