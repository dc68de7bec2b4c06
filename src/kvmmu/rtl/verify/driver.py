"""Drive the block in Amaranth's simulator with gaps and back-pressure; compare all it answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from amaranth.hdl import Fragment, Value
from amaranth.sim import Simulator, SimulatorContext

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.model import BlockModel
from kvmmu.rtl.ports import BlockError, Op, command_layout
from kvmmu.rtl.transactions import BlockSettings
from kvmmu.rtl.verify.contents import Contents
from kvmmu.rtl.verify.images import ImageStore
from kvmmu.rtl.verify.packing import (
    command_bits,
    layer_fields,
    mass_beats,
    response_of,
    settings_bits,
    unpack,
    write_of,
)
from kvmmu.rtl.verify.scoreboard import CosimReport, Scoreboard
from kvmmu.rtl.verify.stimuli import Item
from kvmmu.rtl.verify.streams import Sink, Source

__all__ = ["Pace", "cosimulate", "write_settings"]

_STUCK_CYCLES = 200
"""Cycles without a beat, besides two passes over a table, after which the block is called stuck."""


@dataclass(frozen=True)
class Pace:
    """Give, a stream, the share of cycles in which the outside is not ready to move a beat.

    A source keeps valid up once it is up. 0 everywhere: back to back, nothing is held back. image_*
    are the DRAM's: gaps of image_in, stalls of image_out and fetch.
    """

    cmd_gap: float = 0.0
    mass_gap: float = 0.0
    rsp_stall: float = 0.0
    write_stall: float = 0.0
    image_gap: float = 0.0
    image_stall: float = 0.0

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be in [0, 1), got {share!r}")


def cosimulate(
    dut: Any,
    config: BlockConfig,
    *,
    settings: BlockSettings,
    items: Iterable[Item],
    rng: np.random.Generator,
    pace: Pace | None = None,
    check_every: int | None = None,
    most_mismatches: int = 1,
) -> CosimReport:
    """Run items through the block and the model; stops at the most_mismatches-th difference.

    The memories start with random contents. After each check_every items (all of them if None)
    the block is let run empty and every held table is compared; with store "dram" every image.
    """
    fragment = Fragment.get(dut, None)
    board = Scoreboard(BlockModel(config, settings))
    contents = Contents(config, fragment)
    run = _Run(dut, board, contents, pace or Pace(), rng)
    run.most_mismatches = most_mismatches

    async def bench(ctx: SimulatorContext) -> None:
        await run.start(ctx, settings)
        supply = iter(items)
        while batch := list(islice(supply, check_every)):
            await run.segment(ctx, batch)
            if run.is_over:
                break
            await run.compare(ctx)
        board.see_error(BlockError(ctx.get(Value.cast(dut.error))))

    simulator = Simulator(fragment)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return board.report


async def write_settings(
    ctx: SimulatorContext, dut: Any, config: BlockConfig, settings: BlockSettings
) -> None:
    """Apply the static settings and write every layer's, a cycle each."""
    ctx.set(Value.cast(dut.settings), settings_bits(config, settings))
    for fields in layer_fields(config, settings):
        for name, value in fields.items():
            ctx.set(getattr(dut.layer_settings, name), value)
        await ctx.tick()
    ctx.set(dut.layer_settings.enable, 0)


