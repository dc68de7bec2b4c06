"""A recorded trace as commands and masses, and whether it is a hard enough test.

A lane of the trace gets a lane of the block (ADMIT) at its first token and gives it back (RELEASE)
where the trace releases or resets it, so the block's lane numbers differ from the trace's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import TraceError
from kvmmu.fixed_point import MASS_MAX
from kvmmu.rtl.config import BlockConfig
from kvmmu.rtl.model import num_rows
from kvmmu.rtl.ports import Op
from kvmmu.rtl.transactions import BlockSettings, Command, LayerSettings, Masses
from kvmmu.rtl.verify.stimuli import Item
from kvmmu.trace import DecodeBlock, LaneEvent, Trace, read, replay

__all__ = ["Hardness", "block_of", "measure", "qualify", "read_decodes", "trace_items"]

_MOST_BEATS = 256
"""Beats of a row that its sum takes without saturating."""


@dataclass(frozen=True)
class Hardness:
    """Count what a trace puts to the test, and name the rules it breaks."""

    steps: int
    evictions: int
    num_distinct_victims: int
    positive_minimum_share: float
    num_rescales: int
    num_ties: int
    num_lanes_left: int
    num_lanes_joined: int
    mismatches: int

    @property
    def faults(self) -> tuple[str, ...]:
        """Name each count that is too low for the trace to count as a test."""
        least: dict[str, float] = {
            "evictions": 2000,
            "num_distinct_victims": 200,
            "positive_minimum_share": 0.5,
            "num_rescales": 1,
            "num_ties": 1,
            "num_lanes_left": 1,
            "num_lanes_joined": 1,
        }
        low = [
            f"{name} must be at least {limit:g}, got {getattr(self, name):g}"
            for name, limit in least.items()
            if getattr(self, name) < limit
        ]
        if self.mismatches:
            low.append(f"its slots must be those of the replay, got {self.mismatches} others")
        return tuple(low)

    def describe(self) -> str:
        """Say all counts in one line."""
        return ", ".join(f"{name} {value:g}" for name, value in vars(self).items())


def read_decodes(path: str | Path) -> Trace:
    """Open a trace that the block can follow.

    Raises TraceError for one without masses, with chunks, or whose lanes are reordered or merged.
    """
    trace = read(path)
    if not trace.header.has_masses:
        raise TraceError(f"{path} must hold masses, got none; record it with masses=True")
    if trace.num_chunk_events:
        raise TraceError(
            f"{path} must hold decode steps alone, got {trace.num_chunk_events} chunks; record it "
            "with chunk_size=1 and the prompt fed token by token (prefill_chunk_size=1)"
        )
    for event in trace.events():
        if isinstance(event, LaneEvent) and event.kind in ("reorder", "merge"):
            raise TraceError(
                f"{path} must keep its lanes apart, got a {event.kind} at step {event.step}; "
                "record it without beams"
            )
    return trace


def block_of(
    trace: Trace, *, ways: int = 16, beats: int = 1, position_bits: int = 24
) -> tuple[BlockConfig, BlockSettings]:
    """Size a block for a trace, and set it to the trace's policy and to the `dram` layout."""
    header, geometry = trace.header, trace.header.geometry
    heads = header.num_tables
    slots = max(2 * ways, 1 << (max(geometry.slots) - 1).bit_length())
    config = BlockConfig(
        slots=slots,
        ways=ways,
        lanes=geometry.batch,
        layers=geometry.num_layers,
        heads=heads,
        position_bits=position_bits,
    )
    before = np.cumsum([0, *geometry.slots]).tolist()
    layers = tuple(
        LayerSettings(num_slots, base_bytes=before[n] * geometry.bytes_per_slot)
        for n, num_slots in enumerate(geometry.slots)
    )
    settings = BlockSettings(
        layers=layers,
        num_sinks=header.num_sinks,
        window=header.window,
        decay_shift=header.decay_shift,
        head_shift=(beats - 1).bit_length(),
        lane_stride_bytes=before[-1] * geometry.bytes_per_slot,
        slot_stride_bytes=geometry.bytes_per_slot // heads,
    )
    return config, settings


