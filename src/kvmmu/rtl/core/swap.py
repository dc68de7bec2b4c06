"""Two tables on chip, the others in DRAM: the store that swaps.

A STEP whose table is not on chip takes the buffer that no step uses (of two, the one not opened
last): its table's image goes out if it was changed, then the wanted one is asked for on `fetch`
and comes in on `image_in`; a table's first step fetches nothing. Commands come ahead of their
masses, so while the rows of one step pass through the pipeline the next step's table is swapped in
the other buffer: the order of the commands is the prefetch.

An image is a header beat, then the rows of the held slots, the last of them marked. Going out takes
two cycles a row, coming in one. A table is asked for once all that went out was taken: it may be
the one whose last row still waits. A released lane's tables are forgotten, not written back.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.core.scores import clamped
from kvmmu.rtl.core.sram import RowMemory
from kvmmu.rtl.core.store import store_members
from kvmmu.rtl.ports import command_layout, fetch_layout, header_layout, image_layout

__all__ = ["SwapStore"]


class _State(enum.Enum, shape=3):  # type: ignore[call-arg]
    IDLE = 0
    SEND_HEADER = 1
    READ = 2
    CAPTURE = 3
    ASK = 4
    TAKE_HEADER = 5
    TAKE_ROWS = 6


class SwapStore(wiring.Component):
    """Hold two tables; besides a store's ports it sees lanes come and go and has three streams.

    opened_last_row is the opened step's last held row, given in the cycle of `opened`.
    """

    def __init__(self, config: BlockConfig, *, macros: bool) -> None:
        self.config = config
        self.macros = macros
        lane_shape = command_layout(config)["lane"].shape
        super().__init__(
            {
                **store_members(config),
                "open_lane": In(lane_shape),
                "opened_last_row": In(config.row_bits),
                "drop": In(1),
                "drop_lane": In(lane_shape),
                "fetch": Out(stream.Signature(fetch_layout(config))),
                "image_in": In(stream.Signature(image_layout(config))),
                "image_out": Out(stream.Signature(image_layout(config))),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config = self.config
        self._state = Signal(_State)
        self._swapped = Signal()  # the buffer being swapped
        self._row = Signal(config.row_bits)
        self._holds, self._used, self._dirty = Signal(2), Signal(2), Signal(2)
        self._tables = Array(
            Signal(config.table_bits, name=f"table_{n}", reset_less=True) for n in range(2)
        )
        self._lanes = Array(
            Signal(self.open_lane.shape(), name=f"lane_{n}", reset_less=True) for n in range(2)
        )
        self._headers = Array(
            Signal(header_layout(config), name=f"header_{n}", reset_less=True) for n in range(2)
        )
        self._last_rows = Array(
            Signal(config.row_bits, name=f"last_row_{n}", reset_less=True) for n in range(2)
        )
        self._swap_reads, self._swap_writes = Signal(), Signal()
        self._hold_rows(m)
        self._open_tables(m)
        self._swap_tables(m)
        return m

    def _hold_rows(self, m: Module) -> None:
        """Give each buffer to the pipeline, or to the swap while that has it."""
        config, row_in = self.config, self.image_in.payload
        all_ways = (1 << config.ways) - 1
        words_of, positions_of = [], []
        for n in range(2):
            words = RowMemory(config.rows, config.ways * config.word_bits, macros=self.macros)
            positions = RowMemory(
                config.rows,
                config.ways * config.position_bits,
                granule=config.position_bits,
                macros=self.macros,
            )
            m.submodules[f"words_{n}"], m.submodules[f"positions_{n}"] = words, positions
            sends = self._swap_reads & (self._swapped == n)
            takes = self._swap_writes & (self._swapped == n)
            reads = self.read_en & (self.read_place == n)
            writes = self.write_en & (self.write_place == n)
            for memory in (words, positions):
                m.d.comb += [
                    memory.read_en.eq(sends | reads),
                    memory.read_row.eq(Mux(sends, self._row, self.read_row)),
                    memory.write_row.eq(Mux(takes, self._row, self.write_row)),
                ]
            m.d.comb += [
                words.write_en.eq(takes | writes),
                words.write_mask.eq(1),
                words.write_data.eq(self.write_words),
                positions.write_en.eq(takes | (writes & self.position_mask.any())),
                positions.write_mask.eq(Mux(takes, all_ways, self.position_mask)),
                positions.write_data.eq(self.write_position.replicate(config.ways)),
            ]
            with m.If(takes):
                for way in range(config.ways):
                    width = config.word_bits
                    m.d.comb += [
                        words.write_data[way * width : (way + 1) * width].eq(row_in.scores[way]),
                        positions.write_data.eq(row_in.positions.as_value()),
                    ]
            words_of.append(words.read_data)
            positions_of.append(positions.read_data)
        was_place = Signal()
        m.d.sync += was_place.eq(self.read_place)
        self._sent_words, self._sent_positions = (
            Array(data)[self._swapped] for data in (words_of, positions_of)
        )
        m.d.comb += [
            self.read_words.eq(Array(words_of)[was_place]),
            self.read_positions.eq(Array(positions_of)[was_place]),
        ]

    def _open_tables(self, m: Module) -> None:
        """Find a table on chip; else start the swap of the buffer that is free."""
        is_idle = self._state == _State.IDLE
        hits = [self._holds[n] & (self._tables[n] == self.open_table) for n in range(2)]
        found, place = Signal(), Signal()
        m.d.comb += [found.eq(hits[0] | hits[1]), place.eq(hits[1])]
        asks = self.open & ~self.opened & is_idle
        last_opened = Signal()
        m.d.sync += [self.opened.eq(asks & found), self.place.eq(place)]
        m.d.comb += self.header.eq(self._headers[self.place])
        with m.If(self.opened):
            m.d.sync += [
                self._last_rows[self.place].eq(self.opened_last_row),
                self._used.bit_select(self.place, 1).eq(1),
                last_opened.eq(self.place),
            ]
        with m.If(asks & ~found & ~self._used.all()):
            free = Signal()
            m.d.comb += free.eq(Mux(self._used.any(), self._used[0], ~last_opened))
            goes_out = (self._holds & self._dirty).bit_select(free, 1)
            m.d.sync += [
                self._swapped.eq(free),
                self._row.eq(0),
                self._state.eq(
                    Mux(goes_out, _State.SEND_HEADER, Mux(self.is_fresh, _State.IDLE, _State.ASK))
                ),
            ]
            with m.If(~goes_out):
                self._settle(m, free)
        with m.If(self.close):
            m.d.sync += [
                self._headers[self.close_place].eq(self.close_header),
                self._used.bit_select(self.close_place, 1).eq(0),
                self._dirty.bit_select(self.close_place, 1).eq(1),
            ]
        with m.If(self.drop):
            for n in range(2):
                with m.If(self._lanes[n] == self.drop_lane):
                    m.d.sync += self._holds[n].eq(0)

    def _settle(self, m: Module, buffer: Any) -> None:
        """Give the buffer to the wanted table; a fresh table is there at once, with header 0."""
        m.d.sync += [
            self._tables[buffer].eq(self.open_table),
            self._lanes[buffer].eq(self.open_lane),
            self._headers[buffer].eq(0),
            self._dirty.bit_select(buffer, 1).eq(0),
            self._holds.bit_select(buffer, 1).eq(self.is_fresh),
        ]

    def _swap_tables(self, m: Module) -> None:
        """Send the old image, ask for the new one, take it."""
        out, image = self.image_out, self.image_in
        is_free = ~out.valid | out.ready
        with m.If(out.ready):
            m.d.sync += out.valid.eq(0)
        with m.Switch(self._state):
            with m.Case(_State.SEND_HEADER), m.If(is_free):
                m.d.sync += [
                    out.valid.eq(1),
                    out.payload.table.eq(self._tables[self._swapped]),
                    out.payload.is_header.eq(1),
                    out.payload.last.eq(0),
                    out.payload.header.eq(self._headers[self._swapped]),
                    self._state.eq(_State.READ),
                ]
            with m.Case(_State.READ), m.If(is_free):
                m.d.comb += self._swap_reads.eq(1)
                m.d.sync += self._state.eq(_State.CAPTURE)
            with m.Case(_State.CAPTURE):
                self._capture(m)
            with m.Case(_State.ASK):
                m.d.comb += [
                    self.fetch.valid.eq(~out.valid),
                    self.fetch.payload.table.eq(self.open_table),
                ]
                with m.If(self.fetch.valid & self.fetch.ready):
                    m.d.sync += self._state.eq(_State.TAKE_HEADER)
            with m.Case(_State.TAKE_HEADER):
                m.d.comb += image.ready.eq(1)
                with m.If(image.valid):
                    m.d.sync += [
                        self._headers[self._swapped].eq(image.payload.header),
                        self._row.eq(0),
                        self._state.eq(_State.TAKE_ROWS),
                    ]
            with m.Case(_State.TAKE_ROWS):
                m.d.comb += [image.ready.eq(1), self._swap_writes.eq(image.valid)]
                with m.If(image.valid):
                    m.d.sync += self._row.eq(self._row + 1)
                with m.If(image.valid & image.payload.last):
                    m.d.sync += [
                        self._holds.bit_select(self._swapped, 1).eq(1),
                        self._state.eq(_State.IDLE),
                    ]

    def _capture(self, m: Module) -> None:
        """Put the row just read on its way; after the last one turn to the new table."""
        config, out = self.config, self.image_out
        is_last = self._row == self._last_rows[self._swapped]
        m.d.sync += [
            out.valid.eq(1),
            out.payload.is_header.eq(0),
            out.payload.last.eq(is_last),
            out.payload.positions.eq(self._sent_positions),
            self._row.eq(self._row + 1),
            self._state.eq(_State.READ),
        ]
        for way in range(config.ways):
            width = config.word_bits
            word = Signal(width, name=f"sent_{way}")
            m.d.comb += word.eq(self._sent_words.word_select(way, width))
            m.d.sync += out.payload.scores[way].eq(clamped(word))
        with m.If(is_last):
            self._settle(m, self._swapped)
            m.d.sync += self._state.eq(Mux(self.is_fresh, _State.IDLE, _State.ASK))
