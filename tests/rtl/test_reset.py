"""A reset in the middle of work leaves a block that starts anew, whatever was under way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the RTL needs amaranth")

from amaranth.hdl import Fragment, ResetInserter, Signal
from amaranth.sim import Simulator
from rtl_ports import advance, offer

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.kv_mmu import KvMmu
from kvmmu.rtl.model import BlockModel, num_rows
from kvmmu.rtl.ports import BlockError, Op
from kvmmu.rtl.transactions import BlockSettings, Command, LayerSettings
from kvmmu.rtl.verify.contents import Contents
from kvmmu.rtl.verify.driver import write_settings
from kvmmu.rtl.verify.packing import command_bits, mass_beats, response_of, write_of
from kvmmu.rtl.verify.scoreboard import Scoreboard
from kvmmu.rtl.verify.stimuli import Item

CONFIG = BlockConfig(slots=8, ways=2, lanes=2, layers=2, position_bits=12)
SETTINGS = tuple(
    BlockSettings(tuple(map(LayerSettings, slots)), num_sinks=0, window=1, head_shift=3)
    for slots in ((1, 7), (7, 1))
)
"""A first table of one slot is full at once and shows a victim that an earlier step left; one of
seven keeps its first token and shows what was added to its score."""


def draw(
    settings: BlockSettings, steps: int, rng: np.random.Generator, *, most_beats: int = 8
) -> list[Item]:
    """Admit both lanes and step their tables in turn; a score of many beats asks for rescales."""
    items = [Item(Command(Op.ADMIT))] * 2
    for n in range(steps):
        lane, layer = n % 2, n // 2 % 2
        rows = num_rows(n // 4, settings.layers[layer].num_slots, ways=CONFIG.ways)
        beats = rng.integers(1, most_beats + 1, rows)
        masses = tuple(rng.integers(0, 65536, (count, CONFIG.ways)) for count in beats)
        items.append(Item(Command(Op.STEP, lane, layer), masses))
    return items


def beats_of(items: list[Item]) -> dict[str, list[int]]:
    """List what the streams carry."""
    return {
        "cmd": [command_bits(CONFIG, item.command) for item in items],
        "mass": [beat for item in items for beat in mass_beats(CONFIG, item.masses)],
    }


def run(cut: int, seed: int, *, steps: int = 40) -> Scoreboard:
    """Work for `cut` cycles, reset, work again and compare all that comes and is left in SRAM."""
    block, reset = KvMmu(CONFIG), Signal()
    fragment = Fragment.get(ResetInserter(reset)(block), None)
    contents = Contents(CONFIG, fragment)
    rng = np.random.default_rng(seed)
    settings = SETTINGS[seed // 2 % 2]
    before = draw(
        settings, 200, rng, most_beats=(8, 1)[seed % 2]
    )  # rows cut in two, or a full pipeline
    after = draw(settings, steps, rng)
    board = Scoreboard(BlockModel(CONFIG, settings))
    for item in after:
        board.give(item)
    done = []

    async def main(ctx: Any) -> None:
        await write_settings(ctx, block, CONFIG, settings)
        ctx.set(block.rsp.ready, 1)
        ctx.set(block.write.ready, 1)
        sources = offer(block, beats_of(before))
        for _ in range(cut):
            await advance(ctx, sources)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        sources = offer(block, beats_of(after))

        def look(_: list[str]) -> None:
            if ctx.get(block.write.valid):
                board.see_write(write_of(CONFIG, ctx.get(block.write.payload.as_value())))
            if ctx.get(block.rsp.valid):
                board.see_response(response_of(CONFIG, ctx.get(block.rsp.payload.as_value())))
            done.append(ctx.get(block.done))

        while any(source.beats for source in sources.values()) or ctx.get(block.busy):
            await advance(ctx, sources, look)
            assert len(done) < 3000, "the block is stuck"
        assert sum(done) == steps
        for at in board.model.held_tables():
            board.check_table(at, contents.table(ctx, CONFIG.table_of(*at)))

    simulator = Simulator(fragment)
    simulator.add_clock(1e-6)
    simulator.add_testbench(main)
    simulator.run()
    return board


@pytest.mark.parametrize("seed", range(24))
def test_a_reset_at_any_time_gives_a_block_that_starts_anew(seed: int) -> None:
    board = run(cut=40 + 11 * seed, seed=seed)
    assert board.report.mismatches == []
    assert board.is_settled
    assert board.report.tables_checked == CONFIG.tables


def test_a_reset_clears_an_error_whenever_it_comes() -> None:
    """One slot that the newest two tokens keep: its first step leaves no victim."""
    settings = BlockSettings((LayerSettings(1), LayerSettings(1)), window=2)
    items = [Item(Command(Op.ADMIT)), Item(Command(Op.STEP), (np.full((1, 2), 9),))]
    block, reset = KvMmu(CONFIG), Signal()
    simulator = Simulator(ResetInserter(reset)(block))
    simulator.add_clock(1e-6)
    errors: list[tuple[Any, Any]] = []

    async def main(ctx: Any) -> None:
        await write_settings(ctx, block, CONFIG, settings)
        ctx.set(block.rsp.ready, 1)
        ctx.set(block.write.ready, 1)
        for cut in range(1, 25):
            sources = offer(block, beats_of(items))
            for _ in range(cut):
                await advance(ctx, sources)
            before = ctx.get(block.error)
            for source in sources.values():
                ctx.set(source.stream.valid, 0)
            ctx.set(reset, 1)
            await ctx.tick()
            ctx.set(reset, 0)
            await ctx.tick().repeat(2)
            errors.append((before, ctx.get(block.error)))

    simulator.add_testbench(main)
    simulator.run()
    assert {before for before, _ in errors} == {BlockError.NONE, BlockError.NO_VICTIM}
    assert {after for _, after in errors} == {BlockError.NONE}


def test_an_answer_that_waits_stays_when_the_block_stops() -> None:
    """Two sinks of two slots: the second step leaves no victim while an ADMIT is unanswered."""
    config = BlockConfig(slots=4, ways=2, lanes=2, layers=1, position_bits=8)
    settings = BlockSettings((LayerSettings(2),), num_sinks=2, window=0)
    block = KvMmu(config)
    simulator = Simulator(block)
    simulator.add_clock(1e-6)
    levels: list[tuple[int, Any]] = []

    async def main(context: Any) -> None:
        await write_settings(context, block, config, settings)
        context.set(block.rsp.ready, 1)
        context.set(block.write.ready, 1)
        todo = [Command(Op.ADMIT), Command(Op.STEP), Command(Op.STEP), Command(Op.ADMIT)]
        beat = (1 << 32) | 5
        context.set(block.mass.payload.as_value(), beat)
        context.set(block.mass.valid, 1)
        for command in todo:
            sources = offer(block, {"cmd": [command_bits(config, command)]})
            while sources["cmd"].beats:
                await advance(context, sources)
            if command is todo[2]:
                context.set(block.rsp.ready, 0)
        for _ in range(30):
            levels.append((context.get(block.rsp.valid), context.get(block.error)))
            await context.tick()

    simulator.add_testbench(main)
    simulator.run()
    assert levels[-1] == (1, BlockError.NO_VICTIM)
    first = next(n for n, (valid, _) in enumerate(levels) if valid)
    assert all(valid for valid, _ in levels[first:])
