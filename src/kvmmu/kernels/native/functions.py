"""Functions of vectors, made of the operations: exp and what activations need."""

from __future__ import annotations

import numpy as np
from numba import njit

from kvmmu.kernels.native.operations import (
    add,
    bits,
    fma,
    from_bits,
    greater,
    less,
    mul,
    pick,
    shift_left,
    splat,
    sub,
)

__all__ = ["exp"]

F = np.float32


@njit(inline="never")
def exp(x):
    """Return e**x within 2 units of the last place; 0 below -87, at most e**88; NaN stays."""
    is_small = less(x, splat(F(-87.0)))
    is_large = greater(x, splat(F(88.0)))
    x = pick(is_small, splat(F(-87.0)), pick(is_large, splat(F(88.0)), x))
    shifted = fma(x, splat(F(1.44269504088896341)), splat(F(12582912.0)))  # 1.5 * 2**23: rounds
    n = sub(shifted, splat(F(12582912.0)))
    r = fma(n, splat(F(-0.693359375)), x)  # log 2 in two parts
    r = fma(n, splat(F(2.12194440e-4)), r)
    p = fma(splat(F(1.9875691500e-4)), r, splat(F(1.3981999507e-3)))
    p = fma(p, r, splat(F(8.3334519073e-3)))
    p = fma(p, r, splat(F(4.1665795894e-2)))
    p = fma(p, r, splat(F(1.6666665459e-1)))
    p = fma(p, r, splat(F(5.0000001201e-1)))
    p = add(fma(mul(r, r), p, r), splat(F(1.0)))
    power = shift_left(bits(shifted), splat(np.int32(23)))  # n in the exponent's place
    p = from_bits(add(bits(p), power))
    return pick(is_small, splat(F(0.0)), p)
