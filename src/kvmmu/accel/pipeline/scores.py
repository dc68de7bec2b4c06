"""What the KV-MMU does with a lane's probabilities, and what it takes to have them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from kvmmu.accel.chip.mmu import CARRY_BITS, header_bits
from kvmmu.accel.chip.mmu_timing import (
    LATENCY_CYCLES,
    num_rows,
    rescale_cycles,
    stream_cycles,
    swap_cycles,
)
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.pipeline.work import AttentionWork, logits_room
from kvmmu.units import BITS_PER_BYTE

__all__ = ["ScoreWork", "score_work"]


@dataclass(frozen=True)
class ScoreWork:
    """Counts and cycles of a lane's scores in a layer.

    mmu_cycles: beats of a decode step, or a chunk's accumulation and searches. swap_cycles: until
    the first table is in its place; victim_cycles: from the last beat to the victim.
    """

    counts: dict[str, float]
    fetch_cycles: int = 0
    store_cycles: int = 0
    array_cycles: int = 0
    softmax_cycles: int = 0
    mmu_cycles: int = 0
    swap_cycles: int = 0
    victim_cycles: int = 0
    source: str = "none"
    keys_again: bool = False


def score_work(machine: Machine, work: AttentionWork, heads: int) -> ScoreWork:
    """Count what the KV-MMU does with a lane's probabilities, and what it takes to get them."""
    if not machine.design.has_scores:
        return ScoreWork({})
    made = _decode_counts(machine, work) if work.q == 1 else _chunk_counts(machine, work)
    fetch = store = 0
    if machine.mmu.store == "dram" and machine.mmu_timing.moves_tables:
        table_bytes = machine.table_bytes(work.live + work.q)
        made["score_dram_bytes"] = 2 * table_bytes
        fetch = store = machine.dram_cycles("score", table_bytes)
    array_cycles = softmax_cycles = 0
    source = "final pass"
    if work.form == "online":
        source, array_cycles, softmax_cycles = _collect(machine, work, heads, made)
    beats, swap, victim = (
        _decode_cycles(machine, work) if work.q == 1 else _chunk_cycles(machine, work)
    )
    again = source == "second product"
    return ScoreWork(
        made, fetch, store, array_cycles, softmax_cycles, beats, swap, victim, source, again
    )


def _decode_counts(machine: Machine, work: AttentionWork) -> dict[str, float]:
    """Count beats, rows and steps, and what they move in the score SRAM: whole rows."""
    mmu, tables = machine.mmu, machine.num_tables
    rows = num_rows(work.live + 1, mmu.ways)
    visits = tables * rows * mmu.ways
    word, position = mmu.score_bits + CARRY_BITS, mmu.position_bits
    table_bits = visits * (word + position)
    header = header_bits(mmu, machine.design.num_slots) if mmu.store == "sram" else 0
    read_bits = table_bits + tables * header
    written_bits = visits * word + tables * (position + header)
    images = 0
    if mmu.store == "dram":  # out and in; per head, into and out of where two lanes' tables wait
        moves = 1 if machine.design.granularity == "layer" else 3
        read_bits += moves * table_bits
        written_bits += moves * table_bits
        images = 2 * (visits + tables * mmu.ways)
    return {
        "mmu_beats": machine.model.num_heads * rows * mmu.ways,
        "mmu_rows": visits,
        "mmu_steps": tables,
        "mmu_images": images,
        "score_read_bytes": read_bits / BITS_PER_BYTE,
        "score_write_bytes": written_bits / BITS_PER_BYTE,
    }


def _decode_cycles(machine: Machine, work: AttentionWork) -> tuple[int, int, int]:
    """Return the cycles of the beats, of the first table's swap, and from last beat to victim."""
    timing, tables = machine.mmu_timing, machine.num_tables
    rows = num_rows(work.live + 1, machine.mmu.ways)
    swaps = timing.swaps and machine.mmu.store == "dram"
    latency = machine.table_latency_cycles if swaps else None
    beats = victim = 0
    if timing.takes_input:
        beats_a_row = machine.model.num_heads // tables
        beats = stream_cycles(rows, beats_a_row, tables, latency_cycles=latency)
    if timing.rescales:
        beats += tables * rescale_cycles(rows)
    if timing.searches:
        victim = LATENCY_CYCLES
    return beats, 0 if latency is None else swap_cycles(rows, latency), victim


def _chunk_counts(machine: Machine, work: AttentionWork) -> dict[str, float]:
    """Count a chunk: losers are searched for one by one, over the slots and the chunk.

    A model only: the RTL takes a prompt token by token. A search's visit is priced as a row's.
    """
    mmu = machine.mmu
    entries = (work.live + work.q) * machine.num_tables
    word_bits = mmu.score_bits + CARRY_BITS
    moves = mmu.store == "dram"
    moved = entries * (word_bits + mmu.position_bits) if moves else 0
    return {
        "mmu_beats": work.logits,
        "mmu_rows": entries * work.q,
        "mmu_steps": work.q * machine.num_tables,
        "mmu_images": 2 * (entries + machine.num_tables * mmu.ways) if moves else 0,
        "score_read_bytes": (entries * (word_bits + mmu.position_bits) + moved) / BITS_PER_BYTE,
        "score_write_bytes": (entries * word_bits + moved) / BITS_PER_BYTE,
    }


def _chunk_cycles(machine: Machine, work: AttentionWork) -> tuple[int, int, int]:
    """Return the cycles of a chunk's accumulation and searches; tables are swapped meanwhile."""
    ways = machine.mmu.ways
    entries = (work.live + work.q) * machine.num_tables
    cycles = ceil(work.logits / ways) + machine.chip.loser_search_cycles(ways)
    return cycles + work.q * ceil(entries / ways), 0, 0


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
