"""A reset in the middle of work leaves a block that starts anew, whatever was under way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the RTL needs amaranth")

from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.kv_mmu import KvMmu
from kvmmu.rtl.model import BlockModel
from kvmmu.rtl.ports import BlockError, Op
from kvmmu.rtl.transactions import BlockSettings, Command, LayerSettings
from kvmmu.rtl.verify.packing import command_bits, layer_fields, mass_beats, settings_bits, write_of

CONFIG = BlockConfig(slots=8, ways=2, lanes=2, layers=1, position_bits=12)
SETTINGS = BlockSettings((LayerSettings(7),), num_sinks=0, window=2, head_shift=3)


def commands(steps: int) -> list[Command]:
    """Admit both lanes and step their tables in turn."""
    return [Command(Op.ADMIT)] * 2 + [Command(Op.STEP, n % 2) for n in range(steps)]


def masses_of(steps: int, rng: np.random.Generator) -> list[Any]:
    """Draw the beats of each step, large enough to rescale: up to eight a row."""
    made = []
    for n in range(steps):
        rows = -(-min(n // 2 + 1, 7) // CONFIG.ways)
        made.append(
            tuple(rng.integers(0, 65536, (rng.integers(1, 9), CONFIG.ways)) for _ in range(rows))
        )
    return made


async def set_up(context: Any, block: Any, config: BlockConfig, settings: BlockSettings) -> None:
    """Give the block its settings and take whatever it says."""
    context.set(block.settings.as_value(), settings_bits(config, settings))
    for fields in layer_fields(config, settings):
        for name, value in fields.items():
            context.set(getattr(block.layer_settings, name), value)
        await context.tick()
    context.set(block.layer_settings.enable, 0)
    context.set(block.rsp.ready, 1)
    context.set(block.write.ready, 1)


async def offer(context: Any, block: Any, name: str, beats: list[int]) -> None:
    """Put beats on a stream, one after the other."""
    stream = getattr(block, name)
    for beat in beats:
        context.set(stream.payload.as_value(), beat)
        context.set(stream.valid, 1)
        await context.tick().until(stream.ready)
    context.set(stream.valid, 0)


def run(cut: int, seed: int) -> tuple[list[Any], list[Any]]:
    """Work for `cut` cycles, reset, work again; -> writes seen after the reset, writes wanted."""
    block, reset = KvMmu(CONFIG), Signal()
    simulator = Simulator(ResetInserter(reset)(block))
    simulator.add_clock(1e-6)
    rng = np.random.default_rng(seed)
    steps = 30
    first, second = masses_of(200, rng), masses_of(steps, rng)
    wanted = BlockModel(CONFIG, SETTINGS).run(commands(steps), second)
    assert wanted.error == BlockError.NONE
    todo = {
        "cmd": [[command_bits(CONFIG, c) for c in commands(n)] for n in (200, steps)],
        "mass": [[b for m in made for b in mass_beats(CONFIG, m)] for made in (first, second)],
    }
    seen: list[Any] = []

    async def main(context: Any) -> None:
        await set_up(context, block, CONFIG, SETTINGS)
        waiting = {name: list(parts[0]) for name, parts in todo.items()}
        for cycle in range(cut + 1500):
            if cycle == cut:
                for name in waiting:
                    waiting[name] = list(todo[name][1])
                    context.set(getattr(block, name).valid, 0)
                context.set(reset, 1)
                await context.tick()
                context.set(reset, 0)
                seen.clear()
            await advance(context, waiting)

    async def advance(context: Any, waiting: dict[str, list[int]]) -> None:
        """Offer what waits, note what moves, tick."""
        moving = []
        for name, beats in waiting.items():
            stream = getattr(block, name)
            context.set(stream.valid, bool(beats))
            if beats:
                context.set(stream.payload.as_value(), beats[0])
        for name, beats in waiting.items():
            if beats and context.get(getattr(block, name).ready):
                moving.append(beats)
        if context.get(block.write.valid):
            seen.append(write_of(CONFIG, context.get(block.write.payload.as_value())))
        await context.tick()
        for beats in moving:
            beats.pop(0)

    simulator.add_testbench(main)
    simulator.run()
    return seen, wanted.writes


@pytest.mark.parametrize("seed", range(24))
def test_a_reset_at_any_time_gives_a_block_that_starts_anew(seed: int) -> None:
    seen, wanted = run(cut=40 + 11 * seed, seed=seed)
    assert seen == wanted


def test_an_answer_that_waits_stays_when_the_block_stops() -> None:
    """Two sinks of two slots: the second step leaves no victim while an ADMIT is unanswered."""
    config = BlockConfig(slots=4, ways=2, lanes=2, layers=1, position_bits=8)
    settings = BlockSettings((LayerSettings(2),), num_sinks=2, window=0)
    block = KvMmu(config)
    simulator = Simulator(block)
    simulator.add_clock(1e-6)
    levels: list[tuple[int, Any]] = []

    async def main(context: Any) -> None:
        await set_up(context, block, config, settings)
        todo = [Command(Op.ADMIT), Command(Op.STEP), Command(Op.STEP), Command(Op.ADMIT)]
        beat = (1 << 32) | 5
        context.set(block.mass.payload.as_value(), beat)
        context.set(block.mass.valid, 1)
        for command in todo:
            await offer(context, block, "cmd", [command_bits(config, command)])
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
