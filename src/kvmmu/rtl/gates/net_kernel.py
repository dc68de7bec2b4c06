"""Nets and what changes them; the records of the simulator's state."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["NET", "NODE", "ROW", "drive", "longs", "toggle"]

_Ints = NDArray[np.int64]
_Bytes = NDArray[np.uint8]
_Records = Any  # structured arrays of the types below; numpy's stubs do not know their fields


def longs(*names: str) -> list[tuple[str, str]]:
    return [(name, "i8") for name in names]


NET = np.dtype(longs("level", "rises", "falls", "high", "since", "fan", "fan_end"))
"""fan to fan_end: rows of `fan` [n, 2], a node that reads the net and the row bit it flips."""
NODE = np.dtype(
    longs("bits", "out", "row_base", "time_base", "slot_base", "pair_base", "row", "seen", "since")
)
"""row follows the nets at once, seen is the row settled last, since the cycle it was settled."""
ROW = np.dtype(longs("outputs", "next_state", "edge", "edge_end"))
"""One row of a cell type: levels of the outputs as bits, the state clocked in, edge entries."""


@njit(cache=True)
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


@njit(cache=True)
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
