"""From a command to a victim: lanes come and go, a step gets its slot, its context and its write.

    cycle 0   the command is checked; the table's header and the layer's settings are read
    cycle 1   header out: the victim is the slot, the context goes to the pipeline, the write to
              the address pipe

A step waits while both contexts are taken, and while a step of the same table is on its way: its
victim is not known before. RELEASE waits until no step is on its way.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.address import target_layout
from kvmmu.rtl.core.context import context_layout
from kvmmu.rtl.core.lane_table import LaneTable
from kvmmu.rtl.core.layers import LayerTable
from kvmmu.rtl.ports import (
    BlockError,
    Op,
    command_layout,
    header_layout,
    layer_settings_signature,
    response_layout,
    settings_layout,
)

__all__ = ["Admission"]


class Admission(wiring.Component):
    """Carry out commands in their order; after an error none."""

    def __init__(self, config: BlockConfig, *, macros: bool) -> None:
        self.config = config
        self.macros = macros
        super().__init__(
            {
                "settings": In(settings_layout(config)),
                "layer_settings": In(layer_settings_signature(config)),
                "cmd": In(stream.Signature(command_layout(config))),
                "rsp": Out(stream.Signature(response_layout(config))),
                "target": Out(stream.Signature(target_layout(config))),
                "halt": In(1),
                "error": Out(BlockError),
                "open": Out(1),
                "open_table": Out(config.table_bits),
                "is_fresh": Out(1),
                "opened": In(1),
                "place": In(config.place_bits),
                "header": In(header_layout(config)),
                "can_load": In(1),
                "busy": In(2),
                "tables": In(data.ArrayLayout(config.table_bits, 2)),
                "load": Out(1),
                "context": Out(context_layout(config)),
                "drop": Out(1),
                "open_lane": Out(command_layout(config)["lane"].shape),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self._command = Signal(command_layout(self.config), reset_less=True)
        self._has_command, self._ends = Signal(), Signal()
        m.submodules.lanes = self._lanes = LaneTable(self.config)
        m.submodules.layers = self._layers = LayerTable(self.config, macros=self.macros)
        m.d.comb += [
            self.cmd.ready.eq((~self._has_command | self._ends) & ~self.halt),
            self.idle.eq(~self._has_command),
            self._lanes.lane.eq(self._command.lane),
            self.open_lane.eq(self._command.lane),
        ]
        with m.If(self._ends):
            m.d.sync += self._has_command.eq(0)
        with m.If(self.cmd.ready & self.cmd.valid):
            m.d.sync += [self._has_command.eq(1), self._command.eq(self.cmd.payload)]
        self._check(m)
        goes = self._has_command & ~self.halt & (self.error == BlockError.NONE)
        with m.If(self._has_command & (self._command.op == Op.ADMIT)):
            self._admit(m)  # an answer that was offered stays, even if the block stops
        with m.If(goes & (self._command.op == Op.RELEASE)):
            self._release(m)
        with m.If(goes & (self._command.op == Op.STEP)):
            self._step(m)
        self._describe(m)
        return m

    def _check(self, m: Module) -> None:
        """Say what is wrong with the command; 0 while there is none or nothing is."""
        config, command = self.config, self._command
        self._index = Signal(range(config.tables_per_lane + 1))  # the table's number in its lane
        is_step = command.op == Op.STEP
        in_range = (command.lane < config.lanes) & (
            ~is_step | (command.layer < config.layers) & (command.head < config.heads)
        )
        m.d.comb += self._index.eq(command.layer * config.heads + command.head)
        setup = self.layer_settings
        bad_setup = (
            (setup.layer >= config.layers)
            | (setup.num_slots == 0)
            | (setup.num_slots > config.slots)
        )
        with m.If(setup.enable & bad_setup):
            m.d.comb += self.error.eq(BlockError.OUT_OF_RANGE)
        with m.Elif(self._has_command & (command.op != Op.ADMIT)):
            with m.If(~in_range | (command.op.as_value() == 3)):
                m.d.comb += self.error.eq(BlockError.OUT_OF_RANGE)
            with m.Elif(~self._lanes.is_active):
                m.d.comb += self.error.eq(BlockError.INACTIVE_LANE)
            with m.Elif(is_step & (self._index > self._lanes.touched)):
                m.d.comb += self.error.eq(BlockError.OUT_OF_ORDER)
            with m.Elif(is_step & self.opened & ~self.is_fresh & (self.header.position == 0)):
                m.d.comb += self.error.eq(BlockError.POSITION_OVERFLOW)  # the count went round

    def _admit(self, m: Module) -> None:
        m.d.comb += [
            self.rsp.valid.eq(1),
            self.rsp.payload.lane.eq(self._lanes.free_lane),
            self.rsp.payload.accepted.eq(self._lanes.has_free),
        ]
        with m.If(self.rsp.ready):
            m.d.comb += [self._lanes.take.eq(1), self._ends.eq(1)]

    def _release(self, m: Module) -> None:
        with m.If(~self.busy.any()):
            m.d.comb += [self._lanes.give.eq(1), self.drop.eq(1), self._ends.eq(1)]

    def _step(self, m: Module) -> None:
        """Open the table; when it is open the context and the write leave together."""
        same = [self.busy[n] & (self.tables[n] == self.open_table) for n in range(2)]
        can_go = self.can_load & self.target.ready & ~(same[0] | same[1])
        m.d.comb += [
            self.open.eq(can_go | self.opened),
            self._layers.read.eq(can_go & ~self.opened),
            self.target.valid.eq(self.opened),
            self.load.eq(self.opened),
            self._ends.eq(self.opened),
            self._lanes.touch.eq(self.opened & self.is_fresh),
        ]

    def _describe(self, m: Module) -> None:
        """Make the step's context and write out of header, layer and settings."""
        config, header, context = self.config, self.header, self.context
        window = Signal(config.slot_bits + 1)
        reach = Signal(config.position_bits + 1)  # newest + 1
        last = Signal(config.slot_bits)  # the last held slot
        is_full, evicts = Signal(), Signal()
        num_slots = self._layers.num_slots
        m.d.comb += [
            self._layers.setup.enable.eq(self.layer_settings.enable),
            self._layers.setup.layer.eq(self.layer_settings.layer),
            self._layers.setup.num_slots.eq(self.layer_settings.num_slots),
            self._layers.setup.base.eq(self.layer_settings.base),
            self._layers.layer.eq(self._command.layer),
            self.open_table.eq(self._command.lane * config.tables_per_lane + self._index),
            self.is_fresh.eq(self._index == self._lanes.touched),
            window.eq(Mux(self.settings.window == 0, 1, self.settings.window)),
            reach.eq(header.position + 1),
            is_full.eq(reach >= num_slots),
            evicts.eq(header.position >= num_slots),
            last.eq(Mux(is_full, num_slots - 1, header.position)),
            context.table.eq(self.open_table),
            context.place.eq(self.place),
            context.exponent.eq(header.exponent),
            context.newest.eq(header.position),
            context.slot.eq(header.victim),
            context.first_kept.eq(Mux(reach > window, reach - window, 0)),
            context.keeps_all.eq(reach < window),
            context.last_row.eq(last[config.way_bits :]),
            context.last_way.eq(last[: config.way_bits]),
            context.is_full.eq(is_full),
        ]
        target = self.target.payload
        m.d.comb += [
            target.write.lane.eq(self._command.lane),
            target.write.layer.eq(self._command.layer),
            target.write.head.eq(self._command.head),
            target.write.slot.eq(header.victim),
            target.write.position.eq(header.position),
            target.write.evicts.eq(evicts),
            target.num_slots.eq(num_slots),
            target.base.eq(self._layers.base),
        ]
