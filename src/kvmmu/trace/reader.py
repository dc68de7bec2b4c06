"""read: opens a trace, refuses what is foreign or damaged, and yields its events lazily."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from kvmmu.errors import TraceError
from kvmmu.trace import frames
from kvmmu.trace.schema import ChunkEvent, DecodeBlock, Event, LaneEvent, TraceHeader, check_event

__all__ = ["Trace", "read"]

KINDS: dict[int, type[Any]] = {
    frames.DECODE: DecodeBlock,
    frames.CHUNK: ChunkEvent,
    frames.LANE: LaneEvent,
}


@dataclass(frozen=True)
class Trace:
    """A trace file whose structure is known to be whole; payloads are read on demand."""

    path: Path
    header: TraceHeader
    num_steps: int
    num_chunk_events: int
    num_lane_events: int
    blocks: tuple[frames.Frame, ...]

    def events(self, *, masses: bool = False) -> Iterator[Event]:
        """Yield the events in order; with masses=True they carry the masses.

        Raises TraceError at the block whose checksum or content is wrong.
        """
        if masses and not self.header.has_masses:
            raise TraceError(f"{self.path} holds no masses; record it with masses=True")
        with self.path.open("rb") as file:
            for i, frame in enumerate(self.blocks):
                if frame.kind in (frames.MASSES, frames.END):
                    continue
                event = self._event(file, frame)
                if masses and not isinstance(event, LaneEvent):
                    event = self._with_masses(file, i + 1, event)
                yield event

    def verify(self) -> None:
        """Read every block once; raises TraceError if one is damaged."""
        for _ in self.events(masses=self.header.has_masses):
            pass

    def _event(self, file: BinaryIO, frame: frames.Frame) -> Event:
        fields, arrays = _content(file, frame, self.path)
        try:
            if frame.kind not in KINDS:
                raise ValueError(f"unknown kind {frame.kind}")
            event: Event = KINDS[frame.kind](**fields, **arrays)
            check_event(event, self.header)
        except (TypeError, ValueError) as error:
            raise TraceError(f"block {frame.number} of {self.path}: {error}") from error
        return event

    def _with_masses(
        self, file: BinaryIO, index: int, event: DecodeBlock | ChunkEvent
    ) -> DecodeBlock | ChunkEvent:
        frame = self.blocks[index]
        if frame.kind != frames.MASSES:
            raise TraceError(f"block {frame.number} of {self.path} must hold masses")
        _, arrays = _content(file, frame, self.path)
        full = replace(event, masses=arrays.get("masses"))
        try:
            check_event(full, self.header)
        except (TypeError, ValueError) as error:
            raise TraceError(f"block {frame.number} of {self.path}: {error}") from error
        return full


def read(path: str | Path) -> Trace:
    """Open a trace and walk its block heads; payloads are checked when they are read.

    Raises TraceError if the file is foreign, of another version, truncated or damaged.
    """
    place = Path(path)
    size = place.stat().st_size
    with place.open("rb") as file:
        try:
            header = TraceHeader.from_json(frames.read_header(file, place))
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"the header of {place} is wrong: {error}") from error
        index = tuple(frames.read_frames(file, place, size=size))
        counts, _ = _content(file, index[-1], place)
    names = ("blocks", "decode_steps", "chunks", "lane_events")
    num_blocks, *totals = (int(counts.get(name, -1)) for name in names)
    if num_blocks != len(index) - 1:
        raise TraceError(f"{place} ends after {len(index) - 1} blocks, says {num_blocks}")
    return Trace(
        path=place,
        header=header,
        num_steps=totals[0],
        num_chunk_events=totals[1],
        num_lane_events=totals[2],
        blocks=index,
    )


def _content(file: BinaryIO, frame: frames.Frame, path: Path) -> tuple[dict[str, Any], Any]:
    try:
        return frames.unpack(frames.read_payload(file, frame, path=path))
    except (ValueError, KeyError, TypeError, struct.error, zlib.error) as error:
        raise TraceError(f"block {frame.number} of {path}: {error}") from error
