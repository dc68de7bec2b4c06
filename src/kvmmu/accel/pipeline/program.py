"""The operations of one layer of one step, in program order.

    qkv | rope | lane 0: attention, row written, scores | lane 1 ... | out | norm | up | act |
    down | norm

A lane's row is written after its own tiles are fetched: the write needs the product that the
fetches do not wait for, and would hold them up. What needs a lane's scores (its table, a chunk's
rows) is written after the next lane's fetches, for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvmmu.accel.pipeline.attention import AttentionPlan
from kvmmu.accel.pipeline.gemm import GemmPlan
from kvmmu.accel.pipeline.maxplus import (
    ARRAY,
    COLUMNS,
    DRAM,
    GEMM,
    MMU,
    NOTHING,
    ONLINE,
    SINGLE,
    SOFTMAX,
    STREAM,
    SWEEPS,
    VECTOR,
    IntArray,
)

__all__ = ["INPUT", "layer_program", "serial_cycles", "single_gemm"]

INPUT, PRODUCT, QUERIES, CONTEXT = range(4)
SCORED, FETCHED = (4, 5), (6, 7)
"""Registers: layer input, last product, queries rotated, attention done; then of two lanes in turn:
victims known, score tables in from the DRAM."""

Row = tuple[int, ...]
_CYCLES = slice(COLUMNS.index("a"), COLUMNS.index("beats") + 1)


def _op(kind: int, **given: int) -> Row:
    """Return one operation's row."""
    made = {"kind": kind, "wait": NOTHING, "put": NOTHING, "scored": NOTHING} | given
    return tuple(made.get(name, 0) for name in COLUMNS)


def _single(unit: int, cycles: int, *, wait: int = NOTHING, put: int = NOTHING) -> Row:
    return _op(SINGLE, unit=unit, a=cycles, wait=wait, put=put)


def _gemm(plan: GemmPlan, *, wait: int, put: int) -> Row:
    return _op(
        GEMM, tiles=plan.num_tiles, a=plan.fetch_cycles, b=plan.array_cycles, wait=wait, put=put
    )


@dataclass(frozen=True)
class _Lane:
    """A lane's operations: up to its first K and V, behind them, and what waits for scores."""

    first: list[Row]
    then: list[Row]
    late: list[Row]


def _lane(plan: AttentionPlan, turn: int) -> _Lane:
    """Return a lane's operations; its output is CONTEXT. Lanes take turns with two registers."""
    scored, fetched = SCORED[turn], FETCHED[turn]
    first: list[Row] = []
    late: list[Row] = []
    if plan.score_fetch_cycles:
        first.append(_single(DRAM, plan.score_fetch_cycles, put=fetched))
    if plan.swap_cycles:  # the KV-MMU works in order: beats come behind it
        first.append(_single(MMU, plan.swap_cycles, wait=fetched))
    attention, *then = [
        row for group in range(plan.num_groups) for row in _group(plan, group, scored)
    ]
    write = _single(DRAM, plan.write_cycles, wait=scored if plan.has_late_writes else QUERIES)
    (late if plan.has_late_writes else then).append(write)
    if plan.mmu_cycles and not plan.is_streamed:
        then.append(_single(MMU, plan.mmu_cycles, wait=scored, put=scored))
    if plan.score_store_cycles:
        late.append(_single(DRAM, plan.score_store_cycles, wait=scored))
    return _Lane([*first, attention], then, late)


def _group(plan: AttentionPlan, group: int, scored: int) -> list[Row]:
    """Return the attention of one group of KV heads, and the second look at its logits."""

    def part(total: int) -> int:
        n = plan.num_groups
        return (group + 1) * total // n - group * total // n

    shared = {
        "a": part(plan.read_cycles),
        "b": part(plan.qk_cycles),
        "c": part(plan.softmax_cycles),
        "d": part(plan.pv_cycles),
        "wait": QUERIES,
        "put": CONTEXT,
    }
    scores = {}
    if plan.is_streamed:
        beats = part(plan.mmu_cycles)
        scores = {"beats": beats, "scored": scored, "latency": plan.victim_cycles}
    tiles = max(1, part(plan.num_tiles))
    if plan.form != "online":
        late = part(plan.late_softmax_cycles)
        return [_op(SWEEPS, tiles=-(-tiles // 2), late=late, **shared, **scores)]
    rows = [_op(ONLINE, tiles=tiles, **shared)]
    if plan.collect_array_cycles:
        rows.append(_single(ARRAY, part(plan.collect_array_cycles), wait=CONTEXT))
    looks = part(plan.collect_softmax_cycles)
    if plan.is_streamed:
        rows.append(_op(STREAM, a=looks, wait=CONTEXT, **scores))
    elif looks:
        rows.append(_single(SOFTMAX, looks, wait=CONTEXT, put=scored))
    return rows


def layer_program(
    gemms: Sequence[GemmPlan], lanes: Sequence[AttentionPlan], vector_cycles: Sequence[int]
) -> IntArray:
    """Compose a layer: gemms = qkv, out, up, down; vector_cycles = rope, norm, activation, norm."""
    qkv, out, up, down = gemms
    rope, norm, act, last = vector_cycles
    rows = [_gemm(qkv, wait=INPUT, put=PRODUCT), _single(VECTOR, rope, wait=PRODUCT, put=QUERIES)]
    waiting: list[Row] = []
    for number, plan in enumerate(lanes):
        lane = _lane(plan, number % 2)
        # A lane's last writes come after the next lane's fetches, which do not wait for its scores.
        rows += [*lane.first, *waiting, *lane.then]
        waiting = lane.late
    first = _gemm(out, wait=CONTEXT, put=PRODUCT)
    rows += [first, *waiting, _single(VECTOR, norm, wait=PRODUCT, put=INPUT)]
    for product, cycles in ((up, act), (down, last)):
        rows.append(_gemm(product, wait=INPUT, put=PRODUCT))
        rows.append(_single(VECTOR, cycles, wait=PRODUCT, put=INPUT))
    return np.asarray(rows, dtype=np.int64)


def single_gemm(plan: GemmPlan) -> IntArray:
    """Return a product on its own, before the first layer or behind the last."""
    return np.asarray([_gemm(plan, wait=INPUT, put=INPUT)], dtype=np.int64)


def serial_cycles(program: IntArray) -> int:
    """Return the cycles of a program [N, COLUMNS] if nothing overlaps."""
    return int(program[:, _CYCLES].sum())
