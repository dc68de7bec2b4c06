"""Cycles of the KV-MMU's RTL: one lane, its tables stepped in turn, nothing held back outside."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from amaranth.hdl import Value
from amaranth.sim import Simulator
from rtl_ports import advance, offer

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.kv_mmu import KvMmu
from kvmmu.rtl.ports import BlockError, Op
from kvmmu.rtl.transactions import BlockSettings, Command, LayerSettings
from kvmmu.rtl.verify.driver import write_settings
from kvmmu.rtl.verify.packing import command_bits, mass_beats

__all__ = ["Cycles", "step_tables"]


@dataclass
class Cycles:
    """Of each step of each table (step, table): its first and its last beat; when all was over."""

    first: dict[tuple[int, int], int] = field(default_factory=dict)
    last: dict[tuple[int, int], int] = field(default_factory=dict)
    over: int = 0

    def stream(self, step: int, tables: int) -> int:
        """Cycles of one step's beats, first to last, of all tables."""
        return self.last[step, tables - 1] - self.first[step, 0] + 1


class _Dram:
    """Keep table images; an asked one comes a row a cycle, `latency` cycles after the request."""

    def __init__(self, dut, latency):
        self.dut, self.latency = dut, latency
        self.images, self.coming = {}, []

    async def begin(self, ctx):
        ctx.set(self.dut.fetch.ready, 1)
        ctx.set(self.dut.image_out.ready, 1)

    def offer(self, ctx, cycle):
        is_there = bool(self.coming) and self.coming[0][0] <= cycle
        ctx.set(self.dut.image_in.valid, int(is_there))
        if is_there:
            ctx.set(Value.cast(self.dut.image_in.payload), self.coming[0][1])

    def look(self, ctx, cycle):
        out, fetch = self.dut.image_out, self.dut.fetch
        if ctx.get(out.valid):
            table = ctx.get(out.payload.table)
            if ctx.get(out.payload.is_header):
                self.images[table] = []
            self.images[table].append(ctx.get(Value.cast(out.payload)))
        if ctx.get(self.dut.image_in.valid) and ctx.get(self.dut.image_in.ready):
            self.coming.pop(0)
        if ctx.get(fetch.valid):
            image = self.images[ctx.get(fetch.payload.table)]
            self.coming = [(cycle + self.latency, beat) for beat in image]


def step_tables(
    *, slots, ways, beats, tables, store="sram", latency=0, is_loud=False, further_steps=2
) -> tuple[Cycles, int]:
    """Fill `tables` tables of one lane with a row's `beats` beats a row, then step them on.

    Returns cycles and the number of the first step of full tables. is_loud: masses near 1, which
    soon ask for a rescale; else none comes.
    """
    built = max(2 * ways, 1 << (slots - 1).bit_length())
    config = BlockConfig(built, ways, lanes=1, layers=tables, position_bits=8, store=store)
    settings = BlockSettings(tuple(LayerSettings(slots) for _ in range(tables)))
    rng = np.random.default_rng(0)
    low, high = (60000, 65536) if is_loud else (0, 4)
    commands, masses = [Command(Op.ADMIT)], []
    for step in range(slots + further_steps):
        rows = -(-min(step + 1, slots) // ways)
        for table in range(tables):
            commands.append(Command(Op.STEP, 0, table, 0))
            made = tuple(rng.integers(low, high, size=(beats, ways)) for _ in range(rows))
            masses += [(step, table, bits) for bits in mass_beats(config, made)]
    sent = [command_bits(config, command) for command in commands]
    return _run(config, settings, sent, masses, latency), slots


def _run(config, settings, commands, masses, latency):
    dut, found = KvMmu(config), Cycles()
    dram = _Dram(dut, latency) if config.store == "dram" else None

    async def bench(ctx):
        await write_settings(ctx, dut, config, settings)
        ctx.set(dut.write.ready, 1)
        ctx.set(dut.rsp.ready, 1)
        if dram:
            await dram.begin(ctx)
        sources = offer(dut, {"cmd": commands, "mass": [bits for *_, bits in masses]})
        coming = iter(masses)

        def look(moving):
            assert ctx.get(Value.cast(dut.error)) == BlockError.NONE.value
            assert found.over < 100_000, "the block is stuck"
            if dram:
                dram.look(ctx, found.over)
            if "mass" in moving:
                step, table, _ = next(coming)
                found.first.setdefault((step, table), found.over)
                found.last[step, table] = found.over

        while sources["mass"].beats or ctx.get(dut.busy):
            if dram:
                dram.offer(ctx, found.over)
            await advance(ctx, sources, look)
            found.over += 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return found
