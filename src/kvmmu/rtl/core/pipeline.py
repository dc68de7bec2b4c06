"""The score pipeline: beats in, rows read, updated and written back, the next victim out.

    cycle 0   a row's last beat is taken, its words and positions are read
    cycle 1   what the SRAM gives is kept, the newcomer laid over it; the row's sums are shifted
    cycle 2   decay, add, protection
    cycle 3   write back; least score of the row, first half of the tree
    cycle 4   second half
    cycle 5   least score of the table so far; after the last row the victim is known
    cycle 6   header written, the step's context free again

Two contexts: while one step's rows are in the pipeline the next step's may follow without a gap.
A step whose largest unprotected word carries is rescaled: once the pipeline has run empty, its rows
pass again, each word halved, while the mass stream waits; that is ceil(held / W) + 6 cycles, once
in a doubling of the scores.

Every register of the data path has an enable: in a cycle in which no row is in its stage it does
not toggle, and with clock gating it is not clocked.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import SCORE_BITS, BlockConfig
from kvmmu.rtl.core.context import context_layout, stage_layout
from kvmmu.rtl.core.issue import RowIssue
from kvmmu.rtl.core.scores import RowMinimum, RowUpdate
from kvmmu.rtl.core.sums import RowSums
from kvmmu.rtl.ports import header_layout, mass_layout, settings_layout

__all__ = ["ScorePipeline"]


class ScorePipeline(wiring.Component):
    """Carry admitted steps through the score SRAM.

    load takes a context while can_load; busy and tables tell which steps are on their way.
    done = 1 for one cycle when a step is over: place, header (the next victim in it); lacks_victim
    where every slot of a full table is protected. halt stops the mass stream.
    """

    def __init__(self, config: BlockConfig) -> None:
        self.config = config
        words = data.ArrayLayout(config.word_bits, config.ways)
        positions = data.ArrayLayout(config.position_bits, config.ways)
        super().__init__(
            {
                "settings": In(settings_layout(config)),
                "mass": In(stream.Signature(mass_layout(config))),
                "halt": In(1),
                "load": In(1),
                "can_load": Out(1),
                "context": In(context_layout(config)),
                "busy": Out(2),
                "tables": Out(data.ArrayLayout(config.table_bits, 2)),
                "read_en": Out(1),
                "read_place": Out(config.place_bits),
                "read_row": Out(config.row_bits),
                "read_words": In(words),
                "read_positions": In(positions),
                "write_en": Out(1),
                "write_place": Out(config.place_bits),
                "write_row": Out(config.row_bits),
                "write_words": Out(words),
                "position_mask": Out(config.ways),
                "write_position": Out(config.position_bits),
                "done": Out(1),
                "done_place": Out(config.place_bits),
                "done_header": Out(header_layout(config)),
                "lacks_victim": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        layout = context_layout(self.config)
        self._contexts = Array(
            Signal(layout, name=f"context_{n}", reset_less=True) for n in range(2)
        )
        self._pending = Signal(2)  # steps that wait for their rescale
        self._stages = [Signal(stage_layout(self.config), name=f"stage_{n}") for n in range(6)]
        self._update = RowUpdate(self.config)
        m.submodules.update = self._update
        self._take_steps(m)
        self._issue_rows(m)
        self._write_rows(m)
        self._end_steps(m)
        return m

    def _take_steps(self, m: Module) -> None:
        """Let a step into the context whose turn it is."""
        self._turn = Signal()
        m.d.comb += [
            self.can_load.eq(~self.busy.bit_select(self._turn, 1)),
            *(self.tables[n].eq(self._contexts[n].table) for n in range(2)),
        ]
        with m.If(self.load):
            m.d.sync += [
                self._contexts[self._turn].eq(self.context),
                self.busy.bit_select(self._turn, 1).eq(1),
                self._turn.eq(~self._turn),
            ]

    def _issue_rows(self, m: Module) -> None:
        """Read the row that enters, and feed what is read and summed to the update."""
        m.submodules.issue = issue = RowIssue(self.config)
        m.submodules.sums = sums = RowSums(self.config)
        first, arriving, second, third = self._stages[:4]
        m.d.comb += [
            issue.halt.eq(self.halt),
            issue.valid.eq(self.mass.valid),
            issue.row_end.eq(self.mass.payload.row_end),
            self.mass.ready.eq(issue.ready),
            issue.loaded.eq(self.load),
            issue.loaded_which.eq(self._turn),
            *(issue.last_rows[n].eq(self._contexts[n].last_row) for n in range(2)),
            issue.is_writing.eq(third.valid),
            issue.written_row.eq(third.row),
            issue.is_moving.eq(Cat(*(stage.valid for stage in self._stages[1:])).any()),
            issue.pending.eq(self._pending),
            sums.accept.eq(issue.accept),
            sums.masses.eq(self.mass.payload.masses),
            sums.row_end.eq(self.mass.payload.row_end),
            first.eq(issue.issue),
            self.read_en.eq(first.valid),
            self.read_place.eq(self._contexts[first.which].place),
            self.read_row.eq(first.row),
            self._update.settings.eq(self.settings),
            self._update.arriving.eq(arriving),
            self._update.arriving_context.eq(self._contexts[arriving.which]),
            self._update.stage.eq(second),
            self._update.context.eq(self._contexts[second.which]),
            self._update.words.eq(self.read_words),
            self._update.positions.eq(self.read_positions),
            self._update.sums.eq(sums.sums),
        ]
        m.d.sync += [after.eq(before) for before, after in pairwise(self._stages)]
        m.d.sync += self._pending.eq(self._pending & ~issue.started)

    def _write_rows(self, m: Module) -> None:
        """Write the words back, and the newcomer's position with them."""
        third = self._stages[3]
        context = self._contexts[third.which]
        holds_newcomer = Cat(context.slot)[self.config.way_bits :] == third.row
        newcomer = 1 << Cat(context.slot)[: self.config.way_bits]
        m.d.comb += [
            self.write_en.eq(third.valid),
            self.write_place.eq(context.place),
            self.write_row.eq(third.row),
            self.write_words.eq(self._update.new_words),
            self.position_mask.eq(Mux(holds_newcomer & ~third.rescales, newcomer, 0)),
            self.write_position.eq(context.newest),
        ]

    def _end_steps(self, m: Module) -> None:
        """Keep the least score of each step; end it, or send its rows round again."""
        config = self.config
        m.submodules.minimum = minimum = RowMinimum(config)
        third, fourth, fifth = self._stages[3:]
        words = self._update.new_words
        carries = Cat(*(words[way][SCORE_BITS] for way in range(config.ways)))
        found = Signal(reset_less=True)  # of the row in cycle 5
        score = Signal(SCORE_BITS, reset_less=True)
        slot = Signal(config.slot_bits, reset_less=True)
        overflowed = Signal(reset_less=True)  # of the row in cycle 4
        overflows = Signal(reset_less=True)  # of the row in cycle 5
        m.d.comb += [
            minimum.valid.eq(third.valid),
            minimum.words.eq(words),
            minimum.may_leave.eq(self._update.may_leave),
        ]
        with m.If(third.valid):
            m.d.sync += overflowed.eq((carries & self._update.may_rescale).any() & ~third.rescales)
        with m.If(fourth.valid):
            m.d.sync += [
                overflows.eq(overflowed),
                found.eq(minimum.found),
                score.eq(minimum.score),
                slot.eq(Cat(minimum.way, fourth.row)),
            ]
        least = data.StructLayout(
            {"found": 1, "score": SCORE_BITS, "slot": config.slot_bits, "overflowed": 1}
        )
        kept = Array(Signal(least, name=f"least_{n}") for n in range(2))
        held, now = Signal(least), Signal(least)
        m.d.comb += held.eq(kept[fifth.which])
        takes_row = found & (~held.found | (score < held.score))
        m.d.comb += [
            now.found.eq(held.found | found),
            now.score.eq(Mux(takes_row, score, held.score)),
            now.slot.eq(Mux(takes_row, slot, held.slot)),
            now.overflowed.eq(held.overflowed | overflows),
        ]
        with m.If(fifth.valid):
            m.d.sync += kept[fifth.which].eq(Mux(fifth.is_last, 0, now))
        goes_again = Signal()
        ends = Signal()
        m.d.comb += [
            goes_again.eq(fifth.valid & fifth.is_last & now.overflowed),
            ends.eq(fifth.valid & fifth.is_last & ~now.overflowed),
        ]
        with m.If(goes_again):
            m.d.sync += self._pending.bit_select(fifth.which, 1).eq(1)
        self._close(m, ends, fifth, now)

    def _close(self, m: Module, ends: Signal, stage: Any, least: Any) -> None:
        """Hand the step's header over and free its context."""
        which = Signal(reset_less=True)
        context = self._contexts[stage.which]
        m.d.sync += [
            self.done.eq(ends),
            self.lacks_victim.eq(ends & context.is_full & ~least.found),
        ]
        with m.If(ends):
            m.d.sync += [
                which.eq(stage.which),
                self.done_place.eq(context.place),
                self.done_header.exponent.eq(context.exponent + stage.rescales),
                self.done_header.position.eq(context.newest + 1),
                self.done_header.victim.eq(Mux(context.is_full, least.slot, context.newest + 1)),
            ]
        with m.If(self.done):
            m.d.sync += self.busy.bit_select(which, 1).eq(0)
