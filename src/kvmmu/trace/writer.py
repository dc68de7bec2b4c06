"""TraceWriter: appends events to a trace file that appears under its name only when complete."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from kvmmu.errors import TraceError
from kvmmu.trace import frames
from kvmmu.trace.schema import ChunkEvent, DecodeBlock, Event, LaneEvent, TraceHeader, check_event

__all__ = ["TraceWriter"]


class TraceWriter:
    """Write events in the order they happened to `path`.partial; close renames it to `path`.

    With masses=True every decode block and chunk must carry its masses. As a context manager it
    closes at the end and discards the file if the block raised.
    """

    def __init__(self, path: str | Path, header: TraceHeader, *, masses: bool = False) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"a trace must be a file, got the folder {str(path)!r}")
        self.header = replace(header, has_masses=masses)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._counts = {"blocks": 0, "decode_steps": 0, "chunks": 0, "lane_events": 0}
        self._file: BinaryIO | None = self._partial.open("wb")
        try:
            frames.write_header(self._file, self.header.to_json())
        except BaseException:
            self.discard()
            raise

    def write(self, event: Event) -> None:
        """Append one event; raises ValueError or TypeError if an array breaks the schema."""
        if self._file is None:
            raise TraceError(f"the writer of {self.path} is closed")
        arrays = check_event(event, self.header)
        masses = arrays.pop("masses", None)
        if not isinstance(event, LaneEvent) and (masses is not None) != self.header.has_masses:
            rule = "be given" if self.header.has_masses else "not be given"
            raise ValueError(f"masses must {rule} in a trace with masses={self.header.has_masses}")
        fields: dict[str, Any] = {}
        if isinstance(event, DecodeBlock):
            kind = frames.DECODE
            self._counts["decode_steps"] += len(arrays["steps"])
        elif isinstance(event, ChunkEvent):
            kind, fields = frames.CHUNK, {"step": int(event.step), "layer": int(event.layer)}
            self._counts["chunks"] += 1
        else:
            kind, fields = frames.LANE, {"step": int(event.step), "kind": event.kind}
            self._counts["lane_events"] += 1
        self._append(kind, frames.pack(fields, arrays))
        if masses is not None:
            self._append(frames.MASSES, frames.pack({}, {"masses": masses}))

    def close(self) -> None:
        """Write the end block and give the file its name; a second close does nothing.

        What was written is discarded if that fails.
        """
        if self._file is None:
            return
        try:
            self._append(frames.END, frames.pack(self._counts, {}))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._partial, self.path)
        except BaseException:
            self.discard()
            raise
        self._file = None

    def discard(self) -> None:
        """Drop what was written; the file never appears."""
        if self._file is None:
            return
        try:
            self._file.close()
        finally:
            self._file = None
            self._partial.unlink(missing_ok=True)

    def _append(self, kind: int, payload: bytes) -> None:
        assert self._file is not None
        frames.write_frame(self._file, kind, payload=payload)
        self._counts["blocks"] += kind != frames.END

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
