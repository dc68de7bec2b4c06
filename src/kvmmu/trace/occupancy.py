"""Which position every slot holds, replayed from the events of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import TraceError
from kvmmu.trace.reader import Trace
from kvmmu.trace.schema import ChunkEvent, DecodeBlock, LaneEvent, TraceHeader

__all__ = ["Occupancy", "occupancy"]


class Occupancy:
    """Hold positions int32 [L, B, H, C], -1 = empty (or past the layer's own slots).

    Raises TraceError where the trace lets a position leave that its slot does not hold.
    """

    def __init__(self, header: TraceHeader) -> None:
        self.positions = np.full(header.table_shape, -1, dtype=np.int32)

    def decode(self, block: DecodeBlock, index: int) -> None:
        """Apply step `index` of a decode block."""
        slots, evicted = block.slots[index], block.evicted[index]  # [L,B,H]
        written = slots >= 0
        at = np.where(written, slots, 0)[..., None]
        held = np.take_along_axis(self.positions, at, axis=-1)[..., 0]
        self._check(int(block.steps[index]), np.where(written, held, evicted), evicted)
        fresh = np.where(written, block.positions[index][None, :, None], held)
        np.put_along_axis(self.positions, at, fresh[..., None].astype(np.int32), axis=-1)

    def chunk(self, event: ChunkEvent) -> None:
        """Apply one layer's chunk."""
        at = (event.layer, event.lanes, event.heads, event.slots)
        self._check(event.step, self.positions[at], event.evicted)
        self.positions[at] = event.positions

    def lane(self, event: LaneEvent) -> None:
        """Apply a lane event: all but reorder and merge leave the lanes empty."""
        if event.kind == "reorder":
            self.positions[:, event.lanes] = self.positions[:, event.sources]
        elif event.kind != "merge":
            self.positions[:, event.lanes] = -1

    def _check(self, step: int, held: NDArray[Any], evicted: NDArray[Any]) -> None:
        wrong = np.argwhere(held != evicted)
        if len(wrong):
            at = tuple(wrong[0])
            raise TraceError(
                f"step {step}: the trace evicts position {evicted[at]} "
                f"from a slot that holds {held[at]}"
            )


def occupancy(trace: Trace) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Yield (step, positions [L, B, H, C]) after each decode step and each prefill step.

    The chunks of all layers with one step number make one prefill step. Arrays are copies.
    """
    state = Occupancy(trace.header)
    open_step: int | None = None  # a prefill step whose layers are still coming
    for event in trace.events():
        is_same = isinstance(event, ChunkEvent) and event.step == open_step
        if open_step is not None and not is_same:
            yield open_step, state.positions.copy()
            open_step = None
        if isinstance(event, ChunkEvent):
            state.chunk(event)
            open_step = event.step
        elif isinstance(event, LaneEvent):
            state.lane(event)
        else:
            for index, step in enumerate(event.steps):
                state.decode(event, index)
                yield int(step), state.positions.copy()
    if open_step is not None:
        yield open_step, state.positions.copy()
