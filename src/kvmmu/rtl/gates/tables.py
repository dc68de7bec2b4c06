"""Look-up tables of a liberty: values over input slew, load, or the slews of two pins."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvmmu.errors import SpecError

__all__ = ["AXES", "Table", "scalar_table"]

_Floats = NDArray[np.float64]

AXES: dict[str, str] = {
    "input_net_transition": "slew",
    "input_transition_time": "slew",
    "total_output_net_capacitance": "load",
    "related_pin_transition": "related_slew",
    "constrained_pin_transition": "constrained_slew",
}
"""Liberty's names of a table's variables, and ours."""


@dataclass(frozen=True)
class Table:
    """Hold values [len(index[0]), len(index[1])]; a scalar has no axes, values ().

    Slews in ns as the library counts them, loads in pF.
    """

    axes: tuple[str, ...]
    index: tuple[tuple[float, ...], ...]
    values: _Floats

    def __post_init__(self) -> None:
        if self.values.shape != tuple(len(points) for points in self.index):
            raise SpecError(
                f"values must have shape {[len(p) for p in self.index]}, "
                f"got {list(self.values.shape)}"
            )
        for points in self.index:
            if any(b <= a for a, b in pairwise(points)):
                raise SpecError(f"index must ascend, got {points}")
        self.values.flags.writeable = False

    def at(self, **point: ArrayLike) -> _Floats:
        """Interpolate at `point`, axis name -> array; linear, and linear past the ends.

        All arrays have one shape, which the result has too. Names that the table does not use
        are ignored. Raises SpecError if an axis of the table is missing.
        """
        missing = [axis for axis in self.axes if axis not in point]
        if missing:
            raise SpecError(f"point must name {missing[0]!r}, got {sorted(point)}")
        places = np.broadcast_arrays(*(np.asarray(p, dtype=np.float64) for p in point.values()))
        named = dict(zip(point, places))
        shape = places[0].shape if places else ()
        result = np.broadcast_to(
            self.values.reshape(self.values.shape + (1,) * len(shape)), self.values.shape + shape
        )
        for axis, points in zip(self.axes, self.index):
            result = _interpolate(result, np.asarray(points), named[axis])
        return np.array(result)


def _interpolate(values: _Floats, points: _Floats, place: _Floats) -> _Floats:
    """Take out the first axis of values [n, ..., *shape] at place [*shape]."""
    if len(points) == 1:
        return np.asarray(values[0])
    low = np.clip(np.searchsorted(points, place, side="right") - 1, 0, len(points) - 2)
    share = (place - points[low]) / (points[low + 1] - points[low])
    extra = values.ndim - 1 - place.ndim
    where = low.reshape((1,) * (extra + 1) + low.shape)
    lower = np.take_along_axis(values, where, axis=0)[0]
    upper = np.take_along_axis(values, where + 1, axis=0)[0]
    return np.asarray(lower + share * (upper - lower))


def scalar_table(value: float) -> Table:
    """Return a table of one value."""
    return Table(axes=(), index=(), values=np.array(float(value)))
