"""The operations of one layer of one step, in program order.

    qkv | rope | lane 0: attention, row written, scores | lane 1 ... | out | norm | up | act |
    down | norm

A lane's row is written after its own tiles are fetched: the write needs the product that the
fetches do not wait for, and would hold them up.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    SWEEPS,
    VECTOR,
    IntArray,
)

__all__ = ["INPUT", "layer_program", "serial_cycles", "single_gemm"]

INPUT, PRODUCT, QUERIES, CONTEXT, TABLE, SCORED = range(6)
"""Registers: layer input, last product, queries rotated, attention done, score table in, scored."""

Row = tuple[int, ...]


def _op(kind: int, *, wait: int = NOTHING, put: int = NOTHING, **given: int) -> Row:
    """Return one operation's row."""
    made = {"kind": kind, "wait": wait, "put": put} | given
    return tuple(made.get(name, 0) for name in COLUMNS)


def _single(unit: int, cycles: int, *, wait: int = NOTHING, put: int = NOTHING) -> Row:
    return _op(SINGLE, unit=unit, a=cycles, wait=wait, put=put)


def _gemm(plan: GemmPlan, *, wait: int, put: int) -> Row:
    return _op(
        GEMM, tiles=plan.num_tiles, a=plan.fetch_cycles, b=plan.array_cycles, wait=wait, put=put
    )


def _lane(plan: AttentionPlan) -> list[Row]:
    """Return a lane's operations; its output is CONTEXT."""
    shared = {
        "a": plan.read_cycles,
        "b": plan.qk_cycles,
        "c": plan.softmax_cycles,
        "d": plan.pv_cycles,
    }
    rows = []
    if plan.score_fetch_cycles:
        rows.append(_single(DRAM, plan.score_fetch_cycles, put=TABLE))
    if plan.form == "online":
        rows.append(_op(ONLINE, tiles=plan.num_tiles, wait=QUERIES, put=CONTEXT, **shared))
    else:
        half, late = -(-plan.num_tiles // 2), plan.late_softmax_cycles
        rows.append(_op(SWEEPS, tiles=half, late=late, wait=QUERIES, put=CONTEXT, **shared))
    rows.append(_single(DRAM, plan.write_cycles, wait=QUERIES))
    if plan.collect_array_cycles:
        rows.append(_single(ARRAY, plan.collect_array_cycles, wait=CONTEXT))
    if plan.collect_softmax_cycles:
        rows.append(_single(SOFTMAX, plan.collect_softmax_cycles, wait=CONTEXT, put=SCORED))
    if plan.mmu_cycles:
        wait = SCORED if plan.collect_softmax_cycles else CONTEXT
        rows.append(_single(MMU, plan.mmu_cycles, wait=wait, put=SCORED))
    if plan.score_store_cycles:
        rows.append(_single(DRAM, plan.score_store_cycles, wait=TABLE))
    return rows


def layer_program(
    gemms: Sequence[GemmPlan], lanes: Sequence[AttentionPlan], vector_cycles: Sequence[int]
) -> IntArray:
    """Compose a layer: gemms = qkv, out, up, down; vector_cycles = rope, norm, activation, norm."""
    qkv, out, up, down = gemms
    rope, norm, act, last = vector_cycles
    made: dict[int, list[Row]] = {}  # lanes of one shape share one plan
    rows = [_gemm(qkv, wait=INPUT, put=PRODUCT), _single(VECTOR, rope, wait=PRODUCT, put=QUERIES)]
    for plan in lanes:
        rows += made.setdefault(id(plan), _lane(plan))
    for product, cycles, wait in ((out, norm, CONTEXT), (up, act, INPUT), (down, last, INPUT)):
        rows.append(_gemm(product, wait=wait, put=PRODUCT))
        rows.append(_single(VECTOR, cycles, wait=PRODUCT, put=INPUT))
    return np.asarray(rows, dtype=np.int64)


def single_gemm(plan: GemmPlan) -> IntArray:
    """Return a product on its own, before the first layer or behind the last."""
    return np.asarray([_gemm(plan, wait=INPUT, put=INPUT)], dtype=np.int64)


def serial_cycles(program: IntArray) -> int:
    """Return the cycles of a program [N, 10] if nothing overlaps."""
    return int(program[:, 3:8].sum())
