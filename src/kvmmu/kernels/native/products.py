"""y = x W^T for few rows: the part of one thread, and what follows a product.

Each number of y is one sum of `dots`: its bits do not depend on the other rows, on their number
or on the share of the thread. W's rows are whole vectors long (zeros behind the K that count).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kvmmu.kernels.native.operations import add, fma, load, mul, read, splat, store, write
from kvmmu.kernels.native.tiles import dots
from kvmmu.kernels.native.vectors import LANES, REGISTERS

__all__ = ["finish_product", "product"]

F, F4 = np.float32, np.float32(0)

_ONE, _TWO, _FOUR, _EIGHT = (0,), (0,) * 2, (0,) * 4, (0,) * 8
_MANY = _FOUR if REGISTERS >= 32 else _TWO


@njit
def _tile(columns, kind, x, x_bytes, M, w, w_tile, span, out, out_bytes):
    """Multiply all M rows of x with a tile of W's rows."""
    m = 0
    step = len(_MANY)
    while m < M:
        tile = (np.int64(m), np.int64(M - 1), x_bytes)
        to = np.int64(out + m * out_bytes)
        if M - m >= step:
            dots(_MANY, columns, kind, x, tile, w, w_tile, span, to, out_bytes)
            m += step
        elif M - m >= 2:
            dots(_TWO, columns, kind, x, tile, w, w_tile, span, to, out_bytes)
            m += 2
        else:
            dots(_ONE, columns, kind, x, tile, w, w_tile, span, to, out_bytes)
            m += 1


@njit(inline="never")
def product(kind, x, x_bytes, M, w, w_bytes, K, out, out_bytes, first, last):
    """Put x @ W[first:last]^T into out[:, first:last], float32, without scale and bias."""
    span = (np.int64(K), np.int64(-1))
    edge = np.empty((M, 4), np.float32)
    n = first
    while n < last:
        w_tile = (np.int64(n), np.int64(last - 1), np.int64(w_bytes))
        if last - n >= 4:
            _tile(_FOUR, kind, x, x_bytes, M, w, w_tile, span, np.int64(out + 4 * n), out_bytes)
        else:
            here = np.int64(edge.ctypes.data)
            _tile(_FOUR, kind, x, x_bytes, M, w, w_tile, span, here, np.int64(16))
            for m in range(M):
                for i in range(last - n):
                    write(F4, out + m * out_bytes + 4 * (n + i), edge[m, i])
        n += 4
