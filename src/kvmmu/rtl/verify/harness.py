"""The harness of the bounded model checker: the block, its user's rules, one watched table.

The inputs are free; what the ports' contract asks of a user is assumed: streams keep what they
offer, commands name admitted lanes, rows come as a step needs them. Two simplifications, which the
random cosimulation has not: RELEASE is offered once all masses are in, and four bits of a mass
are free.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import (
    Array,
    Assert,
    Assume,
    Cat,
    ClockDomain,
    Cover,
    Module,
    Mux,
    Signal,
    Value,
)
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from kvmmu.rtl.config import MASS_BITS, BlockConfig
from kvmmu.rtl.core.kv_mmu import KvMmu
from kvmmu.rtl.ports import BlockError, Op, command_layout, mass_layout, settings_layout
from kvmmu.rtl.verify.shadow import ShadowTable

__all__ = ["COVERS", "FormalBench"]

COVERS = ("evicts_by_score", "evicts_after_rescale", "evicts_on_tie", "takes_lane_again")
_QUEUE = 4
_WRITES = 8
"""Writes not yet taken: those of steps whose masses are all in wait in the block's address pipe."""
_DULL_BITS = 0x3FFC
"""Bits of a mass that the harness holds at 0: the solver compares two ways to add and shift, which
16 free bits a mass make too hard. What is left draws 0, tiny, large and full masses."""


