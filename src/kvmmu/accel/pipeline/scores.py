"""What the KV-MMU does with a lane's probabilities, and what it takes to have them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.pipeline.work import AttentionWork, logits_room
from kvmmu.units import BITS_PER_BYTE

__all__ = ["ScoreWork", "score_work"]


@dataclass(frozen=True)
class ScoreWork:
    counts: dict[str, float]
    fetch_cycles: int = 0
    store_cycles: int = 0
    array_cycles: int = 0
    softmax_cycles: int = 0
    mmu_cycles: int = 0
    source: str = "none"
    keys_again: bool = False


def score_work(machine: Machine, work: AttentionWork, heads: int) -> ScoreWork:
    """Count what the KV-MMU does with a lane's probabilities, and what it takes to get them."""
    if not machine.design.has_scores:
        return ScoreWork({})
    mmu, q = machine.mmu, work.q
    slots = work.live + q
    entries = slots * machine.num_tables
    score_bytes = entries * mmu.score_bits / BITS_PER_BYTE
    position_bytes = slots * machine.entry_bytes - score_bytes
    # In decode the search runs along with the last accumulation; a chunk's losers are searched for
    # one by one, over the slots and the chunk.
    searches = q if q > 1 else 1
    made: dict[str, float] = {
        "mmu_add": work.logits,
        "mmu_compare": entries * searches,
        "mmu_visit": entries * searches,
        "mmu_address": slots,
        "score_read_bytes": score_bytes + position_bytes,
        "score_write_bytes": score_bytes,
    }
    fetch = store = 0
    if mmu.store == "dram":
        table_bytes = score_bytes + position_bytes
        made["score_dram_bytes"] = 2 * table_bytes
        made["score_read_bytes"] += table_bytes  # written back
        made["score_write_bytes"] += table_bytes  # filled
        fetch = store = machine.dram_cycles("score", table_bytes)
    array_cycles = softmax_cycles = 0
    source = "final pass"
    if work.form == "online":
        source, array_cycles, softmax_cycles = _collect(machine, work, heads, made)
    mmu_cycles = ceil(work.logits / mmu.ways) + machine.chip.mmu_latency_cycles(mmu.ways)
    if q > 1:
        mmu_cycles += searches * ceil(entries / mmu.ways)
    again = source == "second product"
    return ScoreWork(made, fetch, store, array_cycles, softmax_cycles, mmu_cycles, source, again)


def _collect(
    machine: Machine, work: AttentionWork, heads: int, made: dict[str, float]
) -> tuple[str, int, int]:
    """Charge the extra look at every logit that an online softmax needs; fill `made`."""
    made["collect_exp"] = work.logits
    made["collect_mul"] = work.logits
    softmax_cycles = ceil(work.logits / machine.chip.spec.softmax.ways)
    held = heads * machine.group * (work.live + 1) * machine.logit_bytes
    if work.q == 1 and held <= logits_room(machine):
        made["logits_write_bytes"] = made["logits_read_bytes"] = machine.logit_bytes * work.logits
        return "logits buffer", 0, softmax_cycles
    made["collect_macs"] = work.macs / 2
    made["kv_use_bytes"] = work.kv_use / 2
    return "second product", work.qk_cycles, softmax_cycles
