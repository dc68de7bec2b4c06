"""Functions of vectors, made of the operations: exp and the activations of MLPs."""

# mypy: ignore-errors
# numba and LLVM type what is in here, when it is compiled
from __future__ import annotations

import numpy as np
from numba import njit

from kvmmu.kernels.native.operations import (
    add,
    bits,
    div,
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

__all__ = ["GELU", "GELU_TANH", "RELU", "SILU", "activate", "exp"]

F = np.float32

SILU, GELU, GELU_TANH, RELU = range(4)
"""Activations, as kernels name them."""


@njit
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


@njit
def _one_over_one_plus(x):
    """Return 1 / (1 + x)."""
    return div(splat(F(1)), add(splat(F(1)), x))


@njit
def _erf(x):
    """Return erf(x) within 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    is_negative = less(x, splat(F(0)))
    a = pick(is_negative, sub(splat(F(0)), x), x)
    t = _one_over_one_plus(mul(splat(F(0.3275911)), a))
    p = fma(splat(F(1.061405429)), t, splat(F(-1.453152027)))
    p = fma(p, t, splat(F(1.421413741)))
    p = fma(p, t, splat(F(-0.284496736)))
    p = mul(fma(p, t, splat(F(0.254829592))), t)
    y = sub(splat(F(1)), mul(p, exp(sub(splat(F(0)), mul(a, a)))))
    return pick(is_negative, sub(splat(F(0)), y), y)


@njit
def activate(code, x):
    """Apply one of the activations."""
    if code == SILU:
        return mul(x, _one_over_one_plus(exp(sub(splat(F(0)), x))))
    if code == GELU:
        y = add(splat(F(1)), _erf(mul(x, splat(F(0.70710678118654752)))))
        return mul(mul(splat(F(0.5)), x), y)
    if code == GELU_TANH:  # tanh(u) = 1 - 2 / (1 + e**2u)
        u = mul(x, fma(mul(x, x), splat(F(0.035677408136300125)), splat(F(0.7978845608028654))))
        y = sub(splat(F(1)), mul(splat(F(2)), _one_over_one_plus(exp(add(u, u)))))
        return mul(mul(splat(F(0.5)), x), add(splat(F(1)), y))
    return pick(less(x, splat(F(0))), splat(F(0)), x)
