"""What happens to one row's scores: the arithmetic of the pipeline, and the row's minimum.

Cycle 1 keeps what the SRAM gives, 0 for the newcomer, whose slot still holds the evicted token, and
shifts the row's sums; cycle 2 reads a word as fixed_point does (a carry counts as 65535), takes the
decay off and adds. The tree of cycles 3 and 4 finds the least unprotected score, the lowest way on
a tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from kvmmu.rtl.config import SCORE_BITS, SUM_BITS, BlockConfig
from kvmmu.rtl.core.context import context_layout, stage_layout
from kvmmu.rtl.ports import settings_layout

__all__ = ["RowMinimum", "RowUpdate", "clamped"]

LARGEST = (1 << SCORE_BITS) - 1


def clamped(word: Value) -> Value:
    """Read a 17-bit word: its mantissa, 65535 if it carries."""
    return Mux(word[SCORE_BITS], LARGEST, word[:SCORE_BITS])


@dataclass(frozen=True)
class _Protection:
    now: Value
    """The slot may not set off a rescale."""
    after: Value
    """The slot may not be the next step's victim."""


class RowUpdate(wiring.Component):
    """Turn words, positions and sums of a row into new words, two cycles later.

    words, positions and sums are given together, in cycle 1 of a row, with `arriving`, the row's
    stage, and `arriving_context`, its step's; stage and context are those of the row in cycle 2.
    new_words [W] of 17 bits and may_rescale, may_leave [W] come out in a row's cycle 3.
    """

    def __init__(self, config: BlockConfig) -> None:
        self.config = config
        ways = config.ways
        super().__init__(
            {
                "settings": In(settings_layout(config)),
                "arriving": In(stage_layout(config)),
                "arriving_context": In(context_layout(config)),
                "words": In(data.ArrayLayout(config.word_bits, ways)),
                "positions": In(data.ArrayLayout(config.position_bits, ways)),
                "sums": In(data.ArrayLayout(SUM_BITS, ways)),
                "stage": In(stage_layout(config)),
                "context": In(context_layout(config)),
                "new_words": Out(data.ArrayLayout(config.word_bits, ways)),
                "may_rescale": Out(ways),
                "may_leave": Out(ways),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config = self.config
        self._words = Signal(self.words.shape(), reset_less=True)
        self._positions = Signal(self.positions.shape(), reset_less=True)
        new_words = Signal(self.new_words.shape(), reset_less=True)
        may_rescale, may_leave = (Signal(config.ways, reset_less=True) for _ in range(2))
        m.d.comb += [
            self.new_words.eq(new_words),
            self.may_rescale.eq(may_rescale),
            self.may_leave.eq(may_leave),
        ]
        with m.If(self.arriving.valid):
            m.d.sync += self._positions.eq(self.positions)
        for way in range(config.ways):
            held = Signal(name=f"held_{way}")
            arrives = Signal(name=f"newcomer_arrives_{way}")
            is_new = Signal(name=f"is_new_{way}", reset_less=True)
            added = Signal(SCORE_BITS, name=f"added_{way}", reset_less=True)
            slot = Cat(Const(way, config.way_bits), self.arriving.row)
            m.d.comb += [
                held.eq(~self.stage.is_last | (way <= self.context.last_way)),
                arrives.eq(~self.arriving.rescales & (slot == self.arriving_context.slot)),
            ]
            with m.If(self.arriving.valid):
                m.d.sync += [
                    is_new.eq(arrives),
                    self._words[way].eq(Mux(arrives, 0, self.words[way])),
                    added.eq(Mux(self.arriving.rescales, 0, self._added(m, way))),
                ]
            kept = self._protection(m, way, is_new=is_new)
            new = self._faded(m, way) + added
            with m.If(self.stage.valid):
                m.d.sync += [
                    new_words[way].eq(Mux(held, new, 0)),
                    may_rescale[way].eq(held & ~kept.now),
                    may_leave[way].eq(held & ~kept.after),
                ]
        return m

    def _protection(self, m: Module, way: int, *, is_new: Value) -> _Protection:
        """Compare a slot with the sinks and the window; sink i sits in slot i."""
        config, context = self.config, self.context
        slot = Cat(Const(way, config.way_bits), self.stage.row)
        is_sink = Signal(name=f"is_sink_{way}")
        is_older = Signal(name=f"is_older_{way}")
        is_first = Signal(name=f"is_first_{way}")
        m.d.comb += [
            is_sink.eq(slot < self.settings.num_sinks),
            is_older.eq(self._positions[way] < context.first_kept),
            is_first.eq(self._positions[way] == context.first_kept),
        ]
        stays = context.keeps_all | ~(is_older | is_first)
        return _Protection(
            now=is_sink | is_new | ~is_older,
            after=is_sink | Mux(is_new, self.settings.window > 1, stays),
        )

    def _faded(self, m: Module, way: int) -> Value:
        """Take ceil(score / 2**k) off a score; halve a word (carry and all) that is rescaled."""
        settings, word = self.settings, self._words[way]
        fades = settings.decays & ~self.stage.rescales
        score = Signal(SCORE_BITS, name=f"score_{way}")
        rest = Signal(SCORE_BITS, name=f"rest_{way}")  # the bits that the shift drops
        loss = Signal(SCORE_BITS, name=f"loss_{way}")
        m.d.comb += [
            score.eq(Mux(self.stage.rescales, word >> 1, clamped(word))),
            rest.eq(score & ((Const(1, SCORE_BITS + 1) << settings.decay_shift) - 1)),
            loss.eq(Mux(fades, (score >> settings.decay_shift) + rest.any(), 0)),
        ]
        return score - loss

    def _added(self, m: Module, way: int) -> Value:
        """Make a sum a word, 65535 if it had too many beats, and shift it to the exponent."""
        shifted = Signal(SUM_BITS, name=f"shifted_{way}")
        word = Signal(SCORE_BITS, name=f"word_{way}")
        m.d.comb += [
            shifted.eq(self.sums[way] >> self.settings.head_shift),
            word.eq(Mux(shifted[SCORE_BITS:].any(), LARGEST, shifted[:SCORE_BITS])),
        ]
        return word >> self.arriving_context.exponent


class RowMinimum(wiring.Component):
    """Find the least score of a row among those that may leave, in the cycle after it is given.

    valid = 1 where a row is given. found = 0 where none may leave. Of equals the lowest way.
    """

    def __init__(self, config: BlockConfig) -> None:
        self.config = config
        super().__init__(
            {
                "valid": In(1),
                "words": In(data.ArrayLayout(config.word_bits, config.ways)),
                "may_leave": In(config.ways),
                "found": Out(1),
                "score": Out(SCORE_BITS),
                "way": Out(config.way_bits),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        keys: list[tuple[Any, Any]] = []
        for way in range(self.config.ways):
            key = Signal(SCORE_BITS + 1, name=f"key_{way}")  # the top bit: may not leave
            m.d.comb += key.eq(Cat(clamped(self.words[way]), ~self.may_leave[way]))
            keys.append((key, Const(way, self.config.way_bits)))
        levels = self.config.way_bits
        for level in range(levels):
            keys = [self._smaller(m, level, pair, keys) for pair in range(len(keys) // 2)]
            if level == (levels - 1) // 2:
                keys = [self._kept(m, *node, number) for number, node in enumerate(keys)]
        key, way_of_least = keys[0]
        m.d.comb += [
            self.found.eq(~key[-1]),
            self.score.eq(key[:-1]),
            self.way.eq(way_of_least),
        ]
        return m

    def _kept(self, m: Module, key: Any, way: Any, number: int) -> tuple[Any, Any]:
        """Put the register of the tree behind a node, half way through its levels."""
        kept_key = Signal(SCORE_BITS + 1, name=f"kept_key_{number}", reset_less=True)
        kept_way = Signal(self.config.way_bits, name=f"kept_way_{number}", reset_less=True)
        with m.If(self.valid):
            m.d.sync += [kept_key.eq(key), kept_way.eq(way)]
        return kept_key, kept_way

    def _smaller(
        self, m: Module, level: int, pair: int, keys: list[tuple[Any, Any]]
    ) -> tuple[Any, Any]:
        """Choose between two neighbours; the left one, which holds the lower ways, on a tie."""
        (left, left_way), (right, right_way) = keys[2 * pair], keys[2 * pair + 1]
        takes_left = Signal(name=f"takes_left_{level}_{pair}")
        key = Signal(SCORE_BITS + 1, name=f"key_{level}_{pair}")
        way = Signal(self.config.way_bits, name=f"way_{level}_{pair}")
        m.d.comb += [
            takes_left.eq(left <= right),
            key.eq(Mux(takes_left, left, right)),
            way.eq(Mux(takes_left, left_way, right_way)),
        ]
        return key, way
