"""What the accelerator runs: the events of a trace, recorded or regular, as steps to be priced.

A recorded run and a regular-shape estimate are the same events (kvmmu.trace), so that they differ
only where the run itself differs: ragged lengths, joins and leaves, the fill phase, lanes copied.
"""

from __future__ import annotations

from kvmmu.accel.workload.regular import (
    RegularRun,
    regular_events,
    regular_header,
    regular_workload,
)
from kvmmu.accel.workload.steps import LaneCopy, LayerRun, Segment, Step, Workload, read_workload

__all__ = [
    "LaneCopy",
    "LayerRun",
    "RegularRun",
    "Segment",
    "Step",
    "Workload",
    "read_workload",
    "regular_events",
    "regular_header",
    "regular_workload",
]
