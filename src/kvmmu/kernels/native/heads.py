"""One KV head's part of the fused step: logits, softmax, scores, next victim, output.

Tuples that travel together:
    place   (keys, values, positions, scores) addresses of this lane's KV head
    size    (C, D, bytes of one K or V number)
    rule    (statistic, is_age, num_sinks, window, per_layer, horizon or 0, grace)
Scratch, float32 or int32, is the thread's own: queries [G, ...], weights [G, padded C], index
[padded C], sums [G, padded D].
"""

# mypy: ignore-errors
# numba and LLVM type what is in here, when it is compiled
from __future__ import annotations

import numpy as np
from numba import njit

from kvmmu.kernels.native.access import floats_at, ints_at, put_floats
from kvmmu.kernels.native.functions import exp
from kvmmu.kernels.native.operations import (
    add,
    both,
    either,
    fma,
    greater,
    greatest,
    iota,
    is_nan,
    less,
    load,
    mul,
    order_key,
    pick,
    read,
    smallest,
    splat,
    store,
    store_ints,
    sub,
    total,
    write,
)
from kvmmu.kernels.native.tiles import dots, weighted_rows
from kvmmu.kernels.native.vectors import LANES

__all__ = ["attend_head", "choose_slot"]

F, INT = np.float32, np.int32
F4, I4 = np.float32(0), np.int32(0)

NONE, MASS, MAX, NEWEST = range(4)
"""Statistics of a StepRule, as `rule` names them."""

_EMPTY, _LEFT_BEHIND, _PROTECTED = np.int32(-(2**31)), np.int32(1 - 2**31), np.int32(2**31 - 1)
"""Ranks beyond those of the policy: they leave first, second, never."""


@njit
def _num_used(positions, C):
    """Count the slots up to the last that holds a token."""
    used = C
    while used > 0 and read(I4, positions + 4 * (used - 1)) < 0:
        used -= 1
    return used


@njit
def _put_queries(group, act, q, q_bytes, queries, D):
    """Lay out the group's queries as `dots` reads them: whole vectors, then a masked last one."""
    num = D - D % LANES
    for g in range(len(group)):
        for d in range(0, num, LANES):
            x = load(act, q + q_bytes * (g * D + d))
            store(F4, np.int64(queries.ctypes.data) + 4 * (g * queries.shape[1] + d), x)
        for i in range(LANES):
            d = D - LANES + i
            queries[g, num + i] = read(act, q + q_bytes * (g * D + d)) if d >= num else F(0)


@njit
def _logits(group, slots, kv, place, size, used, queries, weights):
    """Put q.k of the slots in use into weights [G, *]."""
    _, D, kv_bytes = size
    if D < LANES:  # in queries, such a row stands at the end of its only vector
        for c in range(used):
            for g in range(len(group)):
                logit = F(0)
                for d in range(D):
                    x = queries[g, LANES - D + d]
                    logit += x * read(kv, place[0] + kv_bytes * (c * D + d))
                weights[g, c] = logit
        return
    x, w = np.int64(queries.ctypes.data), np.int64(weights.ctypes.data)
    x_tile = (np.int64(0), np.int64(len(group) - 1), np.int64(4 * queries.shape[1]))
    num = D - D % LANES
    span = (np.int64(num), np.int64(-1 if num == D else D - LANES))
    out_bytes = np.int64(4 * weights.shape[1])
    for c in range(0, used, len(slots)):
        w_tile = (np.int64(c), np.int64(used - 1), np.int64(D * kv_bytes))
        dots(group, slots, kv, x, x_tile, place[0], w_tile, span, np.int64(w + 4 * c), out_bytes)


@njit
def _mask(group, place, size, used, now, rule, scale, weights, index):
    """Scale the logits; -inf where a slot holds no visible token. now: (position, slot).

    index names the slots whose V is read: for an invisible one, that of the new token instead.
    """
    at, slot = now
    C = size[0]
    low = splat(INT(at - rule[5] if rule[5] > 0 else -1))
    for c in range(0, used, LANES):
        positions = ints_at(place[2] + 4 * c, C - c, INT(-1))
        is_visible = both(greater(positions, splat(INT(-1))), greater(positions, low))
        is_visible = both(is_visible, less(positions, splat(INT(at + 1))))
        here = add(splat(INT(c)), iota())
        store_ints(np.int64(index.ctypes.data) + 4 * c, pick(is_visible, here, splat(INT(slot))))
        for g in range(len(group)):
            spot = np.int64(weights.ctypes.data) + 4 * (g * weights.shape[1] + c)
            logit = mul(load(F4, spot), splat(F(scale)))
            store(F4, spot, pick(is_visible, logit, splat(F(-np.inf))))


@njit
def _softmax(group, used, weights, norms):
    """Turn logits into e**(logit - greatest), norms into 1 / their sums; unused weights into 0."""
    width = weights.shape[1]
    end = (used + LANES - 1) // LANES * LANES
    for g in range(len(group)):
        row = np.int64(weights.ctypes.data) + 4 * g * width
        most = splat(F(-np.inf))
        for c in range(0, end, LANES):
            x = load(F4, row + 4 * c)
            most = pick(greater(x, most), x, most)
        shift = splat(greatest(most))
        sums = splat(F(0))
        for c in range(0, end, LANES):
            x = exp(sub(load(F4, row + 4 * c), shift))
            sums = add(sums, x)
            store(F4, row + 4 * c, x)
        norms[g] = F(1) / total(sums)
        for c in range(end, width):
            weights[g, c] = F(0)


