"""Lower bounds of attention's DRAM traffic, to be printed beside what a design moves.

compulsory  every K and V row a step uses crosses the pins once a step (nothing of a region larger
            than the chip survives to the next step), every row that stays is written once.
order       for q queries over n keys with S elements on chip: no algorithm moves asymptotically
            less than q n d^2 / S elements for every S (Dao et al., FlashAttention,
            arXiv:2205.14135, proposition 3; tight for S >= d^2: Saha and Ye, arXiv:2402.07443). The
            constant is not known; 1 is taken, so this is an order of magnitude, not a bound.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.pipeline.timing import derive_step
from kvmmu.accel.results import DesignResult
from kvmmu.accel.workload import Segment, Step

__all__ = ["MOVED", "AttentionBound", "attention_bound"]

MOVED = ("kv_read", "kv_read_chunk", "kv_write", "kv_stage")
"""Kinds of DRAM traffic that a bound is compared with."""


@dataclass(frozen=True)
class AttentionBound:
    """Bytes of K and V by phase: what must move, the order of any schedule, what a design moved."""

    compulsory_bytes: dict[str, float]
    order_bytes: dict[str, float]
    moved_bytes: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "compulsory_bytes": self.compulsory_bytes,
            "order_bytes": self.order_bytes,
            "moved_bytes": self.moved_bytes,
        }


def attention_bound(result: DesignResult) -> AttentionBound:
    """Bound the K and V traffic of the run that a result priced, exactly, step by step."""
    machine = next(iter(result.phases.values())).machine
    compulsory: dict[str, float] = {}
    order: dict[str, float] = {}
    slots = result.workload.header.geometry.slots
    for part in result.workload.segments:
        phase = part.step.phase
        for step, count in _steps(part, machine, slots):
            least, asymptotic = _of_step(step, machine)
            compulsory[phase] = compulsory.get(phase, 0.0) + count * least
            order[phase] = order.get(phase, 0.0) + count * asymptotic
    moved = {
        name: sum(part.dram_bytes[kind] for kind in MOVED) for name, part in result.phases.items()
    }
    return AttentionBound(compulsory, order, moved)


def _steps(part: Segment, machine: Machine, slots: tuple[int, ...]) -> list[tuple[Step, int]]:
    """Return the steps of a segment as the machine's design makes them, equal ones counted."""
    if machine.design.is_ours:
        return [(part.step, part.count)]
    made: Counter[Step] = Counter()
    for t in range(part.count):
        seen = tuple(n + t * q for n, q in zip(part.seen, part.step.queries))
        made[
            derive_step(part.step, seen, machine.design, slots, num_tables=machine.num_tables)
        ] += 1
    return list(made.items())


def _of_step(step: Step, machine: Machine) -> tuple[float, float]:
    """Return the compulsory bytes of a step, and the order of any schedule's."""
    model, tables = machine.model, machine.num_tables
    on_chip = sum(machine.chip.memories[m].capacity_bytes for m in ("kv", "activation"))
    elements = on_chip / machine.kv_value_bytes
    least = order = 0.0
    for run in step.runs:
        for q, live, written in zip(step.queries, run.live, run.written):
            if q == 0:
                continue
            least += run.count * (live + written / tables) * machine.row_bytes
            if q > 1:
                pairs = q * live + q * (q + 1) / 2
                io = model.num_heads * pairs * model.head_dim**2 / elements
                order += run.count * io * machine.kv_value_bytes
    return least, order
