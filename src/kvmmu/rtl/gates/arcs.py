"""Which of a cell's power arcs hold, and which edges of an input they follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.events import FALL, RISE, CellEvents
from kvmmu.rtl.gates.liberty import PowerArc
from kvmmu.rtl.gates.timing_pass import input_edges

__all__ = ["arcs_in", "causes"]


def arcs_in(arcs: Sequence[PowerArc], columns: Mapping[str, NDArray[np.bool_]]) -> list[PowerArc]:
    """Choose one arc a pin and related pin: that whose `when` holds, else the one without."""
    chosen: dict[tuple[str, str], PowerArc] = {}
    for arc in arcs:
        if arc.when is None:
            chosen.setdefault((arc.pin, arc.related), arc)
        elif arc.when.over(columns, 1)[0]:
            chosen[arc.pin, arc.related] = arc
    return list(chosen.values())


def causes(events: CellEvents, arc: PowerArc, edge: int) -> tuple[int, ...]:
    """Return the edges of the related input whose slew an event has."""
    if not arc.related:
        return (edge,)
    senses = {
        timing.sense
        for timing in events.cell.timing
        if timing.pin == arc.pin and timing.related == arc.related
    }
    return input_edges(senses.pop(), edge) if len(senses) == 1 else (RISE, FALL)
