"""Time and counts of steps and of segments of equal steps, with shortcuts that say what they are.

Exact: layers that repeat (maxplus.run_layers), steps that repeat (steps do not overlap, so `count`
steps take `count` times as long). Interpolated: a segment in which a growing cache makes every
step a little longer is timed at knots that are halved until the line between two of them meets the
step in the middle within TOLERANCE; `exact=True` times every step instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby

from kvmmu.accel.designs import Design
from kvmmu.accel.pipeline.attention import AttentionPlan, plan_attention
from kvmmu.accel.pipeline.counts import Counts, counts, zero_counts
from kvmmu.accel.pipeline.gemm import GemmPlan, plan_gemm
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.pipeline.maxplus import DRAM, IntArray, State, run_layers, run_program
from kvmmu.accel.pipeline.program import INPUT, layer_program, serial_cycles, single_gemm
from kvmmu.accel.workload.steps import LayerRun, Segment, Step
from kvmmu.units import bytes_of_bits

__all__ = ["TOLERANCE", "Cost", "StepTimer", "derive_step"]

TOLERANCE = 2e-4
"""Relative distance of the middle step from the line, at which knots are close enough."""

DEPTH = 2  # slots of each ring: one is used while the other is filled


@dataclass(frozen=True, eq=False)
class Cost:
    """Cycles with units overlapped, cycles with nothing overlapped, and what was done."""

    overlapped_cycles: float
    serial_cycles: float
    counts: Counts

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.overlapped_cycles + other.overlapped_cycles,
            self.serial_cycles + other.serial_cycles,
            self.counts + other.counts,
        )

    def times(self, factor: float) -> Cost:
        """Return the cost of `factor` such things."""
        return Cost(
            self.overlapped_cycles * factor, self.serial_cycles * factor, self.counts * factor
        )

    @classmethod
    def nothing(cls) -> Cost:
        """Return the cost of nothing."""
        return cls(0, 0, zero_counts())


def derive_step(
    step: Step, seen: tuple[int, ...], design: Design, slots: tuple[int, ...], *, num_tables: int
) -> Step:
    """Return the step that `design` makes of the same queries; seen [B] tokens before the step.

    slots [L] of the workload's layers; a lane without queries reads and writes nothing.
    """
    asked, seen_of = step.queries, dict.fromkeys(zip(seen, step.queries))
    most = max(asked, default=0)
    runs: list[LayerRun] = []
    for C, layers in groupby(slots):
        lives = {(n, q): _live_before(design, n, q, C) if q else 0 for n, q in seen_of}
        kept = C if design.keeps == "slots" else most
        live = tuple(lives[pair] for pair in zip(seen, asked))
        runs.append(
            LayerRun(len(list(layers)), live, tuple(min(q, kept) * num_tables for q in asked))
        )
    return replace(step, runs=tuple(runs))


def _live_before(design: Design, seen: int, q: int, C: int) -> int:
    """Slots read from DRAM: in decode the new token is on chip and has one of the C slots."""
    return design.live(seen + 1, C) - 1 if q == 1 else design.live(seen, C)


class StepTimer:
    """Time steps on one machine; plans and programs are kept, so that equal ones are made once."""

    def __init__(self, machine: Machine, *, exact: bool = False) -> None:
        self.machine, self.exact = machine, exact
        self._gemms = cache(self._plan_gemms)
        self._lane = cache(self._plan_lane)
        self._layer = cache(self._plan_layer)
        self._step = cache(self._time_step)

    def step(self, step: Step) -> Cost:
        """Return one step's cost."""
        return self._step(step)

    def segment(self, segment: Segment, *, slots: tuple[int, ...]) -> Cost:
        """Return a segment's cost; slots [L] of the workload, from which baselines are derived."""
        design = self.machine.design
        if design.is_ours:
            if not self.exact:
                return self.step(segment.step).times(segment.count)
            return self._one_by_one(lambda t: segment.step, segment.count)

        def at(t: int) -> Step:
            seen = tuple(n + t * q for n, q in zip(segment.seen, segment.step.queries))
            return derive_step(
                segment.step, seen, design, slots, num_tables=self.machine.num_tables
            )

        first, last = at(0), at(segment.count - 1)
        if first == last:
            return self.step(first).times(segment.count)
        if self.exact or not self._is_smooth(first, last):
            return self._one_by_one(at, segment.count)
        if design.keeps != "share":  # every step is longer than the one before it
            return _integrate(lambda t: self.step(at(t)), [1] * segment.count)
        steps, weights = _distinct(at, segment.count)
        return _integrate(lambda i: self.step(steps[i]), weights)

    def _one_by_one(self, at: Callable[[int], Step], count: int) -> Cost:
        """Time every step of `count` anew, each layer of it too if `exact`, and add them up."""
        total = Cost.nothing()
        for t in range(count):
            total = total + self._time_step(at(t))
        return total

    # Plans ------------------------------------------------------------------------------------

    def _plan_gemms(self, M: int) -> tuple[GemmPlan, ...]:
        model, machine = self.machine.model, self.machine
        h, up = model.hidden_size, model.intermediate_size * (2 if model.is_gated_mlp else 1)
        return (
            plan_gemm(machine, M, h, model.q_size + 2 * model.kv_size),
            plan_gemm(machine, M, model.q_size, h),
            plan_gemm(machine, M, h, up),
            plan_gemm(machine, M, model.intermediate_size, h),
        )

    def _plan_lane(self, q: int, live: int, written: int) -> AttentionPlan:
        return plan_attention(self.machine, q, live, written)

    def _plan_layer(
        self, queries: tuple[int, ...], live: tuple[int, ...], written: tuple[int, ...]
    ) -> tuple[IntArray, Counts]:
        M = sum(queries)
        gemms = self._gemms(M)
        lanes = [self._lane(q, n, w) for q, n, w in zip(queries, live, written) if q]
        ops = self._vector_ops(M)
        ways = self.machine.chip.spec.vector.ways
        cycles = [-(-n // ways) for n in ops]
        made = counts({"vector_ops": sum(ops), "vector_cycles": sum(cycles)})
        made = made + sum(plan.counts for plan in gemms) + sum(plan.counts for plan in lanes)
        return layer_program(gemms, lanes, cycles), made

    def _vector_ops(self, M: int) -> list[int]:
        """Operations on M vectors: rope, norm and residual, activation, norm and residual.

        Counts of the formulas: a norm squares, adds and scales twice (4 an element; 6 with mean
        and bias), a rotation is 3 an element, SiLU times gate 5, a plain activation 4, a sum 1.
        """
        model = self.machine.model
        rope = 0 if model.has_learned_positions else 3 * M * (model.q_size + model.kv_size)
        per_norm = 6 if model.num_norm_vectors == 2 else 4
        norms = M * (model.hidden_size * per_norm * model.num_norms_per_layer)
        own = M * model.qk_norm_weights and 4 * M * (model.q_size + model.kv_size)
        act = (5 if model.is_gated_mlp else 4) * M * model.intermediate_size
        residual = M * model.hidden_size
        half = norms // 2
        return [rope + own, half + residual, act, norms - half + residual]

    # Time -------------------------------------------------------------------------------------

    def _time_step(self, step: Step) -> Cost:
        machine, model = self.machine, self.machine.model
        state = State(DEPTH)
        read = step.num_queries * bytes_of_bits(model.embedding_size, machine.weight_bits)
        begin = machine.dram_cycles("embedding", read)
        state.free[DRAM] = begin
        state.registers[INPUT] = begin
        serial = begin
        total = counts({"embedding_dram_bytes": read, "dram_cycles": begin})
        for plan in self._ends(step.num_queries, into=True):
            run_program(state, single_gemm(plan), exact=self.exact)
            serial += plan.fetch_cycles + plan.array_cycles
            total = total + plan.counts
        for run in step.runs:
            program, made = self._layer(step.queries, run.live, run.written)
            run_layers(state, program, count=run.count, exact=self.exact)
            serial += run.count * serial_cycles(program)
            total = total + run.count * made
        for plan in self._ends(sum(step.logits), into=False):
            run_program(state, single_gemm(plan), exact=self.exact)
            serial += plan.fetch_cycles + plan.array_cycles
            total = total + plan.counts
        return Cost(state.end, serial, total)

    def _ends(self, M: int, *, into: bool) -> list[GemmPlan]:
        """Plan the products before the first layer or behind the last, for M vectors."""
        model, machine = self.machine.model, self.machine
        narrow, h = model.embedding_size, model.hidden_size
        if M == 0:
            return []
        if into:
            return [plan_gemm(machine, M, narrow, h)] if narrow != h else []
        first = [plan_gemm(machine, M, h, narrow)] if narrow != h else []
        return [*first, plan_gemm(machine, M, narrow, model.vocab_size)]

    def _is_smooth(self, first: Step, last: Step) -> bool:
        """Say whether plans change in degree alone between two steps, not in kind."""
        for a, b in zip(first.runs, last.runs):
            for q, n, m, w in zip(first.queries, a.live, b.live, a.written):
                if q and self._lane(q, n, w).collects_from != self._lane(q, m, w).collects_from:
                    return False
        return len(first.runs) == len(last.runs)


def _distinct(at: Callable[[int], Step], count: int) -> tuple[list[Step], list[int]]:
    """Return the steps at(0) ... at(count - 1), equal ones in a row once, and their counts."""
    steps: list[Step] = []
    weights: list[int] = []
    for t in range(count):
        step = at(t)
        if steps and steps[-1] == step:
            weights[-1] += 1
        else:
            steps.append(step)
            weights.append(1)
    return steps, weights


def _integrate(at: Callable[[int], Cost], weights: list[int]) -> Cost:
    """Sum weights[i] * at(i), straight between knots that are halved where the line is off."""
    total = at(0).times(weights[0])
    stack = [(0, len(weights) - 1)]
    while stack:
        low, high = stack.pop()
        a, b = at(low), at(high)
        middle = (low + high) // 2
        if high - low > 1:
            got = at(middle).overlapped_cycles
            share = (middle - low) / (high - low)
            line = a.overlapped_cycles + share * (b.overlapped_cycles - a.overlapped_cycles)
            if abs(got - line) > TOLERANCE * got:
                stack += [(low, middle), (middle, high)]
                continue
        # Steps (low, high] lie on the line from a to b.
        inside = weights[low + 1 : high + 1]
        to_b = sum(w * i for i, w in enumerate(inside, start=1)) / (high - low)
        total = total + a.times(sum(inside) - to_b) + b.times(to_b)
    return total
