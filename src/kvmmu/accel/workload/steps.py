"""Events of a KV-MMU, reduced to the steps of a batch: what each lane asks, reads and writes.

Equal steps in a row become one Segment, so that a run of thousands of steps at constant size is
priced once. B lanes, L layers, H score tables a layer (KV heads, or 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import TraceError
from kvmmu.trace.schema import ChunkEvent, DecodeBlock, Event, LaneEvent, TraceHeader

__all__ = ["LaneCopy", "LayerRun", "Segment", "Step", "Workload", "read_workload"]

Array = NDArray[Any]
PHASES = ("prefill", "decode", "mixed")


@dataclass(frozen=True)
class LayerRun:
    """`count` layers in a row that do the same.

    live [B]: slots held before the step, all of them read from DRAM; written [B]: table rows
    written (a slot of a layer with H tables is H rows).
    """

    count: int
    live: tuple[int, ...]
    written: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One forward of the batch. queries [B]: new tokens; logits [B]: 1 where one is sampled.

    is_prompt marks a step of a prompt that is fed token by token: a trace cannot tell it from
    generation, a regular run can.
    """

    queries: tuple[int, ...]
    logits: tuple[int, ...]
    runs: tuple[LayerRun, ...]
    is_prompt: bool = False

    @property
    def phase(self) -> str:
        """Name the phase: decode (one token a lane), prefill (chunks), or mixed."""
        if self.is_prompt:
            return "prefill"
        asked = [q for q in self.queries if q]
        if all(q == 1 for q in asked):
            return "decode"
        return "prefill" if all(q > 1 for q in asked) else "mixed"

    @property
    def num_queries(self) -> int:
        """New tokens of all lanes."""
        return sum(self.queries)


@dataclass(frozen=True)
class Segment:
    """`count` equal steps in a row; seen [B] tokens each lane had before the first of them.

    Within the segment a lane's seen tokens grow by its queries at each step.
    """

    step: Step
    count: int
    seen: tuple[int, ...]


@dataclass(frozen=True)
class LaneCopy:
    """Rows that a reorder moved from lane to lane: live [L] summed over the lanes copied."""

    live: tuple[int, ...]
    seen: int
    count: int = 1


@dataclass(frozen=True)
class Workload:
    """A whole run: segments in order, lanes copied, and how often lanes came and went.

    merged_lanes counts merge events by lane.
    """

    header: TraceHeader
    segments: tuple[Segment, ...]
    copies: tuple[LaneCopy, ...] = ()
    lane_events: dict[str, int] = field(default_factory=dict)
    merged_lanes: int = 0
    longest_lane: int = 0

    @property
    def num_steps(self) -> int:
        """Forwards of the run."""
        return sum(s.count for s in self.segments)

    @property
    def num_tokens(self) -> int:
        """New tokens of all lanes over the run."""
        return sum(s.count * s.step.num_queries for s in self.segments)

    def held(self) -> Iterator[tuple[int, ...]]:
        """Yield the tokens of every lane at the end of each segment, the fullest moments."""
        for part in self.segments:
            asked = part.step.queries
            yield tuple(n + part.count * q for n, q in zip(part.seen, asked))

    def lane_tokens(self, phase: str) -> int:
        """New tokens of the lane with most of them, "prefill" or "decode".

        Of a mixed step, a chunk's tokens are prefill and single ones decode.
        """
        lanes = np.zeros(self.header.geometry.batch, dtype=np.int64)
        for part in self.segments:
            asked = np.asarray(part.step.queries)
            is_decode = (asked == 1) & (not part.step.is_prompt)
            lanes += part.count * np.where(is_decode == (phase == "decode"), asked, 0)
        return int(lanes.max(initial=0))


