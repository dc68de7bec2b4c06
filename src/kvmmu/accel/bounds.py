"""Lower bounds of attention's DRAM traffic, to be printed beside what a design moves.

compulsory  every K and V row a step uses crosses the pins once a step (nothing of a region larger
            than the chip survives to the next step), every new row once.
chunk       for q queries over n keys with S bytes on chip: no algorithm moves asymptotically less
            than q n d^2 / S elements for every S (Dao et al., FlashAttention, arXiv:2205.14135,
            proposition 3; tight for S >= d^2: Saha and Ye, arXiv:2402.07443). The constant is not
            known; 1 is taken, so this is an order of magnitude, and the compulsory bound a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.pipeline.timing import derive_step
from kvmmu.accel.workload import Workload

__all__ = ["AttentionBound", "attention_bound"]


@dataclass(frozen=True)
class AttentionBound:
    """Bytes of K and V that a design must move over a run, in decode and in prefill."""

    decode_bytes: float
    prefill_bytes: float
    prefill_order_bytes: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "decode_compulsory_bytes": self.decode_bytes,
            "prefill_compulsory_bytes": self.prefill_bytes,
            "prefill_order_bytes": self.prefill_order_bytes,
        }


def attention_bound(machine: Machine, workload: Workload) -> AttentionBound:
    """Bound the K and V traffic of a workload under a machine's design."""
    design, row = machine.design, machine.row_bytes
    slots = workload.header.geometry.slots
    model = machine.model
    elements = (
        sum(machine.chip.memories[m].capacity_bytes for m in ("kv", "activation"))
        / machine.kv_value_bytes
    )
    decode = prefill = order = 0.0
    for part in workload.segments:
        for t in {0, part.count - 1}:
            weight = part.count / 2 if part.count > 1 else 1.0
            seen = tuple(n + t * q for n, q in zip(part.seen, part.step.queries))
            step = part.step
            if not design.is_ours:
                step = derive_step(step, seen, design, slots, num_tables=machine.num_tables)
            for run in step.runs:
                for q, live, written in zip(step.queries, run.live, run.written):
                    moved = run.count * weight * (live + written / machine.num_tables) * row
                    if q == 1:
                        decode += moved
                    elif q > 1:
                        prefill += moved
                        pairs = q * live + q * (q + 1) / 2
                        io = model.num_heads * pairs * model.head_dim**2 / elements
                        order += run.count * weight * io * machine.kv_value_bytes
    return AttentionBound(decode, prefill, max(order, 0.0))
