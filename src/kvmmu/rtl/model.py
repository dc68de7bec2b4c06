"""Transaction-level model of the block: what each command must answer, on `fixed_point.py`.

One command is one call; a step's masses follow its write, as on the streams. The model has no
clock: it says what comes out and in which order, never when. It stops for ever at an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import IntegrityError
from kvmmu.fixed_point import MANTISSA_MAX, FixedPointConfig, FixedPointMMU
from kvmmu.rtl.config import ADDRESS_BITS, SUM_BITS, BlockConfig
from kvmmu.rtl.ports import BlockError, Op
from kvmmu.rtl.transactions import (
    BlockSettings,
    Command,
    Masses,
    Outcome,
    Response,
    TableState,
    Write,
)

__all__ = ["BlockModel", "num_rows", "row_words"]

_SUM_MAX = (1 << SUM_BITS) - 1


def num_rows(position: int, num_slots: int, *, ways: int) -> int:
    """Count the mass rows of the step of the token at `position`, from 0."""
    return -(-min(position + 1, num_slots) // ways)


def row_words(masses: Sequence[NDArray[np.integer[Any]]], *, head_shift: int) -> NDArray[np.uint16]:
    """Sum each row's beats as the block does; rows of [beats, W] -> words [rows * W]."""
    sums = [np.minimum(row.astype(np.int64).sum(axis=0), _SUM_MAX) for row in masses]
    shifted = np.concatenate(sums) >> head_shift
    words: NDArray[np.uint16] = np.minimum(shifted, MANTISSA_MAX).astype(np.uint16)
    return words


@dataclass
class _Lane:
    """A lane: whether it is taken, and the tables touched since it was admitted."""

    is_active: bool = False
    num_touched: int = 0


