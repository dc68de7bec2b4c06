"""replay: feed the recorded masses to the integer KV-MMU and compare every victim."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.fixed_point import MANTISSA_MAX, FixedPointConfig, FixedPointMMU, is_protected
from kvmmu.trace.reader import Trace
from kvmmu.trace.schema import ChunkEvent, DecodeBlock, LaneEvent, flatten_writes

__all__ = ["ReplayReport", "replay"]


@dataclass(frozen=True)
class ReplayReport:
    """Say whether a recording equals the integer KV-MMU, and how hard a test it was.

    mismatches counts table-steps and chunk rows that differ. Of the decode steps' evictions,
    num_ties had several slots at the minimum, and positive_minimum_share had a minimum above 0
    (0 throughout means that only a search for zeros was tested). num_distinct_victims counts
    (layer, lane, table, slot) that ever lost a token; num_rescales counts rises of an exponent.
    """

    steps: int
    evictions: int
    num_distinct_victims: int
    num_rescales: int
    num_ties: int
    positive_minimum_share: float
    mismatches: int
    first_mismatch: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


def replay(trace: Trace) -> ReplayReport:
    """Replay a trace with masses from empty tables; raises TraceError if it has none."""
    run = _Replay(trace)
    for event in trace.events(masses=True):
        if isinstance(event, DecodeBlock):
            for index in range(len(event.steps)):
                run.decode(event, index)
        elif isinstance(event, ChunkEvent):
            run.chunk(event)
        else:
            run.lane(event)
    return run.report(trace.num_steps)


class _Replay:
    """The tables of every layer and what was counted on the way."""

    def __init__(self, trace: Trace) -> None:
        header = trace.header
        num_layers, batch, num_tables, _ = header.table_shape
        self.shape = (batch, num_tables)
        self.tables = [
            FixedPointMMU(
                FixedPointConfig(
                    header.geometry.slots[layer],
                    header.num_sinks,
                    header.window,
                    header.decay_shift,
                ),
                shape=self.shape,
            )
            for layer in range(num_layers)
        ]
        self.lost = np.zeros(header.table_shape, dtype=np.bool_)
        self.decode_evictions = self.chunk_evictions = 0
        self.ties = self.positive = self.rescales = self.mismatches = 0
        self.first: str | None = None

    def decode(self, block: DecodeBlock, index: int) -> None:
        assert block.masses is not None
        valid = np.broadcast_to(block.num_queries[index][:, None] > 0, self.shape)  # [B,H]
        for layer, mmu in enumerate(self.tables):
            evicts = valid & (mmu.positions >= 0).all(axis=-1)
            self._weigh(mmu, evicts)
            slots = mmu.admit(valid)
            lanes, heads = np.nonzero(evicts)
            self.lost[layer, lanes, heads, slots[lanes, heads]] = True
            self.decode_evictions += len(lanes)
            wrong = np.argwhere(slots != block.slots[index, layer])
            if len(wrong):
                lane, head = wrong[0]
                self._differ(
                    len(wrong),
                    f"step {block.steps[index]} layer {layer} lane {lane} table {head}: replayed "
                    f"slot {slots[lane, head]}, recorded {block.slots[index, layer, lane, head]}",
                )
            before = mmu.exponents
            mmu.accumulate(block.masses[index, layer, :, :, : mmu.config.num_slots])
            self.rescales += int((mmu.exponents > before).sum())

    def chunk(self, event: ChunkEvent) -> None:
        assert event.masses is not None
        mmu = self.tables[event.layer]
        before = mmu.exponents
        valid = np.broadcast_to(event.valid[:, None], (*self.shape, event.valid.shape[-1]))
        writes = mmu.commit_chunk(event.masses, valid=valid)
        self.rescales += int((mmu.exponents > before).sum())
        rows = flatten_writes(writes.slots, writes.positions, evicted=writes.evicted)
        lanes, heads, slots, evicted, _ = rows
        left = evicted >= 0
        self.lost[event.layer, lanes[left], heads[left], slots[left]] = True
        self.chunk_evictions += int(left.sum())
        recorded = (event.lanes, event.heads, event.slots, event.evicted, event.positions)
        odd = _row_set(rows) ^ _row_set(recorded)
        if odd:
            self._differ(
                len(odd),
                f"chunk at step {event.step} layer {event.layer}: {len(odd)} rows differ, "
                f"the first (lane, table, slot, evicted, position) {min(odd)}",
            )

    def lane(self, event: LaneEvent) -> None:
        batch = self.shape[0]
        if event.kind == "reorder":
            sources = np.arange(batch)
            sources[event.lanes] = np.asarray(event.sources)
            for mmu in self.tables:
                mmu.reorder(sources)
        elif event.kind != "merge":
            gone = np.isin(np.arange(batch), event.lanes)[:, None]
            for mmu in self.tables:
                mmu.clear(gone)

    def report(self, steps: int) -> ReplayReport:
        return ReplayReport(
            steps=steps,
            evictions=self.decode_evictions + self.chunk_evictions,
            num_distinct_victims=int(self.lost.sum()),
            num_rescales=self.rescales,
            num_ties=self.ties,
            positive_minimum_share=self.positive / max(self.decode_evictions, 1),
            mismatches=self.mismatches,
            first_mismatch=self.first,
        )

    def _weigh(self, mmu: FixedPointMMU, evicts: NDArray[np.bool_]) -> None:
        """Count ties and positive minima among the tables [B,H] that are about to evict."""
        protected = is_protected(
            mmu.positions,
            mmu.num_seen,
            num_sinks=mmu.config.num_sinks,
            window=mmu.config.window,
        )
        ranks = np.where(protected, MANTISSA_MAX + 1, mmu.mantissas.astype(np.int64))
        lowest = ranks.min(axis=-1, keepdims=True)
        self.ties += int((evicts & ((ranks == lowest).sum(axis=-1) > 1)).sum())
        self.positive += int((evicts & (lowest[..., 0] > 0)).sum())

    def _differ(self, count: int, where: str) -> None:
        self.mismatches += count
        self.first = self.first or where


def _row_set(rows: tuple[NDArray[Any], ...]) -> set[tuple[int, ...]]:
    return {tuple(int(n) for n in row) for row in zip(*rows)}
