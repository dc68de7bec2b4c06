"""y = x W^T for few rows: one thread's share of the columns, and what follows a product.

Each number of y is one sum of `dots`: its bits do not depend on the other rows, on their number
or on the share of the thread. The rows of x are laid out by `put_row`: where K is no multiple of
LANES, one more vector holds the terms that are left, at its end, behind zeros; W is read as it is,
its last vector overlapping the one before.
"""

# mypy: ignore-errors
# numba and LLVM type what is in here, when it is compiled
from __future__ import annotations

import numpy as np
from numba import njit

from kvmmu.kernels.native.access import floats_at, put_floats
from kvmmu.kernels.native.operations import add, mul, read, write
from kvmmu.kernels.native.tiles import dots
from kvmmu.kernels.native.vectors import LANES, REGISTERS

__all__ = ["finish_product", "product", "put_row", "row_width", "share"]

F, F4 = np.float32, np.float32(0)

_ONE, _TWO, _FOUR, _EIGHT = (0,), (0,) * 2, (0,) * 4, (0,) * 8
_IS_WIDE = REGISTERS >= 32


@njit
def row_width(K):
    """Return how many floats a row of K takes as `put_row` lays it out."""
    return K - K % LANES + (LANES if K % LANES else 0)


@njit
def put_row(x, K, row):
    """Lay out K floats at x, an address, in row [row_width(K)] as `product` reads them."""
    num = K - K % LANES
    for k in range(num):
        row[k] = read(F4, x + 4 * k)
    for i in range(row.shape[0] - num):
        k = K - LANES + i
        row[num + i] = read(F4, x + 4 * k) if k >= num else F(0)


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


@njit
def _short_product(kind, x, M, w, w_bytes, out, out_bytes, first, last, K):
    """Do what `product` does where a row is less than a vector."""
    for m in range(M):
        for n in range(first, last):
            y = F(0)
            for k in range(K):
                y += x[m, LANES - K + k] * read(kind, w + n * w_bytes + k * (w_bytes // K))
            write(F4, out + m * out_bytes + 4 * n, y)


@njit(inline="never")
def product(kind, x, w, w_bytes, out, out_bytes, first, last, K):
    """Put x @ W[first:last]^T into out[:, first:last], float32, without scale and bias.

    x float32 [M, row_width(K)]; w and out are addresses, with the bytes of a row.
    """
    M, width = x.shape
    if K < LANES:
        _short_product(kind, x, M, w, w_bytes, out, out_bytes, first, last, K)
        return
    span = (np.int64(K - K % LANES), np.int64(K - LANES if K % LANES else -1))
    edge = np.empty((M, 4), np.float32)
    x_at, out_bytes = np.int64(x.ctypes.data), np.int64(out_bytes)
    for n in range(first, last, 4):
        w_tile = (np.int64(n), np.int64(last - 1), np.int64(w_bytes))
        if last - n >= 4:
            _tile(kind, x_at, 4 * width, M, w, w_tile, span, np.int64(out + 4 * n), out_bytes)
        else:
            here = np.int64(edge.ctypes.data)
            _tile(kind, x_at, 4 * width, M, w, w_tile, span, here, np.int64(16))
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
