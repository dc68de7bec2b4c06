"""The fused step over all rows: one task for each (row, KV head), shared among threads.

A task reads K once for all query heads of its group, then V once; what it holds besides is
(G + 1) * C numbers, in the core's cache. No sum depends on the tasks beside it.
"""

# mypy: ignore-errors
# numba and LLVM type what is in here, when it is compiled
from __future__ import annotations

import numpy as np
from numba import njit, prange

from kvmmu.kernels.native.heads import attend_head, choose_slot
from kvmmu.kernels.native.operations import read, write
from kvmmu.kernels.native.vectors import LANES

__all__ = ["refresh_lanes", "step_rows"]

F4, I4 = np.float32(0), np.int32(0)


@njit
def _replace(kv, act, source, target, num, act_bytes, kv_bytes):
    """Copy one row of a newcomer into its slot, in the slots' type."""
    for d in range(num):
        write(kv, target + kv_bytes * d, read(act, source + act_bytes * d))


@njit
def _some_heads(first, stride, group, slots, columns, kv, act, tables, rows, sizes, rule, numbers):
    """Do every stride-th (row, KV head); return how many named no lane or slot that exists."""
    tokens = (group, slots, columns, kv, act)
    keys, values, positions, scores, num_seen, victims = tables
    q, k, v, out, lanes, ats = rows
    N, B, H, C, D, q_row, k_row, v_row, out_row, kv_bytes, act_bytes = sizes
    G = len(group)
    width = C + 2 * LANES - C % LANES
    queries = np.empty((G, D + LANES), np.float32)
    weights = np.empty((G, width), np.float32)
    index = np.zeros(width, np.int32)
    norms = np.empty(G, np.float32)
    sums = np.empty((G, D + LANES), np.float32)
    scratch = (queries, weights, index, norms, sums)
    num_bad = 0
    for task in range(first, N * H, stride):
        n, h = task // H, task % H
        b = np.int64(read(I4, lanes + 4 * n))
        to = out + act_bytes * (n * out_row + h * G * D)
        if b < 0:
            for i in range(G * D):
                write(act, to + act_bytes * i, F4)
            continue
        head = b * H + h
        slot = np.int64(read(I4, victims + 4 * head)) if b < B else np.int64(-1)
        if slot < 0 or slot >= C:
            num_bad += 1
            continue
        at = np.int64(read(I4, ats + 4 * n))
        row = kv_bytes * D * (head * C + slot)
        _replace(kv, act, k + act_bytes * (n * k_row + h * D), keys + row, D, act_bytes, kv_bytes)
        _replace(kv, act, v + act_bytes * (n * v_row + h * D), values + row, D, act_bytes, kv_bytes)
        write(I4, positions + 4 * (head * C + slot), np.int32(at))
        write(F4, scores + 4 * (head * C + slot), F4)
        if h == 0:
            write(I4, num_seen + 4 * b, np.int32(at + 1))
        start, table = kv_bytes * D * head * C, 4 * head * C
        place = (keys + start, values + start, positions + table, scores + table)
        query = q + act_bytes * (n * q_row + h * G * D)
        victim = attend_head(
            tokens,
            place,
            (C, D, kv_bytes),
            (at, slot),
            rule,
            numbers,
            query,
            to,
            act_bytes,
            scratch,
        )
        write(I4, victims + 4 * head, victim)
    return num_bad


@njit
def _refresh_lane(b, tables, H, C, rule):
    """Find the next victims of one lane."""
    _, _, positions, scores, num_seen, victims = tables
    newest = np.int64(read(I4, num_seen + 4 * b))
    is_per_layer = rule[4] != 0
    for h in range(H):
        table = 4 * C * (b * H if is_per_layer else b * H + h)
        place = (np.int64(0), np.int64(0), positions + table, scores + table)
        victim = choose_slot(place, H if is_per_layer else 1, 4 * C, C, newest, rule)
        write(I4, victims + 4 * (b * H + h), victim)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def step_rows(group, slots, columns, kv, act, tables, rows, sizes, rule, numbers, threads):
    """Take a token into each row's lane and attend. Return the number of bad lanes and slots.

    group, slots, columns: of a tile, tuples of which the lengths count; kv, act: what stands for
    the types of K and V and of the rows. tables, rows: addresses as `_some_heads` unpacks them;
    sizes: numbers and row strides, in elements; rule as in heads.py.
    """
    num_bad = 0
    for t in prange(threads):
        num_bad += _some_heads(
            t, threads, group, slots, columns, kv, act, tables, rows, sizes, rule, numbers
        )
    if rule[4] != 0 and num_bad == 0:
        for t in prange(threads):
            for n in range(t, sizes[0], threads):
                b = np.int64(read(I4, rows[4] + 4 * n))
                if b >= 0:
                    _refresh_lane(b, tables, sizes[2], sizes[3], rule)
    return num_bad


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def refresh_lanes(lanes, tables, sizes, rule, threads):
    """Find the next victims of the lanes named; sizes: N, B, H, C. Return the bad lanes' number."""
    N, B, H, C = sizes
    num_bad = 0
    for t in prange(threads):
        for n in range(t, N, threads):
            b = np.int64(read(I4, lanes + 4 * n))
            if b >= B:
                num_bad += 1
            elif b >= 0:
                _refresh_lane(b, tables, H, C, rule)
    return num_bad
