"""What the ports say besides the streams: busy until all is out, and head_shift over its range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the RTL needs amaranth")

from amaranth.sim import Simulator
from rtl_ports import advance, offer

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.kv_mmu import KvMmu
from kvmmu.rtl.ports import Op
from kvmmu.rtl.transactions import BlockSettings, Command, LayerSettings
from kvmmu.rtl.verify.driver import cosimulate, write_settings
from kvmmu.rtl.verify.packing import command_bits, mass_beats
from kvmmu.rtl.verify.stimuli import Item, Mix, draw_items, draw_settings

CONFIG = BlockConfig(slots=4, ways=2, lanes=1, layers=1, position_bits=8)


def test_block_is_busy_until_its_write_is_taken() -> None:
    block = KvMmu(CONFIG)
    simulator = Simulator(block)
    simulator.add_clock(1e-6)
    seen: list[tuple[int, int, int]] = []

    async def main(ctx: Any) -> None:
        await write_settings(ctx, block, CONFIG, BlockSettings((LayerSettings(4),)))
        ctx.set(block.rsp.ready, 1)
        commands = [Command(Op.ADMIT), Command(Op.STEP)]
        masses = mass_beats(CONFIG, (np.full((1, 2), 9),))
        sent = {"cmd": [command_bits(CONFIG, one) for one in commands], "mass": masses}
        sources = offer(block, sent)
        for cycle in range(40):
            ctx.set(block.write.ready, int(cycle >= 30))
            seen.append((ctx.get(block.busy), ctx.get(block.done), ctx.get(block.write.valid)))
            await advance(ctx, sources)

    simulator.add_testbench(main)
    simulator.run()
    busy, done, valid = (list(column) for column in zip(*seen))
    assert sum(done) == 1
    assert done.index(1) < 20
    assert all(valid[done.index(1) : 31])
    assert busy == [0] + [1] * 30 + [0] * 9  # from the first command to the taken write


@pytest.mark.parametrize("head_shift", [7, 8, 11, 15])
def test_masses_are_shifted_by_every_bit_of_head_shift(head_shift: int) -> None:
    """Eight beats a row leave up to four bits of a sum behind a shift of 15."""
    rng = np.random.default_rng(head_shift)
    settings = draw_settings(rng, CONFIG, head_shift=head_shift)
    mix = Mix(most_beats=8, masses={"uniform": 1.0, "full": 1.0})
    items: list[Item] = list(draw_items(rng, CONFIG, settings=settings, num_steps=40, mix=mix))
    made = cosimulate(KvMmu(CONFIG), CONFIG, settings=settings, items=items, rng=rng, check_every=8)
    assert made.mismatches == []
    assert made.tables_checked > 0