class FormalBench(wiring.Component):
    """The block, its user's rules, and one watched lane's table beside it.

    most_slots bounds C_l below the slots built: a small table is full, and evicts, early in a run.
    """

    def __init__(
        self,
        config: BlockConfig,
        *,
        block: Any = KvMmu,
        covers: bool = False,
        most_slots: int | None = None,
    ) -> None:
        if config.tables_per_lane != 1 or config.store != "sram":
            raise ValueError(f"config must have one table a lane, on chip, got {config!r}")
        self.config, self.block, self.covers = config, block, covers
        self.most_slots = config.slots if most_slots is None else most_slots
        lane_bits = command_layout(config)["lane"].width
        super().__init__(
            {
                "clk": In(1),
                "settings": In(settings_layout(config)),
                "num_slots": In(config.slot_bits + 1),
                "watched": In(lane_bits),
                "cmd": In(command_layout(config)),
                "cmd_valid": In(1),
                "mass": In(mass_layout(config)),
                "mass_valid": In(1),
                "rsp_ready": In(1),
                "write_ready": In(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.domains.sync = domain = ClockDomain(reset_less=True)
        m.d.comb += domain.clk.eq(self.clk)
        m.submodules.dut = self._dut = self.block(self.config, macros=True)
        m.submodules.shadow = self._shadow = ShadowTable(self.config)
        self._age = Signal(2)  # cycle 0 writes the layer's settings, cycle 1 lets them settle
        m.d.sync += self._age.eq(Mux(self._age == 3, 3, self._age + 1))
        self._connect(m)
        self._steady(m)
        self._commands(m)
        self._masses(m)
        self._check(m)
        return m

    def _connect(self, m: Module) -> None:
        dut, shadow = self._dut, self._shadow
        m.d.comb += [
            dut.settings.eq(self.settings),
            dut.layer_settings.enable.eq(self._age == 0),
            dut.layer_settings.layer.eq(0),
            dut.layer_settings.num_slots.eq(self.num_slots),
            dut.layer_settings.base.eq(0),
            dut.cmd.payload.eq(self.cmd),
            dut.cmd.valid.eq(self.cmd_valid),
            dut.mass.payload.eq(self.mass),
            dut.mass.valid.eq(self.mass_valid),
            dut.rsp.ready.eq(self.rsp_ready),
            dut.write.ready.eq(self.write_ready),
            shadow.settings.eq(self.settings),
            shadow.num_slots.eq(self.num_slots),
        ]

    def _steady(self, m: Module) -> None:
        """Assume settings that never change, that fit, and streams that keep their word."""
        config, settings = self.config, self.settings
        window = Mux(settings.window == 0, 1, settings.window)
        m.d.comb += [
            Assume(self.num_slots <= self.most_slots),
            Assume(settings.num_sinks + window <= self.num_slots),
            Assume(settings.decay_shift <= 16),
            Assume(settings.head_shift <= 1),
            Assume(self.watched < config.lanes),
            Assume((self._age > 1) | ~(self.cmd_valid | self.mass_valid)),
        ]
        fixed = (Value.cast(settings), self.num_slots, self.watched)
        for n, value in enumerate(fixed):
            before = Signal(len(value), name=f"fixed_{n}")
            m.d.sync += before.eq(value)
            m.d.comb += Assume((self._age == 0) | (before == value))
        dut = self._dut
        for name, stream in (("cmd", dut.cmd), ("mass", dut.mass)):
            kept = self._kept(m, name, stream)
            m.d.comb += Assume(kept)
        for name, stream in (("rsp", dut.rsp), ("write", dut.write)):
            m.d.comb += Assert(self._kept(m, name, stream))

    def _kept(self, m: Module, name: str, stream: Any) -> Value:
        """Tell whether a beat that waited in the last cycle is still there, unchanged."""
        payload = Value.cast(stream.payload)
        waited, before = Signal(name=f"{name}_waited"), Signal(len(payload), name=f"{name}_was")
        m.d.sync += [waited.eq(stream.valid & ~stream.ready), before.eq(payload)]
        return ~waited | (stream.valid & (payload == before))

    def _commands(self, m: Module) -> None:
        """Assume commands of admitted lanes; count steps under way."""
        config, dut = self.config, self._dut
        active = Signal(config.lanes)
        self._open_steps = Signal(4)  # accepted, masses not all in
        self._mass_done = Signal()
        accepts = dut.cmd.valid & dut.cmd.ready
        is_step, is_release = self.cmd.op == Op.STEP, self.cmd.op == Op.RELEASE
        is_active = active.bit_select(self.cmd.lane, 1)
        waits_answer = Signal()
        with m.If(dut.cmd.valid):
            m.d.comb += [
                Assume((self.cmd.op.as_value() != 3) & (self.cmd.lane < config.lanes)),
                Assume((self.cmd.layer == 0) & (self.cmd.head == 0)),
                Assume(~(is_step | is_release) | is_active),
                Assume(~is_step | (self._open_steps < _QUEUE) & ~waits_answer),
                Assume(~is_release | (self._open_steps == 0)),
            ]
        answered = dut.rsp.valid & dut.rsp.ready
        admits = answered & dut.rsp.payload.accepted
        self._step_taken = step_taken = accepts & is_step
        self._tokens = Array(
            Signal(config.position_bits + 1, name=f"tokens_{n}") for n in range(config.lanes)
        )
        m.d.sync += self._open_steps.eq(self._open_steps + step_taken - self._mass_done)
        with m.If(accepts & (self.cmd.op == Op.ADMIT)):
            m.d.sync += waits_answer.eq(1)
        with m.Elif(answered):
            m.d.sync += waits_answer.eq(0)
        with m.If(admits):
            m.d.sync += active.bit_select(dut.rsp.payload.lane, 1).eq(1)
            m.d.sync += self._tokens[dut.rsp.payload.lane].eq(0)
            m.d.comb += Assert(~active.bit_select(dut.rsp.payload.lane, 1))
        with m.If(answered):
            m.d.comb += Assert(dut.rsp.payload.accepted == ~active.all())
        with m.If(accepts & is_release):
            m.d.sync += active.bit_select(self.cmd.lane, 1).eq(0)
        self._released = accepts & is_release & (self.cmd.lane == self.watched)
        m.d.comb += self._shadow.clear.eq(self._released)
        self._steps_unwritten = Signal(4)
        self._written = dut.write.valid & dut.write.ready
        m.d.sync += self._steps_unwritten.eq(self._steps_unwritten + step_taken - self._written)

    def _masses(self, m: Module) -> None:
        """Assume the rows that the oldest step needs, of one or two beats each."""
        config, dut, shadow = self.config, self._dut, self._shadow
        queue = Array(
            Signal(self.watched.shape(), name=f"queue_{n}") for n in range(_QUEUE)
        )  # lanes of the steps whose masses are not all in, oldest first
        last_rows = Array(Signal(config.row_bits, name=f"last_row_{n}") for n in range(_QUEUE))
        first, size = Signal(range(_QUEUE)), Signal(range(_QUEUE + 1))
        row, is_second, is_last = Signal(config.row_bits), Signal(), Signal()
        accepts = dut.mass.valid & dut.mass.ready
        bits = Value.cast(self.mass.masses)
        is_dull = sum((1 << way * MASS_BITS) * _DULL_BITS for way in range(config.ways))
        m.d.comb += [
            is_last.eq(row == last_rows[first]),
            self._mass_done.eq(accepts & self.mass.row_end & is_last),
            Assume(~dut.mass.valid | (size > 0)),
            Assume(~dut.mass.valid | ~is_second | self.mass.row_end),
            Assume(~dut.mass.valid | self.mass.row_end | (self.settings.head_shift == 1)),
            Assume((bits & is_dull) == 0),
            shadow.beat.eq(accepts & (queue[first] == self.watched)),
            shadow.row.eq(row),
            shadow.row_end.eq(self.mass.row_end),
            shadow.last.eq(is_last),
            shadow.masses.eq(self.mass.masses),
        ]
        tokens = self._tokens[self.cmd.lane]
        with m.If(self._step_taken):
            place = (first + size)[: len(first)]
            m.d.sync += [
                queue[place].eq(self.cmd.lane),
                last_rows[place].eq(
                    Mux(tokens < self.num_slots, tokens, self.num_slots - 1) >> config.way_bits
                ),
                tokens.eq(tokens + 1),
            ]
        m.d.sync += size.eq(size + self._step_taken - self._mass_done)
        with m.If(accepts):
            m.d.sync += is_second.eq(~self.mass.row_end)
            with m.If(self.mass.row_end):
                m.d.sync += row.eq(Mux(is_last, 0, row + 1))
        with m.If(self._mass_done):
            m.d.sync += first.eq(first + 1)
        self._take(m, self._mass_done & (queue[first] == self.watched))

    def _take(self, m: Module, done: Value) -> None:
        """Let the shadow take a token once the watched table's step before is over."""
        ours = Signal(range(_QUEUE + 1))  # the watched lane's steps, masses not all in
        is_taken = Signal()
        is_ours = self._step_taken & (self.cmd.lane == self.watched)
        m.d.comb += self._shadow.take.eq((ours > 0) & ~is_taken)
        m.d.sync += [
            ours.eq(ours + is_ours - done),
            is_taken.eq((is_taken | self._shadow.take) & ~done),
        ]

    def _check(self, m: Module) -> None:
        """Assert the write of the watched lane, one write a step, and no error."""
        dut, shadow = self._dut, self._shadow
        write = dut.write.payload
        is_ours = self._written & (write.lane == self.watched)
        wanted = {"slot": shadow.slot, "position": shadow.position, "evicts": shadow.evicts}
        wanted["protects"] = shadow.protects
        wanted["marks"] = self._marks(m)
        kept = {
            name: Array(Signal(len(value), name=f"wanted_{name}_{n}") for n in range(_WRITES))
            for name, value in wanted.items()
        }  # what the watched lane's writes must be, taken by the shadow and not yet seen
        head, tail = Signal(range(_WRITES)), Signal(range(_WRITES))
        with m.If(shadow.take):
            m.d.sync += tail.eq(tail + 1)
            m.d.sync += [kept[name][tail].eq(value) for name, value in wanted.items()]
        m.d.comb += [
            Assert(dut.error == BlockError.NONE),
            Assert(~self._written | (self._steps_unwritten > 0)),
            Assert(dut.busy | dut.write.valid | (self._steps_unwritten == 0)),
        ]
        with m.If(is_ours):
            m.d.sync += head.eq(head + 1)
            m.d.comb += [
                Assert(head != tail),
                Assert(write.slot < self.num_slots),
                Assert(~kept["protects"][head].bit_select(write.slot, 1)),
                Assert(write.slot == kept["slot"][head]),
                Assert(write.position == kept["position"][head]),
                Assert(write.evicts == kept["evicts"][head]),
            ]
        for n, name in enumerate(COVERS):
            flag = Signal(name=name)
            m.d.comb += flag.eq(is_ours & kept["marks"][head].bit_select(n, 1))
            if self.covers:
                m.d.comb += Cover(flag)

    def _marks(self, m: Module) -> Value:
        """Say of the token being taken what makes its write worth a check, in COVERS' order."""
        shadow = self._shadow
        rescaled, released = Signal(), Signal()
        with m.If(shadow.rescales):
            m.d.sync += rescaled.eq(1)
        with m.If(self._released & (shadow.position > 0)):
            m.d.sync += released.eq(1)
        marks = Signal(len(COVERS))
        is_high = shadow.evicts & (shadow.lowest > 0)
        m.d.comb += marks.eq(
            Cat(
                is_high & (shadow.num_candidates > 1),
                shadow.evicts & rescaled,
                is_high & shadow.is_tie,
                released & (shadow.position == 0),
            )
        )
        return marks
