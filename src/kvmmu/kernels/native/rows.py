"""What happens to whole rows between products: norms, rotation by position."""

# mypy: ignore-errors
# numba and LLVM type what is in here, when it is compiled
from __future__ import annotations

import math

import numpy as np
from numba import njit

from kvmmu.kernels.native.access import floats_at, put_floats
from kvmmu.kernels.native.operations import add, fma, mul, splat, sub, total
from kvmmu.kernels.native.vectors import LANES

__all__ = ["LAYER_NORM", "NO_NORM", "RMS_NORM", "copy_row", "norm_row", "rotate_row"]

F = np.float32

NO_NORM, RMS_NORM, LAYER_NORM = range(3)
"""Norms, as kernels name them."""


@njit
def copy_row(x, num, out):
    """Copy `num` float32 and fill up the last vector with zeros."""
    for i in range(0, num, LANES):
        put_floats(out + 4 * i, LANES, floats_at(x + 4 * i, num - i))


@njit
def norm_row(kind, x, num, weight, bias, eps, out):
    """Normalise `num` float32 at x into out; weight and bias are addresses, 0 for none."""
    if kind == NO_NORM:
        if out != x:
            copy_row(x, num, out)
        return
    mean = F(0)
    if kind == LAYER_NORM:
        sums = splat(F(0))
        for i in range(0, num, LANES):
            sums = add(sums, floats_at(x + 4 * i, num - i))
        mean = total(sums) / F(num)
    squares = splat(F(0))
    for i in range(0, num - num % LANES, LANES):
        y = sub(floats_at(x + 4 * i, LANES), splat(mean))
        squares = fma(y, y, squares)
    square = total(squares)
    for i in range(num - num % LANES, num):
        y = F(total(floats_at(x + 4 * i, 1))) - mean
        square += y * y
    scale = splat(F(1 / math.sqrt(square / num + eps)))
    for i in range(0, num, LANES):
        y = mul(sub(floats_at(x + 4 * i, num - i), splat(mean)), scale)
        if weight != 0:
            y = mul(y, floats_at(weight + 4 * i, num - i))
        if bias != 0:
            y = add(y, floats_at(bias + 4 * i, num - i))
        put_floats(out + 4 * i, num - i, y)


@njit
def rotate_row(x, half, cos, sin):
    """Rotate 2 * half float32 at x in place: the first half against the second."""
    for i in range(0, half, LANES):
        num = half - i
        a, b = floats_at(x + 4 * i, num), floats_at(x + 4 * (half + i), num)
        c, s = floats_at(cos + 4 * i, num), floats_at(sin + 4 * i, num)
        put_floats(x + 4 * i, num, sub(mul(a, c), mul(b, s)))
        put_floats(x + 4 * (half + i), num, add(mul(b, c), mul(a, s)))
