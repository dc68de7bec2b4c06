"""Small traces: integer KV-MMUs over random masses, and the events that they cause."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from kvmmu import trace as tr
from kvmmu.fixed_point import FixedPointConfig, FixedPointMMU, quantize_masses
from kvmmu.geometry import CacheGeometry

SLOTS, SINKS, WINDOW, CHUNK = (6, 8), 1, 2, 5


def header(**changes: Any) -> tr.TraceHeader:
    geometry = CacheGeometry(
        num_layers=2, batch=3, num_kv_heads=2, head_dim=4, slots=SLOTS, dtype="float16", itemsize=2
    )
    plain = tr.TraceHeader(
        geometry=geometry,
        policy="rce",
        policy_parameters={"decay": 0.875, "normalize": "none"},
        granularity="head",
        num_sinks=SINKS,
        window=WINDOW,
        chunk_size=CHUNK,
        kvmmu_version="0.1.0",
        created_by="tests",
        layer_types=("full", "full"),
        model="toy",
        decay_shift=3,
    )
    return dataclasses.replace(plain, **changes)


class Recorder:
    """Drive integer KV-MMUs over random masses and collect the events they would cause."""

    def __init__(self, head: tr.TraceHeader, seed: int) -> None:
        self.head, self.rng = head, np.random.default_rng(seed)
        self.shape = (head.geometry.batch, head.num_tables)
        self.step = 0
        self.mmus = [
            FixedPointMMU(
                FixedPointConfig(c, head.num_sinks, head.window, head.decay_shift),
                shape=self.shape,
            )
            for c in head.geometry.slots
        ]
        self.seen = np.zeros(self.shape[0], int)

    def weights(self, mmu: FixedPointMMU, num_new: int = 0) -> np.ndarray[Any, Any]:
        width = mmu.config.num_slots + num_new
        return self.rng.dirichlet(np.full(width, 0.3), self.shape).astype(np.float32)

    def chunk(self, valid: np.ndarray[Any, Any]) -> list[tr.ChunkEvent]:
        events = []
        self.seen += valid.sum(-1)
        for layer, mmu in enumerate(self.mmus):
            n_valid = (mmu.positions[:, 0] >= 0).sum(-1)
            counts = np.broadcast_to(valid.sum(-1)[:, None], self.shape)
            weights = self.weights(mmu, valid.shape[1]) * counts[..., None]
            masses = quantize_masses(weights, counts)
            writes = mmu.commit_chunk(masses, valid=np.repeat(valid[:, None], self.shape[1], 1))
            rows = tr.flatten_writes(writes.slots, writes.positions, evicted=writes.evicted)
            events.append(
                tr.ChunkEvent(self.step, layer, valid, n_valid, *rows, writes.num_dropped, masses)
            )
        self.step += 1
        return events

    def decode(self, asked: np.ndarray[Any, Any]) -> tr.DecodeBlock:
        L, B, H, C = self.head.table_shape
        S = len(asked)
        slots, evicted = np.full((2, S, L, B, H), -1, np.int32)
        masses = np.zeros((S, L, B, H, C), np.uint16)
        n_valid = np.zeros((S, L, B), np.int32)
        positions = np.full((S, B), -1, np.int32)
        for s in range(S):
            valid = np.repeat(asked[s][:, None], H, 1)
            positions[s] = np.where(asked[s], self.seen, -1)
            self.seen += asked[s]
            for layer, mmu in enumerate(self.mmus):
                before = mmu.positions
                slots[s, layer] = mmu.admit(valid)
                at = np.maximum(slots[s, layer], 0)[..., None]
                left = np.take_along_axis(before, at, -1)[..., 0]
                evicted[s, layer] = np.where(valid, left, tr.NOT_WRITTEN)
                n_valid[s, layer] = (mmu.positions[:, 0] >= 0).sum(-1)
                words = quantize_masses(self.weights(mmu)) * valid[..., None]
                mmu.accumulate(words)
                masses[s, layer, :, :, : mmu.config.num_slots] = words
        steps = np.arange(self.step, self.step + S)
        self.step += S
        return tr.DecodeBlock(steps, asked.astype(int), slots, evicted, positions, n_valid, masses)

    def lane(self, kind: str, lanes: list[int], sources: list[int] | None = None) -> tr.LaneEvent:
        for mmu in self.mmus:
            if kind == "reorder":
                mmu.reorder(np.array(sources))
            elif kind != "merge":
                mmu.clear(np.isin(np.arange(self.shape[0]), lanes)[:, None])
        if kind == "reorder":
            self.seen = self.seen[sources]
        elif kind != "merge":
            self.seen[lanes] = 0
        from_ = None if sources is None else np.array(sources)
        return tr.LaneEvent(kind, self.step, np.array(lanes), from_)


def story(head: tr.TraceHeader, seed: int = 0) -> tuple[list[tr.Event], Recorder]:
    """A left-padded prefill in chunks, decode, beams, a lane that is released and used again."""
    recorder = Recorder(head, seed)
    events: list[tr.Event] = [recorder.lane("admit", [0, 1, 2])]
    padded = np.arange(CHUNK) >= np.array([[0], [2], [5]])
    for valid in (padded, np.ones((3, CHUNK), bool), np.ones((3, 3), bool)):
        events += recorder.chunk(valid)
    asked = np.ones((12, 3), bool)
    asked[7:, 1] = False
    events.append(recorder.decode(asked))
    events.append(recorder.lane("reorder", [0, 1, 2], [0, 0, 2]))
    events.append(recorder.lane("merge", [1]))
    events.append(recorder.decode(np.ones((1, 3), bool)))
    events += [recorder.lane("release", [2]), recorder.lane("admit", [2])]
    events.append(recorder.decode(np.array([[True, True, True], [False, True, True]])))
    return events, recorder


def bare(event: tr.Event) -> tr.Event:
    return event if isinstance(event, tr.LaneEvent) else dataclasses.replace(event, masses=None)


def write(path: Path, head: tr.TraceHeader, events: list[tr.Event], *, masses: bool) -> Path:
    with tr.TraceWriter(path, head, masses=masses) as writer:
        for event in events:
            writer.write(event if masses else bare(event))
    return path
