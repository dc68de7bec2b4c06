"""Vectors that may hang over the end of what there is."""

from __future__ import annotations

import numpy as np
from numba import njit

from kvmmu.kernels.native.operations import (
    lane,
    load,
    load_ints,
    read,
    splat,
    store,
    with_lane,
    write,
)
from kvmmu.kernels.native.vectors import LANES

__all__ = ["floats_at", "ints_at", "put_floats"]

F4, I4 = np.float32(0), np.int32(0)


@njit
def ints_at(address, num, rest):
    """Load LANES ints, or the `num` that there are; the other lanes hold `rest`."""
    if num >= LANES:
        return load_ints(address)
    held = splat(rest)
    for i in range(num):
        held = with_lane(held, i, read(I4, address + 4 * i))
    return held


@njit
def floats_at(address, num):
    """Load LANES floats, or the `num` that there are; the other lanes hold 0."""
    if num >= LANES:
        return load(F4, address)
    held = splat(F4)
    for i in range(num):
        held = with_lane(held, i, read(F4, address + 4 * i))
    return held


@njit
def put_floats(address, num, x):
    """Store LANES floats, or the first `num` of them."""
    if num >= LANES:
        store(F4, address, x)
        return
    for i in range(num):
        write(F4, address + 4 * i, lane(x, i))
