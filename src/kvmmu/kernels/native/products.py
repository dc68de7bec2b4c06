"""y = x W^T for few rows: one thread's share of the columns, and what follows a product.

Each number of y is one sum of `dots`: its bits do not depend on the other rows, on their number
or on the share of the thread. W's rows are whole vectors long (zeros behind the K that count).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kvmmu.kernels.native.access import floats_at, put_floats
from kvmmu.kernels.native.operations import add, load, mul, splat, store, write
from kvmmu.kernels.native.tiles import dots
from kvmmu.kernels.native.vectors import LANES, REGISTERS

__all__ = ["finish_product", "padded", "product", "share"]

F, F4 = np.float32, np.float32(0)

_ONE, _TWO, _FOUR, _EIGHT = (0,), (0,) * 2, (0,) * 4, (0,) * 8
_IS_WIDE = REGISTERS >= 32


@njit
def padded(num):
    """Round up to whole vectors."""
    return (num + LANES - 1) // LANES * LANES


@njit
def share(num, unit, t, threads):
    """Return where part t of `num` columns begins, a multiple of `unit`; the last part ends it."""
    return num if t == threads else num // unit * t // threads * unit


@njit
def _tile(kind, x, x_bytes, M, w, w_tile, span, out, out_bytes):
    """Multiply all M rows of x with four rows of W, from w_tile[0] on."""
    m = 0
    while m < M:
        rows = (np.int64(m), np.int64(M - 1), np.int64(x_bytes))
        to = np.int64(out + m * out_bytes)
        if _IS_WIDE and M - m >= 8:  # more rows: fewer conversions of W's numbers
            second = (w_tile[0] + 2, w_tile[1], w_tile[2])
            dots(_EIGHT, _TWO, kind, x, rows, w, w_tile, span, to, out_bytes)
            dots(_EIGHT, _TWO, kind, x, rows, w, second, span, np.int64(to + 8), out_bytes)
            m += 8
        elif _IS_WIDE and M - m >= 4:
            dots(_FOUR, _FOUR, kind, x, rows, w, w_tile, span, to, out_bytes)
            m += 4
        elif M - m >= 2:
            dots(_TWO, _FOUR, kind, x, rows, w, w_tile, span, to, out_bytes)
            m += 2
        else:
            dots(_ONE, _FOUR, kind, x, rows, w, w_tile, span, to, out_bytes)
            m += 1


@njit(inline="never")
def product(kind, x, x_bytes, M, w, w_bytes, out, out_bytes, first, last, num_terms):
    """Put x @ W[first:last]^T into out[:, first:last], float32, without scale and bias.

    num_terms: numbers in a row of W and of x, a multiple of LANES.
    """
    span = (np.int64(num_terms), np.int64(-1))
    edge = np.empty((M, 4), np.float32)
    out_bytes = np.int64(out_bytes)
    for n in range(first, last, 4):
        w_tile = (np.int64(n), np.int64(last - 1), np.int64(w_bytes))
        if last - n >= 4:
            _tile(kind, x, x_bytes, M, w, w_tile, span, np.int64(out + 4 * n), out_bytes)
        else:
            here = np.int64(edge.ctypes.data)
            _tile(kind, x, x_bytes, M, w, w_tile, span, here, np.int64(16))
            for m in range(M):
                for i in range(last - n):
                    write(F4, out + m * out_bytes + 4 * (n + i), edge[m, i])


@njit
def finish_product(out, out_bytes, M, first, last, scales, bias, residual, residual_bytes):
    """Scale columns, add the bias, add the residual: addresses of float32, 0 for none."""
    if scales == 0 and bias == 0 and residual == 0:
        return
    for m in range(M):
        for n in range(first, last, LANES):
            num = last - n
            to = out + m * out_bytes + 4 * n
            y = floats_at(to, num)
            if scales != 0:
                y = mul(y, floats_at(scales + 4 * n, num))
            if bias != 0:
                y = add(y, floats_at(bias + 4 * n, num))
            if residual != 0:
                y = add(y, floats_at(residual + m * residual_bytes + 4 * n, num))
            put_floats(to, num, y)
