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

import numpy as np
from numpy.typing import NDArray

from kvmmu.accel.pipeline.tasks import (
    ARRAY,
    COLUMNS,
    DRAM,
    GEMM,
    MMU,
    NOTHING,
    NUM_REGISTERS,
    ONLINE,
    SINGLE,
    SOFTMAX,
    STREAM,
    SWEEPS,
    UNITS,
    VECTOR,
    VICTIM,
    run,
)

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
    "State",
    "UNITS",
    "VECTOR",
    "run_layers",
    "run_program",
]

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


def run_program(state: State, program: IntArray, *, exact: bool = False) -> None:
    """Run a program's operations [N, COLUMNS]; exact=True runs each of their tiles."""
    run(program, state.free, state.registers, state.ready, state.used, state.base, exact)


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
