"""summary: what a recording did, in numbers: evictions, residence, bytes, survivors by age."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.trace.occupancy import Occupancy
from kvmmu.trace.reader import Trace
from kvmmu.trace.schema import ChunkEvent, DecodeBlock, LaneEvent, TraceHeader

__all__ = ["PhaseSummary", "TraceSummary", "summary"]


@dataclass(frozen=True)
class PhaseSummary:
    """Totals of prefill or of decode; bytes are those of K and V."""

    tokens: int = 0
    evictions: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True)
class TraceSummary:
    """Say what a recording did. One eviction is one token leaving one table.

    Residence of an evicted token: tokens of its lane between its own and the newest when it
    left; median and p90 are values that occurred, None without evictions. num_never_written
    counts new tokens that lost within their own chunk. survivors_by_age: (low, high, count) of
    slots whose token is low <= age < high tokens old at the end of the trace.
    """

    policy: str
    num_steps: int
    num_chunks: int
    tokens: int
    prefill: PhaseSummary
    decode: PhaseSummary
    evictions: int
    evictions_per_layer: tuple[int, ...]
    num_never_written: int
    residence_mean: float | None
    residence_median: int | None
    residence_p90: int | None
    bytes_read: int
    bytes_written: int
    bytes_read_per_token: float
    bytes_written_per_token: float
    peak_valid: int
    peak_candidates: int
    survivors_by_age: tuple[tuple[int, int, int], ...]
    lane_events: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        plain = asdict(self)
        plain["evictions_per_layer"] = list(self.evictions_per_layer)
        plain["survivors_by_age"] = [list(row) for row in self.survivors_by_age]
        return plain


class _Tally:
    """Sums over the events of one trace."""

    def __init__(self, header: TraceHeader) -> None:
        num_layers = header.geometry.num_layers
        self.header = header
        self.slot_bytes = header.geometry.bytes_per_slot  # K and V of all heads
        self.table_bytes = self.slot_bytes // header.num_tables
        self.occupancy = Occupancy(header)
        self.chunks = np.zeros(num_layers, dtype=np.int64)
        self.prefill_tokens = np.zeros(num_layers, dtype=np.int64)
        self.evictions = np.zeros((2, num_layers), dtype=np.int64)  # prefill, decode
        self.slots_read = [0, 0]
        self.tables_written = [0, 0]
        self.decode_tokens = 0
        self.never_written = 0
        self.residences = np.zeros(0, dtype=np.int64)  # how many evicted tokens stayed r tokens
        self.peak_valid = 0
        self.peak_candidates = 0
        self.lane_events: Counter[str] = Counter()

    def decode(self, block: DecodeBlock) -> None:
        for index in range(len(block.steps)):
            self.occupancy.decode(block, index)
        asked = block.num_queries > 0  # [S,B]
        left = block.evicted >= 0  # [S,L,B,H]
        newest = np.broadcast_to(block.positions[:, None, :, None], left.shape)
        self._stayed(newest[left] - block.evicted[left])
        read = np.where(asked[:, None], block.n_valid, 0)
        self.evictions[1] += left.sum(axis=(0, 2, 3))
        self.slots_read[1] += int(read.sum())
        self.tables_written[1] += int((block.slots >= 0).sum())
        self.decode_tokens += int(block.num_queries.sum())
        self._peak(read, read)

    def chunk(self, event: ChunkEvent) -> None:
        self.occupancy.chunk(event)
        left = event.evicted >= 0  # [N]
        newest = np.full(self.header.geometry.batch, -1, dtype=np.int64)
        np.maximum.at(newest, event.lanes, event.positions)  # the newest is always written
        self._stayed(newest[event.lanes[left]] - event.evicted[left])
        counts = event.num_queries
        read = np.where(counts > 0, event.n_valid, 0)
        self.evictions[0, event.layer] += int(left.sum())
        self.slots_read[0] += int(read.sum())
        self.tables_written[0] += len(event.slots)
        self.chunks[event.layer] += 1
        self.prefill_tokens[event.layer] += int(counts.sum())
        self.never_written += int(event.num_dropped.sum())
        candidates = read + counts
        limit = self.header.geometry.slots[event.layer]
        self._peak(np.minimum(candidates, limit), candidates)

    def lane(self, event: LaneEvent) -> None:
        self.occupancy.lane(event)
        self.lane_events[event.kind] += 1

    def phase(self, index: int, tokens: int) -> PhaseSummary:
        return PhaseSummary(
            tokens=tokens,
            evictions=int(self.evictions[index].sum()),
            bytes_read=self.slots_read[index] * self.slot_bytes,
            bytes_written=self.tables_written[index] * self.table_bytes,
        )

    def _stayed(self, residences: NDArray[Any]) -> None:
        longest = max(int(residences.max(initial=0)) + 1, len(self.residences))
        counts = np.bincount(residences, minlength=longest)
        counts[: len(self.residences)] += self.residences
        self.residences = counts

    def _peak(self, valid: NDArray[Any], candidates: NDArray[Any]) -> None:
        self.peak_valid = max(self.peak_valid, int(valid.max(initial=0)))
        self.peak_candidates = max(self.peak_candidates, int(candidates.max(initial=0)))


def summary(trace: Trace) -> TraceSummary:
    """Read a trace once and sum it up; raises TraceError if it contradicts itself."""
    tally = _Tally(trace.header)
    for event in trace.events():
        if isinstance(event, DecodeBlock):
            tally.decode(event)
        elif isinstance(event, ChunkEvent):
            tally.chunk(event)
        else:
            tally.lane(event)
    prefill = tally.phase(0, int(tally.prefill_tokens.max()))
    decode = tally.phase(1, tally.decode_tokens)
    tokens = prefill.tokens + decode.tokens
    bytes_read = prefill.bytes_read + decode.bytes_read
    bytes_written = prefill.bytes_written + decode.bytes_written
    mean, median, p90 = _statistics(tally.residences)
    return TraceSummary(
        policy=trace.header.policy,
        num_steps=trace.num_steps,
        num_chunks=int(tally.chunks.max()),
        tokens=tokens,
        prefill=prefill,
        decode=decode,
        evictions=prefill.evictions + decode.evictions,
        evictions_per_layer=tuple(int(n) for n in tally.evictions.sum(axis=0)),
        num_never_written=tally.never_written,
        residence_mean=mean,
        residence_median=median,
        residence_p90=p90,
        bytes_read=bytes_read,
        bytes_written=bytes_written,
        bytes_read_per_token=bytes_read / max(tokens, 1),
        bytes_written_per_token=bytes_written / max(tokens, 1),
        peak_valid=tally.peak_valid,
        peak_candidates=tally.peak_candidates,
        survivors_by_age=_ages(tally.occupancy.positions),
        lane_events=dict(tally.lane_events),
    )


def _statistics(counts: NDArray[np.int64]) -> tuple[float | None, int | None, int | None]:
    """Mean, median and p90 of values given as counts[value]."""
    total = int(counts.sum())
    if total == 0:
        return None, None, None
    reached = counts.cumsum() / total
    mean = float(counts @ np.arange(len(counts))) / total
    median, p90 = (int(np.searchsorted(reached, share)) for share in (0.5, 0.9))
    return mean, median, p90


def _ages(positions: NDArray[np.int32]) -> tuple[tuple[int, int, int], ...]:
    """Histogram of ages of positions [L,B,H,C] in bins [0,1), [1,2), [2,4), [4,8), ..."""
    newest = positions.max(axis=(0, 2, 3), keepdims=True)  # [1,B,1,1]
    ages = (newest - positions)[positions >= 0]
    rows = []
    low, high = 0, 1
    while low <= int(ages.max(initial=-1)):
        rows.append((low, high, int(((ages >= low) & (ages < high)).sum())))
        low, high = high, 2 * high
    return tuple(rows)