class BlockModel:
    """Answer commands as the block must, from empty tables and free lanes.

    A STEP returns its Write; the caller owes `accumulate` before the next STEP of that table. The
    step that fills a table of which every slot is protected is the last: NO_VICTIM.
    After an error every call returns None and changes nothing.
    """

    def __init__(self, config: BlockConfig, settings: BlockSettings) -> None:
        if len(settings.layers) != config.layers:
            raise ValueError(
                f"settings must name each of the {config.layers} layers, got {len(settings.layers)}"
            )
        for layer in settings.layers:
            if not 1 <= layer.num_slots <= config.slots:
                raise ValueError(f"num_slots must be in [1, {config.slots}], got {layer.num_slots}")
        self.config = config
        self.settings = settings
        self.error: int = BlockError.NONE
        self._lanes = [_Lane() for _ in range(config.lanes)]
        self._tables: dict[int, FixedPointMMU] = {}

    def admit(self) -> Response | None:
        """Take the lowest free lane."""
        if self.error is not BlockError.NONE:
            return None
        for number, lane in enumerate(self._lanes):
            if not lane.is_active:
                lane.is_active, lane.num_touched = True, 0
                return Response(number, accepted=True)
        return Response(0, accepted=False)

    def release(self, lane: int) -> None:
        """Free a lane; its tables count as empty from here on."""
        if self.error is not BlockError.NONE:
            return
        self.error = self._check_lane(lane)
        if self.error is BlockError.NONE:
            self._lanes[lane].is_active = False
            self._lanes[lane].num_touched = 0

    def step(self, lane: int, layer: int, head: int) -> Write | None:
        """Put the next token of a table in its victim's slot."""
        if self.error is not BlockError.NONE:
            return None
        self.error = self._check_step(lane, layer, head)
        if self.error is not BlockError.NONE:
            return None
        mmu = self._touch(lane, layer, head)
        position = int(mmu.num_seen)
        if position >= 1 << self.config.position_bits:
            self.error = BlockError.POSITION_OVERFLOW
            return None
        evicts = position >= mmu.config.num_slots
        slot = int(mmu.admit())
        address = self.address(lane, layer, head, slot=slot)
        return Write(lane, layer, head, slot, position, evicts, address)

    def accumulate(self, lane: int, layer: int, head: int, *, masses: Masses) -> None:
        """Add the masses of the table's step; raises IntegrityError for a wrong count of rows."""
        if self.error is not BlockError.NONE:
            return
        mmu = self._tables[self.config.table_of(lane, layer, head)]
        num_slots = mmu.config.num_slots
        wanted = num_rows(int(mmu.num_seen) - 1, num_slots, ways=self.config.ways)
        if len(masses) != wanted:
            raise IntegrityError(f"a step must bring {wanted} rows of masses, got {len(masses)}")
        words = row_words(masses, head_shift=self.settings.head_shift)[:num_slots]
        padded = np.zeros(num_slots, dtype=np.uint16)
        padded[: len(words)] = words
        mmu.accumulate(padded)
        if mmu.num_seen >= num_slots < self.settings.num_protected:
            self.error = BlockError.NO_VICTIM

    def run(self, commands: Iterable[Command], masses: Iterable[Masses]) -> Outcome:
        """Answer a list of commands, the steps' masses in their order."""
        outcome = Outcome()
        supply = iter(masses)
        for command in commands:
            at = command.lane, command.layer, command.head
            if command.op is Op.ADMIT:
                if (response := self.admit()) is not None:
                    outcome.responses.append(response)
            elif command.op is Op.RELEASE:
                self.release(command.lane)
            elif (write := self.step(*at)) is not None:
                outcome.writes.append(write)
                self.accumulate(*at, masses=next(supply))
        outcome.error = self.error
        return outcome

    def address(self, lane: int, layer: int, head: int, *, slot: int) -> int:
        """Return the DRAM address of a slot's row, wrapped to the address' bits."""
        chosen = self.settings.layers[layer]
        offset = (head * chosen.num_slots + slot) * self.settings.slot_stride_bytes
        total = chosen.base_bytes + lane * self.settings.lane_stride_bytes + offset
        return total % (1 << ADDRESS_BITS)

    def is_active(self, lane: int) -> bool:
        """Tell whether a lane is taken."""
        return self._lanes[lane].is_active

    def held_tables(self) -> list[tuple[int, int, int]]:
        """List the tables (lane, layer, head) that hold a token, in the order of their numbers."""
        per_lane = self.config.tables_per_lane
        return [
            (lane, *divmod(table, self.config.heads))
            for lane, state in enumerate(self._lanes)
            if state.is_active
            for table in range(min(state.num_touched, per_lane))
        ]

    def table(self, lane: int, layer: int, head: int) -> TableState:
        """Return a copy of one table's state; a table not touched since ADMIT is empty."""
        is_held = layer * self.config.heads + head < self._lanes[lane].num_touched
        mmu = self._tables[self.config.table_of(lane, layer, head)] if is_held else None
        mmu = mmu or self._empty(layer)
        return TableState(
            positions=mmu.positions.copy(),
            mantissas=mmu.mantissas.copy(),
            exponent=int(mmu.exponents),
            num_seen=int(mmu.num_seen),
        )

    def victim(self, lane: int, layer: int, head: int) -> int:
        """Name the slot that a table's next token would take."""
        return int(self._tables[self.config.table_of(lane, layer, head)].victim())

    def exponent(self, lane: int, layer: int, head: int) -> int:
        """Return the exponent of a table that was touched."""
        return int(self._tables[self.config.table_of(lane, layer, head)].exponents)

    def _check_lane(self, lane: int) -> int:
        if not 0 <= lane < self.config.lanes:
            return BlockError.OUT_OF_RANGE
        return BlockError.NONE if self.is_active(lane) else BlockError.INACTIVE_LANE

    def _check_step(self, lane: int, layer: int, head: int) -> int:
        if not (
            0 <= lane < self.config.lanes
            and 0 <= layer < self.config.layers
            and 0 <= head < self.config.heads
        ):
            return BlockError.OUT_OF_RANGE
        if not self.is_active(lane):
            return BlockError.INACTIVE_LANE
        if layer * self.config.heads + head > self._lanes[lane].num_touched:
            return BlockError.OUT_OF_ORDER
        return BlockError.NONE

    def _touch(self, lane: int, layer: int, head: int) -> FixedPointMMU:
        """Return the table, emptied if this is its first step since the lane was admitted."""
        number = self.config.table_of(lane, layer, head)
        state = self._lanes[lane]
        if layer * self.config.heads + head == state.num_touched:
            state.num_touched += 1
            self._tables[number] = self._empty(layer)
        return self._tables[number]

    def _empty(self, layer: int) -> FixedPointMMU:
        """Make an empty table; one that will lack a victim protects all it can until then."""
        settings = self.settings
        num_slots = settings.layers[layer].num_slots
        sinks, window = settings.num_sinks, settings.window
        if settings.num_protected > num_slots:
            sinks = min(sinks, num_slots - 1)
            window = num_slots - sinks
        return FixedPointMMU(FixedPointConfig(num_slots, sinks, window, settings.decay_shift))
