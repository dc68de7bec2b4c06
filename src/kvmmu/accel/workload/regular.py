"""A regular run as trace events: every lane the same prompt and answer, or lanes that join in turn.

The events have the schema of a recorded trace and go through the same reader. Which slot loses is
of no account here (costs do not depend on it); victims go round the unprotected slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmmu import __version__
from kvmmu.accel.workload.steps import Workload, read_workload
from kvmmu.geometry import CacheGeometry
from kvmmu.trace.schema import ChunkEvent, DecodeBlock, Event, LaneEvent, TraceHeader

__all__ = ["RegularRun", "regular_events", "regular_header", "regular_workload"]

_BLOCK = 256  # decode steps an event


@dataclass(frozen=True)
class RegularRun:
    """Say what every lane does. chunk is T; staggered lanes join one after another (mixed steps).

    Raises ValueError where a count breaks its rule.
    """

    prompt: int
    generate: int
    chunk: int
    is_staggered: bool = False

    def __post_init__(self) -> None:
        if self.prompt < 1:
            raise ValueError(f"prompt must be at least 1 token, got {self.prompt}")
        if self.generate < 1:
            raise ValueError(f"generate must be at least 1 token, got {self.generate}")
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1 token, got {self.chunk}")

    @property
    def num_tokens(self) -> int:
        """Tokens of one lane at the end; the last one generated is never fed back."""
        return self.prompt + self.generate


def regular_header(
    geometry: CacheGeometry,
    *,
    granularity: str,
    chunk: int,
    num_sinks: int,
    window: int,
    model: str,
) -> TraceHeader:
    """Return the header of a regular run."""
    if granularity not in ("head", "layer"):
        raise ValueError(f"granularity must be 'head' or 'layer', got {granularity!r}")
    return TraceHeader(
        geometry=geometry,
        policy="rce",
        granularity="head" if granularity == "head" else "layer",
        num_sinks=num_sinks,
        window=window,
        chunk_size=chunk,
        kvmmu_version=__version__,
        created_by="kvmmu simulate (regular shape)",
        model=model,
    )


def regular_workload(header: TraceHeader, run: RegularRun) -> Workload:
    """Return a regular run's steps; unlike a trace it knows which of them are of the prompt."""
    prompt_steps = 0 if run.is_staggered else -(-run.prompt // run.chunk)
    return read_workload(header, regular_events(header, run), num_prompt_steps=prompt_steps)


def regular_events(header: TraceHeader, run: RegularRun) -> Iterator[Event]:
    """Yield the events of a regular run: prompts in chunks, then one token a lane and step.

    The first token comes from the prompt's last forward, so decode has `generate` - 1 steps.
    """
    batch = header.geometry.batch
    yield LaneEvent("admit", 0, np.arange(batch, dtype=np.int32))
    if run.is_staggered:
        yield from _staggered(header, run)
        return
    everyone = np.ones(batch, dtype=np.int64)
    step = 0
    for begin in range(0, run.prompt, run.chunk):
        size = min(run.chunk, run.prompt - begin)
        yield from _feed(header, step, everyone * begin, everyone.astype(np.bool_), size=size)
        step += 1
    seen = everyone * run.prompt
    yield from _decode(header, step, seen, everyone.astype(np.bool_), count=run.generate - 1)
    yield LaneEvent("release", step, np.arange(batch, dtype=np.int32))


def _staggered(header: TraceHeader, run: RegularRun) -> Iterator[Event]:
    """Feed one lane's prompt after another while the lanes before it generate."""
    batch = header.geometry.batch
    seen = np.zeros(batch, dtype=np.int64)
    step = 0
    for lane in range(batch):
        for begin in range(0, run.prompt, run.chunk):
            size = min(run.chunk, run.prompt - begin)
            others = (np.arange(batch) < lane) & (seen < run.num_tokens - 1)
            mine = np.arange(batch) == lane
            yield from _feed(header, step, seen, mine, size=size)
            if others.any():
                yield from _decode(header, step, seen, others, count=1)
            seen = seen + others + mine * size
            step += 1
    left = run.num_tokens - 1 - seen
    for goal in sorted(set(left[left > 0].tolist())):
        active = run.num_tokens - 1 - seen > 0
        count = int(goal - (left.max() - (run.num_tokens - 1 - seen).max()))
        yield from _decode(header, step, seen, active, count=count)
        seen, step = seen + active * count, step + count
    yield LaneEvent("release", step, np.arange(batch, dtype=np.int32))


def _feed(
    header: TraceHeader, step: int, seen: NDArray[np.int64], lanes: NDArray[np.bool_], *, size: int
) -> Iterator[Event]:
    """Yield one chunk of `size` tokens of the marked lanes, layer by layer."""
    if size == 1:  # a call with one token takes the decode path
        yield from _decode(header, step, seen, lanes, count=1)
        return
    batch, H = header.geometry.batch, header.num_tables
    active = np.flatnonzero(lanes)
    valid = np.repeat(lanes[:, None], size, axis=1)
    for layer, C in enumerate(header.geometry.slots):
        live = np.minimum(seen, C)
        kept = min(size, C)  # the newest of the chunk; older tokens leave for them
        free = np.minimum(C - live, kept)[active]
        turn = np.arange(kept)
        slots = (live[active, None] + turn) % C  # [A,K]
        evicted = np.where(turn < free[:, None], -1, 0)
        positions = seen[active, None] + size - kept + turn
        rows = [np.repeat(x[:, None], H, axis=1) for x in (slots, evicted, positions)]  # [A,H,K]
        shape = rows[0].shape
        yield ChunkEvent(
            step=step,
            layer=layer,
            valid=valid,
            n_valid=np.where(lanes, live, 0),
            lanes=np.broadcast_to(active[:, None, None], shape).ravel(),
            heads=np.broadcast_to(np.arange(H)[None, :, None], shape).ravel(),
            slots=rows[0].ravel(),
            evicted=rows[1].ravel(),
            positions=rows[2].ravel(),
            num_dropped=np.where(lanes, size - kept, 0)[:, None].repeat(H, axis=1),
        )
    assert len(valid) == batch


def _decode(
    header: TraceHeader, step: int, seen: NDArray[np.int64], lanes: NDArray[np.bool_], *, count: int
) -> Iterator[Event]:
    """Yield `count` decode steps of the marked lanes in blocks; arrays are views, not copies."""
    slots_of = np.asarray(header.geometry.slots)  # [L]
    L, B, H = len(slots_of), len(lanes), header.num_tables
    for begin in range(0, count, _BLOCK):
        S = min(_BLOCK, count - begin)
        before = seen[None] + np.where(lanes, np.arange(begin, begin + S)[:, None], 0)  # [S,B]
        C = slots_of[None, :, None]
        written = np.where(lanes, before[:, None] % C, -1)  # [S,L,B]
        evicted = np.where(before[:, None] < C, -1, 0)
        evicted = np.where(lanes, evicted, -2)
        yield DecodeBlock(
            steps=np.arange(step + begin, step + begin + S),
            num_queries=np.broadcast_to(lanes.astype(np.int32), (S, B)),
            slots=np.broadcast_to(written[..., None], (S, L, B, H)),
            evicted=np.broadcast_to(evicted[..., None], (S, L, B, H)),
            positions=before.astype(np.int32),
            n_valid=np.minimum(before[:, None] + lanes, C),
        )
