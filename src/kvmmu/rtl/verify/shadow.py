"""What one table must do, written a second time, plainly, for the bounded model checker.

All slots are registers and a step's update is done at once. Nothing is shared with the pipeline:
the rules are those of `kvmmu.fixed_point`'s table.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import EXPONENT_BITS, MASS_BITS, SCORE_BITS, SUM_BITS, BlockConfig
from kvmmu.rtl.ports import settings_layout

__all__ = ["ShadowTable"]

_TOP = (1 << SCORE_BITS) - 1


class ShadowTable(wiring.Component):
    """Hold one table's slots.

    clear empties it. take puts the next token in `slot`. beat adds masses to row `row`; with
    row_end the row is complete, with last too the step is. slot, position and evicts say what
    the write of the next token must be; protects [C] marks slots that it must not take.
    Contract: a step's beats come after its take and before the next one.
    """

    def __init__(self, config: BlockConfig) -> None:
        self.config = config
        super().__init__(
            {
                "settings": In(settings_layout(config)),
                "num_slots": In(config.slot_bits + 1),
                "clear": In(1),
                "take": In(1),
                "beat": In(1),
                "row": In(config.row_bits),
                "row_end": In(1),
                "last": In(1),
                "masses": In(data.ArrayLayout(MASS_BITS, config.ways)),
                "slot": Out(config.slot_bits),
                "position": Out(config.position_bits + 1),
                "evicts": Out(1),
                "protects": Out(config.slots),
                "rescales": Out(1),
                "num_candidates": Out(config.slot_bits + 1),
                "is_tie": Out(1),
                "lowest": Out(SCORE_BITS),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config = self.config
        slots = range(config.slots)
        self._held = Signal(config.slots)
        self._positions = [Signal(config.position_bits + 1, name=f"at_{n}") for n in slots]
        self._scores = [Signal(SCORE_BITS, name=f"score_{n}") for n in slots]
        self._exponent = Signal(EXPONENT_BITS)
        self._reach = Signal(config.slot_bits + 1)  # tokens that the window protects
        m.d.comb += self._reach.eq(Mux(self.settings.window == 0, 1, self.settings.window))
        self._choose(m)
        self._add(m, self._words(m))
        with m.If(self.take):
            m.d.sync += self.position.eq(self.position + 1)
            for n in slots:
                with m.If(self.slot == n):
                    m.d.sync += [
                        self._held[n].eq(1),
                        self._positions[n].eq(self.position),
                        self._scores[n].eq(0),
                    ]
        with m.If(self.clear):
            m.d.sync += [self._held.eq(0), self._exponent.eq(0), self.position.eq(0)]
        return m

    def _protected(self, slot: int, newest: Value) -> Value:
        """Tell whether a held slot is a sink, or within the window that ends with newest."""
        at = self._positions[slot]
        return (at < self.settings.num_sinks) | (at + self._reach > newest)

    def _choose(self, m: Module) -> None:
        """Take the lowest empty slot, else the lowest score; from the last slot to the first."""
        best = Signal(SCORE_BITS + 1, init=1 << SCORE_BITS)
        rank: Value = best  # constant: above every score
        slot: Value = Signal(self.config.slot_bits)
        count: Value = Signal(self.config.slot_bits + 1)
        ties: Value = Signal()
        for n in reversed(range(self.config.slots)):
            is_slot = Signal(name=f"is_slot_{n}")
            may_leave = Signal(name=f"may_leave_{n}")
            m.d.comb += [
                is_slot.eq(n < self.num_slots),
                self.protects[n].eq(self._held[n] & self._protected(n, self.position)),
                may_leave.eq(is_slot & self._held[n] & ~self.protects[n]),
            ]
            ties = Mux(
                may_leave & (self._scores[n] == rank),
                1,
                Mux(may_leave & (self._scores[n] < rank), 0, ties),
            )
            takes = may_leave & (self._scores[n] <= rank)
            slot, rank = Mux(takes, n, slot), Mux(takes, self._scores[n], rank)
            count = count + may_leave
        m.d.comb += [
            self.evicts.eq(self.position >= self.num_slots),
            self.num_candidates.eq(count),
            self.is_tie.eq(ties),
            self.lowest.eq(rank),
            self.slot.eq(slot),
        ]
        for n in reversed(range(self.config.slots)):
            with m.If((n < self.num_slots) & ~self._held[n]):
                m.d.comb += self.slot.eq(n)

    def _words(self, m: Module) -> list[Value]:
        """Sum each slot's beats, saturating, into the word of the step."""
        config = self.config
        starts = Signal(init=1)
        sums = [Signal(SUM_BITS, name=f"sum_{way}") for way in range(config.ways)]
        words = [Signal(SCORE_BITS, name=f"word_{n}") for n in range(config.slots)]
        made: list[Value] = []
        with m.If(self.beat):
            m.d.sync += starts.eq(self.row_end)
        for way in range(config.ways):
            total = Signal(SUM_BITS + 1, name=f"total_{way}")
            m.d.comb += total.eq(Mux(starts, 0, sums[way]) + self.masses[way])
            full = Mux(total >= 1 << SUM_BITS, (1 << SUM_BITS) - 1, total)
            shifted = full >> self.settings.head_shift
            made.append(Mux(shifted > _TOP, _TOP, shifted))
            with m.If(self.beat):
                m.d.sync += sums[way].eq(full)
        now: list[Value] = []
        for n, word in enumerate(words):
            is_here = self.row == n // config.ways
            now.append(Mux(is_here, made[n % config.ways], word))
            with m.If(self.beat & self.row_end & is_here):
                m.d.sync += word.eq(made[n % config.ways])
        return now

    def _add(self, m: Module, words: list[Value]) -> None:
        """Fade, add, halve all if an unprotected sum is too large, clamp."""
        newest = self.position - 1
        done = self.beat & self.row_end & self.last
        too_large = Signal(self.config.slots)
        sums = [Signal(SCORE_BITS + 1, name=f"acc_{n}") for n in range(self.config.slots)]
        for n, acc in enumerate(sums):
            score, shift = self._scores[n], self.settings.decay_shift
            loss = Signal(SCORE_BITS, name=f"loss_{n}")
            whole = score >> shift
            m.d.comb += [
                loss.eq(
                    Mux(self.settings.decays, whole + ((whole << shift)[:SCORE_BITS] != score), 0)
                ),
                acc.eq((score - loss)[:SCORE_BITS] + (words[n] >> self._exponent)),
                too_large[n].eq(self._held[n] & ~self._protected(n, newest) & (acc > _TOP)),
            ]
        halves = Signal()
        m.d.comb += [halves.eq(too_large.any()), self.rescales.eq(done & halves)]
        with m.If(done):
            m.d.sync += self._exponent.eq(self._exponent + halves)
            for n, acc in enumerate(sums):
                fitted = Mux(halves, acc >> 1, acc)
                m.d.sync += self._scores[n].eq(Mux(fitted > _TOP, _TOP, fitted))
