"""All tables on chip: scores, positions and headers, each table at the place of its number."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.sram import RowMemory, SinglePortSRAM
from kvmmu.rtl.ports import header_layout

__all__ = ["TableStore", "store_members"]


def store_members(config: BlockConfig) -> dict[str, Any]:
    """Name the ports that both stores have.

    open asks for a table (is_fresh: its first step) and stays 1 until `opened`, in whose cycle
    place and header are valid. close writes a header. Rows as in RowMemory; the words read come
    in the next cycle.
    """
    words = data.ArrayLayout(config.word_bits, config.ways)
    return {
        "open": In(1),
        "open_table": In(config.table_bits),
        "is_fresh": In(1),
        "opened": Out(1),
        "place": Out(config.place_bits),
        "header": Out(header_layout(config)),
        "close": In(1),
        "close_place": In(config.place_bits),
        "close_header": In(header_layout(config)),
        "read_en": In(1),
        "read_place": In(config.place_bits),
        "read_row": In(config.row_bits),
        "read_words": Out(words),
        "read_positions": Out(data.ArrayLayout(config.position_bits, config.ways)),
        "write_en": In(1),
        "write_place": In(config.place_bits),
        "write_row": In(config.row_bits),
        "write_words": In(words),
        "position_mask": In(config.ways),
        "write_position": In(config.position_bits),
    }


class TableStore(wiring.Component):
    """Hold every table in SRAM; a table is open in the second cycle of asking."""

    def __init__(self, config: BlockConfig, *, macros: bool) -> None:
        self.config = config
        self.macros = macros
        super().__init__(store_members(config))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self._hold_rows(m)
        self._hold_headers(m)
        return m

    def _hold_rows(self, m: Module) -> None:
        config = self.config
        depth = config.tables * config.rows
        words = RowMemory(depth, config.ways * config.word_bits, macros=self.macros)
        positions = RowMemory(
            depth,
            config.ways * config.position_bits,
            granule=config.position_bits,
            macros=self.macros,
        )
        m.submodules.words, m.submodules.positions = words, positions
        for memory in (words, positions):
            m.d.comb += [
                memory.read_en.eq(self.read_en),
                memory.read_row.eq(Cat(self.read_row, self.read_place)),
                memory.write_row.eq(Cat(self.write_row, self.write_place)),
            ]
        m.d.comb += [
            self.read_words.eq(words.read_data),
            self.read_positions.eq(positions.read_data),
            words.write_en.eq(self.write_en),
            words.write_data.eq(self.write_words),
            words.write_mask.eq(1),
            positions.write_en.eq(self.write_en & self.position_mask.any()),
            positions.write_data.eq(self.write_position.replicate(config.ways)),
            positions.write_mask.eq(self.position_mask),
        ]

    def _hold_headers(self, m: Module) -> None:
        """Read a header on open, unless one is being written in that cycle."""
        layout = header_layout(self.config)
        m.submodules.headers = headers = SinglePortSRAM(
            self.config.tables, layout.size, macros=self.macros
        )
        reads, was_fresh = Signal(), Signal()
        m.d.comb += [
            reads.eq(self.open & ~self.close & ~self.opened),
            headers.en.eq((reads & ~self.is_fresh) | self.close),
            headers.we.eq(self.close),
            headers.addr.eq(Mux(self.close, self.close_place, self.open_table)),
            headers.wdata.eq(self.close_header),
            headers.wmask.eq(1),
            self.place.eq(self.open_table),
            self.header.eq(Mux(was_fresh, 0, headers.rdata)),
        ]
        m.d.sync += [self.opened.eq(reads), was_fresh.eq(self.is_fresh)]
