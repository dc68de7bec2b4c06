"""What the block has answered beside what the model says: every write and every response.

The scoreboard knows no simulator. Whoever drives the block calls `give` for each command in order
and `see_*` for each beat that came out; a table's contents are compared by `check_table`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.model import BlockModel
from kvmmu.rtl.ports import BlockError, Op
from kvmmu.rtl.transactions import Response, Write
from kvmmu.rtl.verify.stimuli import Item

__all__ = ["CosimReport", "Scoreboard", "SeenTable"]

_MOST_KEPT = 8


@dataclass(frozen=True, eq=False)
class SeenTable:
    """A table as the block's memories hold it; only what is held counts."""

    positions: NDArray[np.integer[Any]]
    mantissas: NDArray[np.integer[Any]]
    exponent: int
    num_seen: int
    victim: int | None = None


@dataclass
class CosimReport:
    """Count what was compared and keep the first differences.

    recorded counts the steps whose slot was compared with a recording besides the model.
    stall_cycles counts, a stream, the cycles in which valid waited for ready; those of the
    outputs are the driver's own back-pressure.
    """

    steps: int = 0
    recorded: int = 0
    evictions: int = 0
    rescales: int = 0
    responses: int = 0
    tables_checked: int = 0
    cycles: int = 0
    num_mismatches: int = 0
    mismatches: list[str] = field(default_factory=list)
    stall_cycles: dict[str, int] = field(default_factory=dict)
    error: int = BlockError.NONE

    @property
    def is_equal(self) -> bool:
        """Tell whether nothing differed."""
        return self.num_mismatches == 0


class Scoreboard:
    """Compare the block's answers with the model's, in the order of each stream."""

    def __init__(self, model: BlockModel) -> None:
        self.model = model
        self.report = CosimReport()
        self._writes: deque[Write] = deque()
        self._responses: deque[Response] = deque()
        self._recorded: deque[int | None] = deque()

    @property
    def is_settled(self) -> bool:
        """Tell whether every expected answer has come."""
        return not self._writes and not self._responses

    def give(self, item: Item) -> None:
        """Run one command, and its masses, through the model."""
        command, model = item.command, self.model
        at = command.lane, command.layer, command.head
        if command.op is Op.ADMIT:
            if (response := model.admit()) is not None:
                self._responses.append(response)
        elif command.op is Op.RELEASE:
            model.release(command.lane)
        elif (write := model.step(*at)) is not None:
            self._writes.append(write)
            self._recorded.append(item.recorded_slot)
            before = model.exponent(*at)
            model.accumulate(*at, masses=item.masses)
            self.report.rescales += model.exponent(*at) > before

    def see_write(self, write: Write) -> None:
        """Compare a write command."""
        self.report.steps += 1
        self.report.evictions += write.evicts
        wanted = self._writes.popleft() if self._writes else None
        if write != wanted:
            self.differ(f"write {self.report.steps}: wanted {wanted}, got {write}")
        recorded = self._recorded.popleft() if self._recorded else None
        self.report.recorded += recorded is not None
        if recorded not in (None, write.slot):
            self.differ(f"write {self.report.steps}: recorded slot {recorded}, got {write}")

    def see_response(self, response: Response) -> None:
        """Compare an answer; the lane counts only where one was given."""
        self.report.responses += 1
        wanted = self._responses.popleft() if self._responses else None
        is_same = wanted is not None and wanted.accepted == response.accepted
        if not is_same or (response.accepted and response != wanted):
            self.differ(f"response {self.report.responses}: wanted {wanted}, got {response}")

    def see_error(self, error: int) -> None:
        """Compare why the block stopped, or that it runs, with the model."""
        self.report.error = error
        if error != self.model.error:
            self.differ(f"error: wanted {self.model.error}, got {error}")

    def check_table(self, at: Sequence[int], seen: SeenTable) -> None:
        """Compare a table's held slots, exponent and count of tokens."""
        lane, layer, head = at
        wanted = self.model.table(lane, layer, head)
        held = min(wanted.num_seen, len(wanted.positions))
        self.report.tables_checked += 1
        pairs = {
            "num_seen": (wanted.num_seen % (1 << self.model.config.position_bits), seen.num_seen),
            "exponent": (wanted.exponent, seen.exponent),
            "positions": (wanted.positions[:held].tolist(), seen.positions[:held].tolist()),
            "mantissas": (wanted.mantissas[:held].tolist(), seen.mantissas[:held].tolist()),
        }
        is_full = held == len(wanted.positions)
        if seen.victim is not None and is_full and self.model.error == BlockError.NONE:
            pairs["victim"] = (self.model.victim(lane, layer, head), seen.victim)
        for name, (want, got) in pairs.items():
            if want != got:
                self.differ(f"table {tuple(at)} {name}: wanted {want}, got {got}")

    def differ(self, what: str) -> None:
        """Count a difference and keep the first few."""
        self.report.num_mismatches += 1
        if len(self.report.mismatches) < _MOST_KEPT:
            self.report.mismatches.append(what)
