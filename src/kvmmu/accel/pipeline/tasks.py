"""A program's operations unrolled into tasks, tile by tile, compiled; their rules: maxplus.py."""

from __future__ import annotations

import numba
import numpy as np

__all__ = [
    "ARRAY",
    "COLUMNS",
    "DRAM",
    "GEMM",
    "MMU",
    "NOTHING",
    "NUM_REGISTERS",
    "ONLINE",
    "SINGLE",
    "SOFTMAX",
    "STREAM",
    "SWEEPS",
    "UNITS",
    "VECTOR",
    "VICTIM",
    "run",
]

UNITS = ("dram", "array", "softmax", "vector", "mmu")
DRAM, ARRAY, SOFTMAX, VECTOR, MMU = range(5)
WEIGHT_RING, KV_RING = range(2)
NOTHING = -1
NO_ROLE, FETCH, USE, USE_LAST = range(4)
SINGLE, GEMM, ONLINE, SWEEPS, STREAM = range(5)
COLUMNS = (
    *("kind", "unit", "tiles", "a", "b", "c", "d", "late", "beats"),
    *("wait", "put", "scored", "latency"),
)
NUM_REGISTERS = 13
LOGITS, WEIGHTS, VICTIM = 10, 11, 12
"""Registers used inside an operation, and the end of the last search; 0 to 9 are the program's."""


@numba.njit(cache=True, inline="always")
def _task(  # type: ignore[no-untyped-def]
    free, registers, ready, used, base, unit, duration, role, ring, slot, wait, put
):
    """Run one task."""
    start = free[unit]
    if wait >= 0:
        start = max(start, registers[wait])
    place = 0
    if role != NO_ROLE:
        place = (slot + base[ring]) % ready.shape[1]
        gate = used[ring, place] if role == FETCH else ready[ring, place]
        start = max(start, gate)
    end = start + duration
    if role == FETCH:
        ready[ring, place] = end
    elif role == USE_LAST:
        used[ring, place] = end
    free[unit] = end
    if put >= 0:
        registers[put] = end


@numba.njit(cache=True, inline="always")
def _share(total, i, n):  # type: ignore[no-untyped-def]
    """Return part i of n of a whole number: the first parts take one more until none is left."""
    return total // n + (i < total % n)


@numba.njit(cache=True, inline="always")
def _same_until(total, i, n):  # type: ignore[no-untyped-def]
    """Return the first part behind i that differs from part i, n if none does."""
    return total % n if i < total % n else n


@numba.njit(cache=True)
def _skip(free, ready, used, base, ring, units, i, k, gain):  # type: ignore[no-untyped-def]
    """Let k more tiles like tile i pass, each `gain` cycles after the one before it."""
    depth = ready.shape[1]
    for unit in range(units):
        free[unit] += k * gain
    old_ready, old_used = ready[ring].copy(), used[ring].copy()
    for age in range(depth):
        here, there = (i - age + base[ring]) % depth, (i + k - age + base[ring]) % depth
        ready[ring, there] = old_ready[here] + k * gain
        used[ring, there] = old_used[here] + k * gain


@numba.njit(cache=True)
def _gemm(s, n, a, b, wait, put, exact):  # type: ignore[no-untyped-def]
    free, registers, ready, used, base = s
    depth = ready.shape[1]
    before = np.zeros(4, dtype=np.int64)
    gain, steady, i = np.int64(-1), 0, 0
    while i < n:
        _task(
            free, registers, ready, used, base,
            DRAM, _share(a, i, n), FETCH, WEIGHT_RING, i, NOTHING, NOTHING,
        )  # fmt: skip
        _task(
            free, registers, ready, used, base,
            ARRAY, _share(b, i, n), USE_LAST, WEIGHT_RING, i,
            wait if i == 0 else NOTHING, put if i == n - 1 else NOTHING,
        )  # fmt: skip
        slot = (i + base[WEIGHT_RING]) % depth
        got = free[DRAM] - before[0]
        is_steady = (
            free[ARRAY] - before[1] == got
            and ready[WEIGHT_RING, slot] - before[2] == got
            and used[WEIGHT_RING, slot] - before[3] == got
        )
        steady = steady + 1 if is_steady and got == gain else (1 if is_steady else 0)
        gain = got
        before[0], before[1] = free[DRAM], free[ARRAY]
        before[2], before[3] = ready[WEIGHT_RING, slot], used[WEIGHT_RING, slot]
        if steady > depth and not exact:
            k = min(_same_until(a, i, n), _same_until(b, i, n), n - 1) - (i + 1)
            if k > 0:
                _skip(free, ready, used, base, WEIGHT_RING, 2, i, k, gain)
                before += k * gain
                i += k
        i += 1
    base[WEIGHT_RING] = (base[WEIGHT_RING] + n) % depth