@njit
def _output(group, columns, kv, act, place, size, used, out, act_bytes, scratch):
    """Put the groups' weighted means of V into out [G,D] of the type `act`."""
    _, D, kv_bytes = size
    weights, index, norms, sums = scratch
    G, width = len(group), sums.shape[1]
    if D < LANES:
        for g in range(G):
            for d in range(D):
                x = F(0)
                for c in range(used):
                    x += weights[g, c] * read(kv, place[1] + kv_bytes * (index[c] * D + d))
                write(act, out + act_bytes * (g * D + d), x * norms[g])
        return
    by_head = (np.int64(weights.ctypes.data), np.int64(4 * weights.shape[1]))
    chosen, rows = np.int64(index.ctypes.data), (place[1], np.int64(D * kv_bytes))
    to = (np.int64(sums.ctypes.data), np.int64(4 * width))
    used = np.int64(used)
    d = 0
    while d + len(columns) * LANES <= D:
        weighted_rows(group, columns, kv, by_head, chosen, rows, used, np.int64(d), to)
        d += len(columns) * LANES
    while d < D:
        d = min(d, D - LANES)  # the last vector may overlap the one before
        weighted_rows(group, (0,), kv, by_head, chosen, rows, used, np.int64(d), to)
        d += LANES
    for g in range(G):
        norm = splat(norms[g])
        d = 0
        while d < D:
            d = min(d, D - LANES)
            x = mul(load(F4, to[0] + 4 * (g * width + d)), norm)
            store(act, out + act_bytes * (g * D + d), x)
            d += LANES


@njit
def _rank(positions, scores, newest, rule):
    """Rank a vector of slots, the least leaves first; `newest` is the position to come."""
    _, is_age, num_sinks, window, _, horizon, _ = rule
    if is_age:
        key = positions
    else:
        key = pick(is_nan(scores), splat(_PROTECTED), order_key(scores))
    is_edge = less(positions, splat(INT(num_sinks)))
    is_edge = either(is_edge, greater(positions, splat(INT(newest - max(window, 1)))))
    key = pick(is_edge, splat(_PROTECTED), key)
    if horizon > 0:
        key = pick(less(positions, splat(INT(newest - horizon + 1))), splat(_LEFT_BEHIND), key)
    return pick(less(positions, splat(INT(0))), splat(_EMPTY), key)


@njit
def choose_slot(place, heads, head_bytes, C, newest, rule):
    """Return the slot that leaves first; scores are summed over `heads` KV heads of C slots."""
    least, chosen = splat(_PROTECTED), iota()
    for c in range(0, C, LANES):
        positions = ints_at(place[2] + 4 * c, C - c, _PROTECTED)
        scores = floats_at(place[3] + 4 * c, C - c)
        for h in range(1, heads):
            scores = add(scores, floats_at(place[3] + h * head_bytes + 4 * c, C - c))
        rank = _rank(positions, scores, newest, rule)
        is_less = less(rank, least)
        least = pick(is_less, rank, least)
        chosen = pick(is_less, add(splat(INT(c)), iota()), chosen)
    rank = splat(smallest(least))
    return smallest(pick(less(rank, least), splat(INT(C - 1)), chosen))


@njit
def _score(group, place, C, at, rule, decay, weights, norms):
    """Fold the probabilities into the scores and return the next victim of this head."""
    statistic, grace = rule[0], rule[6]
    G = len(group)
    share = F(1) if statistic == MASS else F(1) / F(G)
    least, chosen = splat(_PROTECTED), iota()
    for c in range(0, C, LANES):
        positions = ints_at(place[2] + 4 * c, C - c, _PROTECTED)
        scores = floats_at(place[3] + 4 * c, C - c)
        if statistic != NONE:
            mass = splat(F(0))
            for g in range(G):
                p = load(F4, np.int64(weights.ctypes.data) + 4 * (g * weights.shape[1] + c))
                mass = fma(p, splat(norms[g] * share), mass)
            if statistic == NEWEST:
                scores = mass
            else:
                if grace > 0:
                    is_old = less(positions, splat(INT(at - grace + 1)))
                    mass = pick(is_old, mass, splat(F(0)))
                kept = mul(scores, splat(F(decay)))
                if statistic == MASS:
                    scores = add(kept, mass)
                else:  # a NaN of either side stays
                    scores = pick(either(greater(mass, kept), is_nan(mass)), mass, kept)
            put_floats(place[3] + 4 * c, C - c, scores)
        rank = _rank(positions, scores, at + 1, rule)
        is_less = less(rank, least)
        least = pick(is_less, rank, least)
        chosen = pick(is_less, add(splat(INT(c)), iota()), chosen)
    rank = splat(smallest(least))
    return smallest(pick(less(rank, least), splat(INT(C - 1)), chosen))


@njit
def attend_head(tokens, place, size, now, rule, numbers, q, out, act_bytes, scratch):
    """Do steps 2 to 4 for one KV head, whose slot already holds the new token. -> next victim."""
    group, slots, columns, kv, act = tokens
    queries, weights, index, norms, sums = scratch
    used = _num_used(place[2], size[0])
    _put_queries(group, act, q, act_bytes, queries, size[1])
    _logits(group, slots, kv, place, size, used, queries, weights)
    _mask(group, place, size, used, now, rule, numbers[0], weights, index)
    _softmax(group, used, weights, norms)
    held = (weights, index, norms, sums)
    _output(group, columns, kv, act, place, size, used, out, act_bytes, held)
    return _score(group, place, size[0], now[0], rule, numbers[1], weights, norms)