class _Reader:
    """Build segments from events; live and seen follow lanes as they come and go."""

    def __init__(self, header: TraceHeader, num_prompt_steps: int) -> None:
        self.header = header
        self.prompt_steps_left = num_prompt_steps
        self.num_layers, self.batch, _, _ = header.table_shape
        self.seen = np.zeros(self.batch, dtype=np.int64)
        self.live = np.zeros((self.num_layers, self.batch), dtype=np.int64)
        self.segments: list[Segment] = []
        self.copies: list[LaneCopy] = []
        self.lane_events: Counter[str] = Counter()
        self.merged_lanes = 0
        self.longest_lane = 0
        self._chunk_step: int | None = None
        self._chunks: dict[int, ChunkEvent] = {}

    def feed(self, event: Event) -> None:
        if isinstance(event, ChunkEvent):
            if event.step != self._chunk_step:
                self.flush()
                self._chunk_step = event.step
            self._chunks[event.layer] = event
        elif isinstance(event, LaneEvent):
            self.flush()
            self._lanes(event)
        else:
            self._decodes(event)

    def flush(self) -> None:
        """Close the chunk step that is open, if any."""
        if self._chunk_step is not None:
            self._close_chunk(None)

    def _close_chunk(self, also: tuple[Array, Array, Array] | None) -> None:
        """Make a step of the open chunk and, in a mixed step, of one decode beside it."""
        if len(self._chunks) != self.num_layers:
            raise TraceError(
                f"step {self._chunk_step} must hold a chunk of each of the {self.num_layers} "
                f"layers, got {len(self._chunks)}"
            )
        layers = [self._chunks[layer] for layer in range(self.num_layers)]
        queries = layers[0].num_queries.astype(np.int64)
        live = np.array([np.where(c.num_queries > 0, c.n_valid, 0) for c in layers])  # [L,B]
        written = np.array([np.bincount(c.lanes, minlength=self.batch) for c in layers])
        after = live.copy()
        for layer, c in enumerate(layers):
            filled = c.lanes[(np.asarray(c.evicted) == -1) & (np.asarray(c.heads) == 0)]
            after[layer] += np.bincount(filled, minlength=self.batch)
        self.live = np.where(queries > 0, after, self.live)
        if also is not None:
            queries, live, written = queries + also[0], live + also[1], written + also[2]
        self._chunk_step, self._chunks = None, {}
        self._append(queries, live, written, count=1)

    def _decodes(self, block: DecodeBlock) -> None:
        queries = np.asarray(block.num_queries, dtype=np.int64)  # [S,B]
        asked = queries > 0
        n_valid = np.asarray(block.n_valid, dtype=np.int64)  # [S,L,B]
        live = np.where(asked[:, None], n_valid - 1, 0)
        written = (block.slots >= 0).sum(-1)  # [S,L,B]
        begin = 0
        if self._chunk_step is not None and int(block.steps[0]) == self._chunk_step:
            self._close_chunk((queries[0], live[0], written[0]))
            begin = 1
        else:
            self.flush()
        S = len(queries)
        if begin < S:
            is_new = np.ones(S, dtype=np.bool_)
            is_new[begin + 1 :] = (
                (np.diff(queries[begin:], axis=0) != 0).any(-1)
                | (np.diff(live[begin:], axis=0) != 0).any((-1, -2))
                | (np.diff(written[begin:], axis=0) != 0).any((-1, -2))
            )
            starts = np.flatnonzero(is_new[begin:]) + begin
            for start, stop in zip(starts, [*starts[1:], S]):
                self._append(queries[start], live[start], written[start], count=int(stop - start))
        self.live = np.where(asked[-1], n_valid[-1], self.live)

    def _append(self, queries: Array, live: Array, written: Array, *, count: int) -> None:
        """Add `count` steps of one shape; the sampled lanes of a chunk are settled later."""
        seen = tuple(int(n) for n in self.seen)
        self.seen = self.seen + count * queries
        self.longest_lane = max(self.longest_lane, int(self.seen.max(initial=0)))
        if not queries.any():
            return
        asks = tuple(int(q) for q in queries)
        is_prompt = self.prompt_steps_left > 0
        self.prompt_steps_left -= count if is_prompt else 0
        runs = tuple(_runs(live, written))
        step = Step(asks, tuple(int(q == 1) for q in asks), runs, is_prompt)
        last = self.segments[-1] if self.segments else None
        if last is not None and last.step == step and all(q <= 1 for q in asks):
            grown = tuple(s + last.count * q for s, q in zip(last.seen, last.step.queries))
            if grown == seen:
                self.segments[-1] = replace(last, count=last.count + count)
                return
        self.segments.append(Segment(step, count, seen))

    def _lanes(self, event: LaneEvent) -> None:
        self.lane_events[event.kind] += len(event.lanes)
        if event.kind == "reorder":
            sources = np.asarray(event.sources)
            moved = sources != np.asarray(event.lanes)
            if moved.any():
                rows = self.live[:, sources[moved]].sum(axis=1)
                self.copies.append(
                    LaneCopy(tuple(int(n) for n in rows), int(self.seen[sources[moved]].sum()))
                )
            self.live[:, event.lanes] = self.live[:, sources]
            self.seen[event.lanes] = self.seen[sources]
        elif event.kind == "merge":
            self.merged_lanes += len(event.lanes)
        else:
            self.live[:, event.lanes] = 0
            self.seen[event.lanes] = 0


def _runs(live: Array, written: Array) -> Iterator[LayerRun]:
    """Group layers in a row that do the same. live, written [L,B]."""
    both = np.concatenate([live, written], axis=1)
    starts = np.flatnonzero(np.r_[True, (np.diff(both, axis=0) != 0).any(-1)])
    for start, stop in zip(starts, [*starts[1:], len(both)]):
        yield LayerRun(
            int(stop - start),
            tuple(int(n) for n in live[start]),
            tuple(int(n) for n in written[start]),
        )


def _sampled(segments: list[Segment]) -> tuple[Segment, ...]:
    """Let a lane be sampled by its prompt's last step, and by each step of its own tokens."""
    in_prompt: dict[int, bool] = {}  # lane -> whether its next step is of its prompt
    out: list[Segment] = []
    for part in reversed(segments):
        for piece in reversed(_last_apart(part)):
            step = piece.step
            own = {lane: step.is_prompt or q > 1 for lane, q in enumerate(step.queries) if q}
            logits = tuple(
                int(lane in own and not (own[lane] and in_prompt.get(lane, False)))
                for lane in range(len(step.queries))
            )
            in_prompt.update(own)
            out.append(replace(piece, step=replace(step, logits=logits)))
    return tuple(reversed(out))


def _last_apart(part: Segment) -> list[Segment]:
    """Split the last of a prompt's equal steps from those before it: it alone is sampled."""
    if not part.step.is_prompt or part.count == 1:
        return [part]
    before = part.count - 1
    seen = tuple(n + before * q for n, q in zip(part.seen, part.step.queries))
    return [replace(part, count=before), replace(part, count=1, seen=seen)]


def read_workload(
    header: TraceHeader, events: Iterable[Event], *, num_prompt_steps: int = 0
) -> Workload:
    """Reduce events to a Workload; the first `num_prompt_steps` steps are of prompts alone.

    Raises TraceError where a step lacks a layer.
    """
    reader = _Reader(header, num_prompt_steps)
    for event in events:
        reader.feed(event)
    reader.flush()
    return Workload(
        header=header,
        segments=_sampled(reader.segments),
        copies=tuple(reader.copies),
        lane_events=dict(reader.lane_events),
        merged_lanes=reader.merged_lanes,
        longest_lane=reader.longest_lane,
    )
