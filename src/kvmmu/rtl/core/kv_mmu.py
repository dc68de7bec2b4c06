"""The KV-MMU: admission, score pipeline and table store behind five streams.

cmd ──► Admission ──► AddressPipe ──► write
          │   ▲ victim, position
  context ▼   │
mass ──► ScorePipeline ◄──► table store (rows, headers)
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.address import AddressPipe
from kvmmu.rtl.core.admission import Admission
from kvmmu.rtl.core.pipeline import ScorePipeline
from kvmmu.rtl.core.store import TableStore
from kvmmu.rtl.core.swap import SwapStore
from kvmmu.rtl.ports import (
    BlockError,
    command_layout,
    fetch_layout,
    image_layout,
    layer_settings_signature,
    mass_layout,
    response_layout,
    settings_layout,
    write_layout,
)

__all__ = ["KvMmu"]


class KvMmu(wiring.Component):
    """Build one KV-MMU; macros=True leaves its SRAMs as black boxes. Ports: see kvmmu.rtl.ports."""

    def __init__(self, config: BlockConfig, *, macros: bool = False) -> None:
        self.config = config
        self.macros = macros
        members = {
            "settings": In(settings_layout(config)),
            "layer_settings": In(layer_settings_signature(config)),
            "cmd": In(stream.Signature(command_layout(config))),
            "rsp": Out(stream.Signature(response_layout(config))),
            "mass": In(stream.Signature(mass_layout(config))),
            "write": Out(stream.Signature(write_layout(config))),
            "done": Out(1),
            "busy": Out(1),
            "error": Out(BlockError),
        }
        if config.store == "dram":
            members |= {
                "fetch": Out(stream.Signature(fetch_layout(config))),
                "image_in": In(stream.Signature(image_layout(config))),
                "image_out": Out(stream.Signature(image_layout(config))),
            }
        super().__init__(members)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config = self.config
        m.submodules.admission = admission = Admission(config, macros=self.macros)
        m.submodules.address = address = AddressPipe(config)
        m.submodules.pipeline = pipeline = ScorePipeline(config)
        swaps = config.store == "dram"
        m.submodules.store = store = (SwapStore if swaps else TableStore)(
            config, macros=self.macros
        )
        wiring.connect(m, wiring.flipped(self.cmd), admission.cmd)
        wiring.connect(m, admission.rsp, wiring.flipped(self.rsp))
        wiring.connect(m, wiring.flipped(self.mass), pipeline.mass)
        wiring.connect(m, address.write, wiring.flipped(self.write))
        wiring.connect(m, admission.target, address.target)
        wiring.connect(m, wiring.flipped(self.layer_settings), admission.layer_settings)
        m.d.comb += [
            admission.settings.eq(self.settings),
            address.settings.eq(self.settings),
            pipeline.settings.eq(self.settings),
        ]
        self._connect_store(m, store, admission, pipeline)
        if swaps:
            self._connect_swap(m, store, admission)
        halt = Signal()
        m.d.comb += [
            halt.eq(self.error != BlockError.NONE),
            admission.halt.eq(halt),
            pipeline.halt.eq(halt),
            self.done.eq(pipeline.done),
            self.busy.eq(~admission.idle | pipeline.busy.any() | address.busy),
        ]
        with m.If(~halt):
            m.d.sync += self.error.eq(
                Mux(pipeline.lacks_victim, BlockError.NO_VICTIM, admission.error)
            )
        return m

    def _connect_swap(self, m: Module, store: Any, admission: Any) -> None:
        """Let the store see lanes and rows, and give it its streams."""
        wiring.connect(m, store.fetch, wiring.flipped(self.fetch))
        wiring.connect(m, wiring.flipped(self.image_in), store.image_in)
        wiring.connect(m, store.image_out, wiring.flipped(self.image_out))
        m.d.comb += [
            store.open_lane.eq(admission.open_lane),
            store.opened_last_row.eq(admission.context.last_row),
            store.drop.eq(admission.drop),
            store.drop_lane.eq(admission.open_lane),
        ]

    def _connect_store(self, m: Module, store: Any, admission: Any, pipeline: Any) -> None:
        for name in ("open", "open_table", "is_fresh"):
            m.d.comb += getattr(store, name).eq(getattr(admission, name))
        for name in ("opened", "place", "header"):
            m.d.comb += getattr(admission, name).eq(getattr(store, name))
        for name in ("can_load", "busy", "tables"):
            m.d.comb += getattr(admission, name).eq(getattr(pipeline, name))
        for name in ("load", "context"):
            m.d.comb += getattr(pipeline, name).eq(getattr(admission, name))
        m.d.comb += [
            store.close.eq(pipeline.done),
            store.close_place.eq(pipeline.done_place),
            store.close_header.eq(pipeline.done_header),
        ]
        for name in ("read_en", "read_place", "read_row", "write_en", "write_place", "write_row"):
            m.d.comb += getattr(store, name).eq(getattr(pipeline, name))
        for name in ("write_words", "position_mask", "write_position"):
            m.d.comb += getattr(store, name).eq(getattr(pipeline, name))
        for name in ("read_words", "read_positions"):
            m.d.comb += getattr(pipeline, name).eq(getattr(store, name))
