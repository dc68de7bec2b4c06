"""Softmax of a block of logits, and the planes over its queries, in one pass over memory.

A task is one KV head's share of the queries; into how many shares they are cut does not depend on
the threads, so no sum does. Rows are whole vectors: what hangs over the last key is masked.
"""

# mypy: ignore-errors
# numba and LLVM type what is in here, when it is compiled
from __future__ import annotations

import numpy as np
from numba import njit, prange

from kvmmu.kernels.native.functions import exp
from kvmmu.kernels.native.operations import (
    add,
    both,
    either,
    fma,
    greater,
    greatest,
    is_nan,
    less,
    load,
    load_ints,
    mul,
    pick,
    read,
    splat,
    store,
    sub,
    total,
)
from kvmmu.kernels.native.vectors import LANES

__all__ = ["MAX", "MEAN", "NEVER", "NO_PLANE", "SQUARE", "SUM", "weigh_rows"]

F, INT = np.float32, np.int32
F4, I4 = np.float32(0), np.int32(0)

NO_PLANE, SUM, MAX, MEAN, SQUARE = range(5)
"""How a plane takes a query in: weight x sum of the group, the greatest weight x mean, weight x
mean, weight x mean of the squares. The first two know the grace."""

NEVER = 2**31 - 1
"""The position of an empty slot: after every query."""


@njit
def _mask(rows, row_bytes, G, keys, W, at, low):
    """Put -inf where the query at `at` sees no key, in G rows of W logits."""
    for c in range(0, W, LANES):
        held = load_ints(keys + 4 * c)
        is_visible = both(less(held, splat(INT(at + 1))), greater(held, splat(INT(low))))
        for g in range(G):
            spot = rows + g * row_bytes + 4 * c
            store(F4, spot, pick(is_visible, load(F4, spot), splat(F(-np.inf))))


@njit
def _exponents(row, W):
    """Turn logits into e**(logit - greatest). -> 1 / their sum, 0 where nothing is visible."""
    most = splat(F(-np.inf))
    for c in range(0, W, LANES):
        x = load(F4, row + 4 * c)
        most = pick(greater(x, most), x, most)
    top = greatest(most)
    shift = splat(top if top > F(-np.inf) else F(0))
    sums = splat(F(0))
    for c in range(0, W, LANES):
        x = exp(sub(load(F4, row + 4 * c), shift))
        sums = add(sums, x)
        store(F4, row + 4 * c, x)
    whole = total(sums)
    return F(0) if whole == F(0) else F(1) / whole


@njit
def _fold(kind, plane, weight, sums, squares, is_old):
    """Take a query's sums over its group into a vector of a plane."""
    if kind == SQUARE:
        return fma(squares, splat(weight), plane)
    if kind == MEAN:
        return fma(sums, splat(weight), plane)
    new = pick(is_old, mul(sums, splat(weight)), splat(F(0)))
    if kind == SUM:
        return add(plane, new)
    return pick(either(greater(new, plane), is_nan(new)), new, plane)  # a NaN of either side stays


@njit
def _share(t, share, kinds, tables, sizes, limits, norms):
    """Weigh one KV head's share of the queries; norms: scratch [G]."""
    logits, keys, at, weights, planes = tables
    H, per_row, G, n, W = sizes
    horizon, grace = limits
    h, part = t // share[0], t % share[0]
    num = H // per_row  # rows of the batch
    b = h // per_row
    row_bytes = 4 * n * W
    key = keys + 4 * h * W
    for i in range(part * n // share[0], (part + 1) * n // share[0]):
        position = np.int64(read(I4, at + 4 * (b * n + i)))
        rows = logits + 4 * (h * G * n + i) * W
        _mask(rows, row_bytes, G, key, W, position, position - horizon if horizon > 0 else -1)
        for g in range(G):
            norms[g] = _exponents(rows + g * row_bytes, W)
        for c in range(0, W, LANES):
            sums, squares = splat(F(0)), splat(F(0))
            for g in range(G):
                spot = rows + g * row_bytes + 4 * c
                p = mul(load(F4, spot), splat(norms[g]))
                store(F4, spot, p)
                sums = add(sums, p)
                squares = fma(p, p, squares)
            is_old = less(load_ints(key + 4 * c), splat(INT(position - grace + 1)))
            for j in range(len(kinds)):
                if kinds[j] != NO_PLANE:
                    weight = read(F4, weights + 4 * ((j * num + b) * n + i))
                    spot = planes + 4 * (((j * H + h) * share[0] + part) * W + c)
                    found = _fold(kinds[j], load(F4, spot), weight, sums, squares, is_old)
                    store(F4, spot, found)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def weigh_rows(kinds, tables, sizes, limits, num_shares, threads):
    """Turn logits into probabilities, in place, and take them into the planes.

    kinds: five ways of a plane, the last ones NO_PLANE. tables: addresses of logits float32
    [H,G,n,W], key positions int32 [H,W], query positions int32 [H / per_row, n], weights float32
    [P, H / per_row, n], planes float32 [P,H,num_shares,W]. sizes: H, per_row, G, n, W; limits:
    horizon or 0, grace.
    """
    num_tasks = sizes[0] * num_shares
    for t in prange(threads):
        norms = np.empty(sizes[2], np.float32)
        for task in range(t, num_tasks, threads):
            _share(task, (num_shares,), kinds, tables, sizes, limits, norms)
