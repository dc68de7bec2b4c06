"""The events of a KV-MMU in one versioned file: the only door between software and hardware."""

from __future__ import annotations

from kvmmu.trace.agreement import VictimAgreement, VictimTally, agreement
from kvmmu.trace.occupancy import occupancy
from kvmmu.trace.reader import Trace, read
from kvmmu.trace.replay import ReplayReport, replay
from kvmmu.trace.schema import (
    NOT_WRITTEN,
    ChunkEvent,
    DecodeBlock,
    Event,
    LaneEvent,
    TraceHeader,
    flatten_writes,
    masses_nbytes,
)
from kvmmu.trace.summary import PhaseSummary, TraceSummary, summary
from kvmmu.trace.writer import TraceWriter

__all__ = [
    "ChunkEvent",
    "DecodeBlock",
    "Event",
    "LaneEvent",
    "NOT_WRITTEN",
    "PhaseSummary",
    "ReplayReport",
    "Trace",
    "TraceHeader",
    "TraceSummary",
    "TraceWriter",
    "VictimAgreement",
    "VictimTally",
    "agreement",
    "flatten_writes",
    "masses_nbytes",
    "occupancy",
    "read",
    "replay",
    "summary",
]