@numba.njit(cache=True)
def _online(s, n, a, b, c, d, wait, put, exact):  # type: ignore[no-untyped-def]
    free, registers, ready, used, base = s
    depth = ready.shape[1]
    before = np.zeros(5, dtype=np.int64)
    gain, steady, i = np.int64(-1), 0, 0
    while i < n:
        _task(
            free, registers, ready, used, base,
            DRAM, _share(a, i, n), FETCH, KV_RING, i, NOTHING, NOTHING,
        )  # fmt: skip
        _task(
            free, registers, ready, used, base,
            ARRAY, _share(b, i, n), USE, KV_RING, i, wait if i == 0 else NOTHING, LOGITS,
        )  # fmt: skip
        _task(
            free, registers, ready, used, base,
            SOFTMAX, _share(c, i, n), NO_ROLE, 0, 0, LOGITS, WEIGHTS,
        )  # fmt: skip
        _task(
            free, registers, ready, used, base,
            ARRAY, _share(d, i, n), USE_LAST, KV_RING, i, WEIGHTS, put if i == n - 1 else NOTHING,
        )  # fmt: skip
        slot = (i + base[KV_RING]) % depth
        got = free[DRAM] - before[0]
        is_steady = (
            free[ARRAY] - before[1] == got
            and free[SOFTMAX] - before[2] == got
            and ready[KV_RING, slot] - before[3] == got
            and used[KV_RING, slot] - before[4] == got
        )
        steady = steady + 1 if is_steady and got == gain else (1 if is_steady else 0)
        gain = got
        before[0], before[1], before[2] = free[DRAM], free[ARRAY], free[SOFTMAX]
        before[3], before[4] = ready[KV_RING, slot], used[KV_RING, slot]
        if steady > depth and not exact:
            k = min(_same_until(a, i, n), _same_until(b, i, n), n - 1)
            k = min(k, _same_until(c, i, n), _same_until(d, i, n)) - (i + 1)
            if k > 0:
                _skip(free, ready, used, base, KV_RING, 3, i, k, gain)
                before += k * gain
                i += k
        i += 1
    base[KV_RING] = (base[KV_RING] + n) % depth


@numba.njit(cache=True)
def _stream(s, total, last, beats, wait, put, scored, latency):  # type: ignore[no-untyped-def]
    """Run `total` softmax cycles, the `last` of them together with the KV-MMU's beats."""
    free, registers = s[0], s[1]
    begin = free[SOFTMAX]
    if wait >= 0:
        begin = max(begin, registers[wait])
    begin += total - last
    if beats > 0:
        begin = max(begin, free[MMU])
    end = begin + max(last, beats)
    free[SOFTMAX] = end
    if beats > 0:
        free[MMU] = end
    if put >= 0:
        registers[put] = end
    if scored >= 0:
        registers[scored] = end + latency
        registers[VICTIM] = max(registers[VICTIM], end + latency)


@numba.njit(cache=True)
def _sweeps(s, n, a, b, c, d, late, beats, wait, put, scored, latency):  # type: ignore[no-untyped-def]
    free, registers, ready, used, base = s
    keys = a - a // 2  # cycles for K; V takes the other half
    for i in range(n):
        _task(
            free, registers, ready, used, base,
            DRAM, _share(keys, i, n), FETCH, KV_RING, i, NOTHING, NOTHING,
        )  # fmt: skip
        _task(
            free, registers, ready, used, base,
            ARRAY, _share(b, i, n), USE_LAST, KV_RING, i, wait if i == 0 else NOTHING, LOGITS,
        )  # fmt: skip
        _task(
            free, registers, ready, used, base,
            SOFTMAX, _share(c, i, n), NO_ROLE, 0, 0, LOGITS, NOTHING,
        )  # fmt: skip
    _stream(s, late, min(c, late), beats, NOTHING, WEIGHTS, scored, latency)
    for i in range(n):
        _task(
            free, registers, ready, used, base,
            DRAM, _share(a // 2, i, n), FETCH, KV_RING, n + i, NOTHING, NOTHING,
        )  # fmt: skip
        _task(
            free, registers, ready, used, base,
            ARRAY, _share(d, i, n), USE_LAST, KV_RING, n + i,
            WEIGHTS if i == 0 else NOTHING, put if i == n - 1 else NOTHING,
        )  # fmt: skip
    base[KV_RING] = (base[KV_RING] + 2 * n) % ready.shape[1]


@numba.njit(cache=True)
def run(program, free, registers, ready, used, base, exact):  # type: ignore[no-untyped-def]
    """Run operations [N, COLUMNS] in order, updating the state in place."""
    s = (free, registers, ready, used, base)
    for k in range(program.shape[0]):
        kind, unit, n, a, b, c, d, late, beats, wait, put, scored, latency = program[k]
        if kind == GEMM:
            _gemm(s, n, a, b, wait, put, exact)
        elif kind == ONLINE:
            _online(s, n, a, b, c, d, wait, put, exact)
        elif kind == SWEEPS:
            _sweeps(s, n, a, b, c, d, late, beats, wait, put, scored, latency)
        elif kind == STREAM:
            _stream(s, a, a, beats, wait, put, scored, latency)
        else:
            _task(free, registers, ready, used, base, unit, a, NO_ROLE, 0, 0, wait, put)