class _Run:
    """The streams of one simulation, advanced cycle by cycle."""

    def __init__(
        self,
        dut: Any,
        board: Scoreboard,
        contents: Contents,
        pace: Pace,
        rng: np.random.Generator,
    ) -> None:
        self.dut, self.board, self.contents, self.rng = dut, board, contents, rng
        self.config = config = board.model.config
        self.sources = {
            "cmd": Source(dut.cmd, pace.cmd_gap),
            "mass": Source(dut.mass, pace.mass_gap),
        }
        self.sinks = {
            "rsp": Sink(dut.rsp, pace.rsp_stall),
            "write": Sink(dut.write, pace.write_stall),
        }
        self.images: ImageStore | None = None
        if config.store == "dram":
            self.images = ImageStore(config)
            self.sources["image_in"] = Source(dut.image_in, pace.image_gap)
            self.sinks["fetch"] = Sink(dut.fetch, pace.image_stall)
            self.sinks["image_out"] = Sink(dut.image_out, pace.image_stall)
        self.quiet_cycles = 0
        self.stuck_cycles = _STUCK_CYCLES + 2 * config.rows
        self.most_mismatches = 1

    @property
    def is_over(self) -> bool:
        """Tell whether the block stopped or differed too often."""
        report = self.board.report
        return report.num_mismatches >= self.most_mismatches or report.error != BlockError.NONE

    async def start(self, ctx: SimulatorContext, settings: BlockSettings) -> None:
        """Scramble the memories and write the settings."""
        self.contents.scramble(ctx, self.rng)
        await write_settings(ctx, self.dut, self.config, settings)

    async def segment(self, ctx: SimulatorContext, items: list[Item]) -> None:
        """Run items until every answer has come and every beat is in."""
        for item in items:
            self.board.give(item)
            self.sources["cmd"].beats.append(command_bits(self.config, item.command))
            self.sources["mass"].beats.extend(mass_beats(self.config, item.masses))
        self.quiet_cycles = 0
        expects_stop = self.board.model.error != BlockError.NONE
        while not self.is_over:
            if self.quiet_cycles > self.stuck_cycles:
                if not expects_stop:
                    self.board.differ(f"no beat moved in {self.stuck_cycles} cycles")
                return
            waits = any(source.beats for source in self.sources.values())
            if not waits and self.board.is_settled and self.quiet_cycles > 0:
                return
            await self.cycle(ctx)

    async def compare(self, ctx: SimulatorContext) -> None:
        """Let the block run empty, then compare every held table that can be read."""
        for _ in range(self.stuck_cycles):
            if not ctx.get(self.dut.busy):
                break
            await self.cycle(ctx)
        for at in self.board.model.held_tables():
            number = self.config.table_of(*at)
            if self.images is None:
                self.board.check_table(at, self.contents.table(ctx, number))
            elif number in self.images.tables:
                self.board.check_table(at, self.images.table(number))

    async def cycle(self, ctx: SimulatorContext) -> None:
        """Advance one cycle: offer, look, tick, note what moved."""
        for source in self.sources.values():
            source.offer(ctx, self.rng)
        for sink in self.sinks.values():
            sink.set_ready(ctx, self.rng)
        taken = {name: sink.take(ctx) for name, sink in self.sinks.items()}
        moving = [source for source in self.sources.values() if source.moves(ctx)]
        error = BlockError(ctx.get(Value.cast(self.dut.error)))
        if error != BlockError.NONE and self.board.model.error == BlockError.NONE:
            self.board.see_error(error)
        for name, (bits, fault) in taken.items():
            fault = fault or ("" if bits is None else self._see(name, bits))
            if fault:
                self.board.differ(f"{name}: {fault}")
        if self.images is not None and self.sources["cmd"] in moving:
            self._release(self.images, self.sources["cmd"].beats[0])
        await ctx.tick()
        for source in moving:
            source.moved(ctx)
        is_quiet = not moving and all(bits is None for bits, _ in taken.values())
        self.quiet_cycles = self.quiet_cycles + 1 if is_quiet else 0
        self.board.report.cycles += 1
        ends = self.sources | self.sinks
        self.board.report.stall_cycles = {name: end.stalls for name, end in ends.items()}

    def _release(self, images: ImageStore, bits: int) -> None:
        """Let the DRAM forget a released lane's tables."""
        command = unpack(command_layout(self.config), bits)
        if command["op"] == int(Op.RELEASE.value):  # type: ignore[attr-defined]
            first = self.config.table_of(command["lane"], 0, 0)
            for table in range(first, first + self.config.tables_per_lane):
                images.forget(table)

    def _see(self, name: str, bits: int) -> str:
        """Pass a beat on to whoever it is for; returns what broke the contract."""
        if name == "write":
            self.board.see_write(write_of(self.config, bits))
        elif name == "rsp":
            self.board.see_response(response_of(self.config, bits))
        elif self.images is not None and name == "image_out":
            return self.images.take(bits)
        elif self.images is not None:
            beats, fault = self.images.fetch(bits)
            self.sources["image_in"].beats.extend(beats)
            return fault
        return ""
