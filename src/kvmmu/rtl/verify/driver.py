"""Drive the block in Amaranth's simulator with gaps and back-pressure; compare all it answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from amaranth.hdl import Fragment, Value
from amaranth.sim import Simulator, SimulatorContext

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.model import BlockModel
from kvmmu.rtl.ports import BlockError
from kvmmu.rtl.transactions import BlockSettings
from kvmmu.rtl.verify.contents import Contents
from kvmmu.rtl.verify.packing import (
    command_bits,
    layer_fields,
    mass_beats,
    response_of,
    settings_bits,
    write_of,
)
from kvmmu.rtl.verify.scoreboard import CosimReport, Scoreboard
from kvmmu.rtl.verify.stimuli import Item

__all__ = ["Pace", "cosimulate"]

_STUCK_CYCLES = 200
"""Cycles without a beat, besides two passes over a table, after which the block is called stuck."""


@dataclass(frozen=True)
class Pace:
    """Give, a stream, the share of cycles in which the outside is not ready to move a beat.

    A source keeps valid up once it is up. 0 everywhere: back to back, nothing is held back.
    """

    cmd_gap: float = 0.0
    mass_gap: float = 0.0
    rsp_stall: float = 0.0
    write_stall: float = 0.0

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
    the block is let run empty and every held table is compared.
    """
    fragment = Fragment.get(dut, None)
    board = Scoreboard(BlockModel(config, settings))
    contents = Contents(config, fragment)
    run = _Run(dut, config, board, contents, pace or Pace(), rng)
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


class _Source:
    """One input stream: beats wait here; valid stays up until the beat has moved."""

    def __init__(self, stream: Any, gap: float) -> None:
        self.stream, self.gap = stream, gap
        self.payload = Value.cast(stream.payload)
        self.beats: deque[int] = deque()
        self.is_valid = False
        self.stalls = 0

    def offer(self, ctx: SimulatorContext, rng: np.random.Generator) -> None:
        if self.is_valid or not self.beats or (self.gap and rng.random() < self.gap):
            return
        self.is_valid = True
        ctx.set(self.stream.valid, 1)
        ctx.set(self.payload, self.beats[0])

    def moves(self, ctx: SimulatorContext) -> bool:
        if not self.is_valid:
            return False
        if not ctx.get(self.stream.ready):
            self.stalls += 1
            return False
        return True

    def moved(self, ctx: SimulatorContext) -> None:
        self.beats.popleft()
        self.is_valid = False
        ctx.set(self.stream.valid, 0)


class _Sink:
    """One output stream; what waits must stay as it is."""

    def __init__(self, stream: Any, stall: float) -> None:
        self.stream, self.stall = stream, stall
        self.payload = Value.cast(stream.payload)
        self.waiting: int | None = None
        self.stalls = 0

    def take(self, ctx: SimulatorContext, rng: np.random.Generator) -> tuple[int | None, str]:
        """Return the beat that moves in this cycle, if one does, and what broke the contract."""
        ready = not (self.stall and rng.random() < self.stall)
        ctx.set(self.stream.ready, int(ready))
        if not ctx.get(self.stream.valid):
            fault = "valid fell before ready" if self.waiting is not None else ""
            self.waiting = None
            return None, fault
        bits = int(ctx.get(self.payload))
        fault = "payload changed while it waited" if self.waiting not in (None, bits) else ""
        self.waiting = None if ready else bits
        self.stalls += not ready
        return (bits if ready else None), fault


class _Run:
    """The streams of one simulation, advanced cycle by cycle."""

    def __init__(
        self,
        dut: Any,
        config: BlockConfig,
        board: Scoreboard,
        contents: Contents,
        pace: Pace,
        rng: np.random.Generator,
    ) -> None:
        self.dut, self.config, self.board, self.contents, self.rng = (
            dut,
            config,
            board,
            contents,
            rng,
        )
        self.cmd = _Source(dut.cmd, pace.cmd_gap)
        self.mass = _Source(dut.mass, pace.mass_gap)
        self.rsp = _Sink(dut.rsp, pace.rsp_stall)
        self.write = _Sink(dut.write, pace.write_stall)
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
        ctx.set(Value.cast(self.dut.settings), settings_bits(self.config, settings))
        for fields in layer_fields(self.config, settings):
            for name, value in fields.items():
                ctx.set(getattr(self.dut.layer_settings, name), value)
            await ctx.tick()
        ctx.set(self.dut.layer_settings.enable, 0)

    async def segment(self, ctx: SimulatorContext, items: list[Item]) -> None:
        """Run items until every answer has come and every beat is in."""
        for item in items:
            self.board.give(item)
            self.cmd.beats.append(command_bits(self.config, item.command))
            self.mass.beats.extend(mass_beats(self.config, item.masses))
        self.quiet_cycles = 0
        expects_stop = self.board.model.error != BlockError.NONE
        while not self.is_over:
            if self.quiet_cycles > self.stuck_cycles and not expects_stop:
                self.board.differ(f"no beat moved in {self.stuck_cycles} cycles")
                return
            is_done = not self.cmd.beats and not self.mass.beats and self.board.is_settled
            if is_done and self.quiet_cycles > 0:
                return
            if expects_stop and self.quiet_cycles > 64:
                return
            await self.cycle(ctx)

    async def compare(self, ctx: SimulatorContext) -> None:
        """Let the block run empty, then compare every held table."""
        for _ in range(self.stuck_cycles):
            if not ctx.get(self.dut.busy):
                break
            await self.cycle(ctx)
        for at in self.board.model.held_tables():
            number = self.config.table_of(*at)
            self.board.check_table(at, self.contents.table(ctx, number))

    async def cycle(self, ctx: SimulatorContext) -> None:
        """Advance one cycle: offer, look, tick, note what moved."""
        for source in (self.cmd, self.mass):
            source.offer(ctx, self.rng)
        written, write_fault = self.write.take(ctx, self.rng)
        answered, answer_fault = self.rsp.take(ctx, self.rng)
        moving = [source for source in (self.cmd, self.mass) if source.moves(ctx)]
        error = BlockError(ctx.get(Value.cast(self.dut.error)))
        for name, fault in (("write", write_fault), ("rsp", answer_fault)):
            if fault:
                self.board.differ(f"{name}: {fault}")
        if error != BlockError.NONE and self.board.model.error == BlockError.NONE:
            self.board.see_error(error)
        if written is not None:
            self.board.see_write(write_of(self.config, written))
        if answered is not None:
            self.board.see_response(response_of(self.config, answered))
        await ctx.tick()
        for source in moving:
            source.moved(ctx)
        is_quiet = not moving and written is None and answered is None
        self.quiet_cycles = self.quiet_cycles + 1 if is_quiet else 0
        self._count()

    def _count(self) -> None:
        report = self.board.report
        report.cycles += 1
        report.stall_cycles = {
            "cmd": self.cmd.stalls,
            "mass": self.mass.stalls,
            "rsp": self.rsp.stalls,
            "write": self.write.stalls,
        }
