"""Max-plus: a task starts when its unit, its inputs and its buffer are free. Integer cycles.

Tasks run in program order, each unit one at a time:

    start = max(free[unit], register[wait], buffer)      end = start + duration
    buffer of a fetch = when the tile that lay in this slot was used up
    buffer of a use   = when this tile's fetch ended

A task may set one register to its end. A program is a short list of operations, each of which is
unrolled into its tiles here; an operation's cycles are spread over its tiles in whole numbers that
add up exactly. Once every unit and slot is the same number of cycles later than a tile before, the
like tiles that follow are added at once: max-plus maps commute with adding a constant, so this is
exact.
Operations are rows of COLUMNS:

    SINGLE  one task of `unit`: a cycles
    GEMM    tiles times (fetch, product): a fetch, b array cycles in all, through the weight ring
    ONLINE  tiles times (fetch, logits, softmax, sums): a, b, c, d. In turn: making the logits of
            the next tile before the sums of this one would hold both halves of the buffer and
            leave the DRAM waiting (two thirds of its time, measured on LLaMA-7B)
    SWEEPS  all K tiles with the first softmax pass behind them, `late` further softmax cycles, then
            all V tiles: a fetch in all, b logits, c first pass, d sums
    STREAM  the look at every logit that makes final probabilities: a softmax cycles

Probabilities go to the KV-MMU as they are made, nothing holds them between the two: the pass that
makes them (STREAM, or the last c cycles of `late`) lasts as long as the slower of the two, and both
are taken until then; `beats` are the KV-MMU's cycles. Register `scored` is set `latency` later.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ARRAY",
    "COLUMNS",
    "DRAM",
    "GEMM",
    "KV_RING",
    "MMU",
    "NOTHING",
    "NUM_REGISTERS",
    "ONLINE",
    "SINGLE",
    "SOFTMAX",
    "STREAM",
    "SWEEPS",
    "State",
    "UNITS",
    "VECTOR",
    "WEIGHT_RING",
    "run_layers",
    "run_program",
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

IntArray = NDArray[np.int64]


@dataclass
class State:
    """When everything is next free, in cycles; `depth` slots in each ring."""

    depth: int
    free: IntArray = field(default_factory=lambda: np.zeros(len(UNITS), dtype=np.int64))
    registers: IntArray = field(default_factory=lambda: np.zeros(NUM_REGISTERS, dtype=np.int64))
    base: IntArray = field(default_factory=lambda: np.zeros(2, dtype=np.int64))

    def __post_init__(self) -> None:
        self.ready = np.zeros((2, self.depth), dtype=np.int64)
        self.used = np.zeros((2, self.depth), dtype=np.int64)

    @property
    def end(self) -> int:
        """Cycle at which everything has ended, the last search too."""
        return int(max(self.free.max(), self.registers[VICTIM]))

    def shape(self, now: int, units: list[int]) -> tuple[int, ...]:
        """Return the state relative to `now` as far as it can hold up tasks of `units`.

        Rings are turned to their next slot. No task starts before its unit is free, so that what
        ended before the first of `units` is free holds nothing up.
        """
        free = self.free[units]
        turned = [np.roll(x[r], -self.base[r]) for x in (self.ready, self.used) for r in (0, 1)]
        gates = np.maximum(np.concatenate([self.registers, *turned]), free.min())
        return tuple((np.concatenate([free, gates]) - now).tolist())

    def advance(self, cycles: int) -> None:
        """Let `cycles` pass for everything."""
        for array in (self.free, self.registers, self.ready, self.used):
            array += cycles


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
def _run(program, free, registers, ready, used, base, exact):  # type: ignore[no-untyped-def]
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


def run_program(state: State, program: IntArray, *, exact: bool = False) -> None:
    """Run a program's operations [N, COLUMNS]; exact=True runs each of their tiles."""
    _run(program, state.free, state.registers, state.ready, state.used, state.base, exact)


def _units(program: IntArray) -> list[int]:
    """List the units that a program's operations run on."""
    kinds = set(program[:, 0].tolist())
    used = set(program[program[:, 0] == SINGLE, 1].tolist())
    used |= {DRAM, ARRAY} if kinds & {GEMM, ONLINE, SWEEPS} else set()
    used |= {SOFTMAX} if kinds & {ONLINE, SWEEPS, STREAM} else set()
    used |= {MMU} if program[:, COLUMNS.index("beats")].any() else set()
    return sorted(used)


def run_layers(state: State, program: IntArray, *, count: int, exact: bool = False) -> None:
    """Run `count` equal layers.

    Once a layer ends in the state in which the one before it ended, only later, every further
    layer takes the same time (max-plus maps commute with adding a constant): the rest is added.
    With exact=True every tile of every layer is stepped through.
    """
    units = _units(program)
    before: tuple[int, ...] | None = None
    last_end = state.end
    for done in range(1, count + 1):
        turn = state.base.copy()
        run_program(state, program, exact=exact)
        now, shape = state.end, state.shape(state.end, units)
        if not exact and shape == before:
            state.advance((now - last_end) * (count - done))
            state.base = (state.base + (count - done) * (state.base - turn)) % state.depth
            return
        before, last_end = shape, now
