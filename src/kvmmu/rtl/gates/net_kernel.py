"""Nets and what changes them; the records of the simulator's state."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.rtl.gates.jit import kernel

__all__ = ["KIND", "NET", "NODE", "ROW", "drive", "integers", "toggle"]

_Ints = NDArray[np.int32]
_Bytes = NDArray[np.uint8]
_Records = Any  # structured arrays of the types below; numpy's stubs do not know their fields


def integers(*names: str) -> list[tuple[str, str]]:
    """Return 32-bit fields; records of 32 bytes keep a large netlist in the cache."""
    return [(name, "i4") for name in names]


NET = np.dtype(integers("level", "rises", "falls", "high", "since", "fan", "fan_end", "spare"))
"""fan to fan_end: rows of `fan` [n, 2], a node that reads the net and the row bit it flips."""
NODE = np.dtype(integers("kind", "out", "tally", "row", "seen", "since", "spare", "spare2"))
"""row follows the nets at once, seen is the row settled last, since the cycle it was settled.

tally[node.tally:] counts: cycles in each row, then the slots of events.py.
"""
KIND = np.dtype(integers("bits", "row", "pair", "slot"))
"""A cell type: places in `rows` and in the pairs' pointers; slot is 2 ** bits."""
ROW = np.dtype(integers("outputs", "next_state", "edge", "edge_end"))
"""One row of a cell type: levels of the outputs as bits, the state clocked in, edge entries."""


@kernel
def toggle(nets: _Records, nodes: _Records, fan: _Ints, dirty: _Bytes, now: int, net: int) -> None:
    one = nets[net]
    if one.level:
        one.level = 0
        one.falls += 1
        one.high += now - one.since
    else:
        one.level = 1
        one.rises += 1
        one.since = now
    for k in range(one.fan, one.fan_end):
        node = fan[k, 0]
        nodes[node].row ^= fan[k, 1]
        dirty[node] = 1


@kernel
def drive(
    nets: _Records,
    nodes: _Records,
    fan: _Ints,
    dirty: _Bytes,
    now: int,
    net: int,
    level: int | np.int64,
) -> None:
    """Set a net that no cell drives."""
    if nets[net].level != level:
        toggle(nets, nodes, fan, dirty, now, net)