def trace_items(
    trace: Trace, *, ways: int = 16, beats: int = 1, seed: int = 0, most_steps: int | None = None
) -> Iterator[Item]:
    """Yield the trace's commands; each STEP carries the slot that the library wrote.

    beats is a power of two up to 256: each word is split at random into so many beats of which it
    is the mean. most_steps ends the trace after so many of its steps.
    """
    if not 1 <= beats <= _MOST_BEATS or beats & (beats - 1):
        raise ValueError(f"beats must be a power of two in [1, {_MOST_BEATS}], got {beats!r}")
    lanes = _Lanes(trace, ways, beats, np.random.default_rng(seed))
    left = trace.num_steps if most_steps is None else most_steps
    for event in trace.events(masses=True):
        if isinstance(event, LaneEvent):
            yield from lanes.leave(event)
        elif isinstance(event, DecodeBlock):
            for index in range(min(left, len(event.steps))):
                yield from lanes.step(event, index)
            left -= len(event.steps)
        if left <= 0:
            return


def measure(trace: Trace) -> Hardness:
    """Count what a trace puts to the test."""
    report = replay(trace)
    lanes = _Lanes(trace, 2, 1, np.random.default_rng(0))
    for event in trace.events(masses=True):
        if isinstance(event, LaneEvent):
            for _ in lanes.leave(event):
                pass
        elif isinstance(event, DecodeBlock):
            for index in range(len(event.steps)):
                for _ in lanes.join(event, index):
                    pass
    return Hardness(
        steps=report.steps,
        evictions=report.evictions,
        num_distinct_victims=report.num_distinct_victims,
        positive_minimum_share=report.positive_minimum_share,
        num_rescales=report.num_rescales,
        num_ties=report.num_ties,
        num_lanes_left=lanes.num_left,
        num_lanes_joined=lanes.num_joined,
        mismatches=report.mismatches,
    )


def qualify(trace: Trace) -> Hardness:
    """Return a trace's counts; raises TraceError, naming each fault, if it is too easy a test."""
    hardness = measure(trace)
    if hardness.faults:
        raise TraceError(f"{trace.path} is too easy a test: {'; '.join(hardness.faults)}")
    return hardness


class _Lanes:
    """Which lane of the block each lane of the trace has."""

    def __init__(self, trace: Trace, ways: int, beats: int, rng: np.random.Generator) -> None:
        self.header, self.ways, self.beats, self.rng = trace.header, ways, beats, rng
        self.of: dict[int, int] = {}
        self.num_left = self.num_joined = 0  # while another lane went on

    def join(self, block: DecodeBlock, index: int) -> Iterator[Item]:
        """Admit the lanes whose first token this step brings."""
        for lane in np.flatnonzero(block.num_queries[index]).tolist():
            if lane not in self.of:
                taken = set(self.of.values())
                self.num_joined += bool(taken) and int(block.steps[index]) > 0
                self.of[lane] = min(set(range(self.header.geometry.batch)) - taken)
                yield Item(Command(Op.ADMIT))

    def leave(self, event: LaneEvent) -> Iterator[Item]:
        """Release the lanes that a release or reset empties; an admit waits for its token."""
        if event.kind == "admit":
            return
        for lane in event.lanes.tolist():
            if lane in self.of:
                yield Item(Command(Op.RELEASE, lane=self.of.pop(lane)))
                self.num_left += bool(self.of)

    def step(self, block: DecodeBlock, index: int) -> Iterator[Item]:
        """Step every table of every lane with a token, lane by lane, layer by layer."""
        assert block.masses is not None
        yield from self.join(block, index)
        for lane in np.flatnonzero(block.num_queries[index]).tolist():
            position = int(block.positions[index, lane])
            for layer, num_slots in enumerate(self.header.geometry.slots):
                rows = num_rows(position, num_slots, ways=self.ways)
                for head in range(self.header.num_tables):
                    words = block.masses[index, layer, lane, head]
                    yield Item(
                        Command(Op.STEP, self.of[lane], layer, head),
                        self._rows(words[:num_slots], rows),
                        int(block.slots[index, layer, lane, head]),
                    )

    def _rows(self, words: NDArray[np.integer[Any]], rows: int) -> Masses:
        """Cut words into rows of beats; ways past the last slot get what they like."""
        size = rows * self.ways
        padded = self.rng.integers(0, MASS_MAX + 1, size)
        padded[: len(words)] = words[:size]
        beats = np.repeat(padded.reshape(rows, 1, self.ways), self.beats, axis=1)
        for first in range(0, self.beats - 1, 2):
            room = np.minimum(MASS_MAX - beats[:, first], beats[:, first + 1])
            moved = self.rng.integers(0, room + 1)
            beats[:, first] += moved
            beats[:, first + 1] -= moved
        return tuple(beats)
