"""Plan the attention of one lane in one layer: q new tokens over `live` held ones and themselves.

online      K and V of a tile arrive together; sums are rescaled as larger logits come. Final
            probabilities never exist, so that scores need one more look at every logit: from a
            buffer in decode, by multiplying once more in a chunk ("collect").
two_pass    all K first, with maximum and sum on the way; then probabilities, then V.
three_pass  maximum; exponentials and their sum; probabilities. Then V.

Logits that must wait (for scores, or for the later passes) wait in the logits buffer. Where those
of all heads do not fit, KV heads are taken in groups, each group's part of every slot in turn:
shorter pieces, no byte twice. Where not even one KV head's fit, K is multiplied once more.

A chunk (q > 1) always runs online. Query tiles are as large as the activation buffer allows; each
streams the region again, by groups of KV heads so that more queries fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from kvmmu.accel.designs import PAGE_TOKENS
from kvmmu.accel.dram.energy import command_energy
from kvmmu.accel.pipeline.counts import Counts, counts
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.accel.pipeline.scores import score_work
from kvmmu.accel.pipeline.work import AttentionWork, kv_tile_bytes, logits_room
from kvmmu.units import KIB

__all__ = ["AttentionPlan", "plan_attention"]

SUM_BYTES = 4  # an output's running sum, in a query tile


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What a lane's attention costs. Cycles of each unit; num_tiles of K and V pass the buffer.

    num_groups of KV heads are taken one after the other where logits must wait. collect_* is what
    score collection adds to array and softmax; has_late_writes: rows are written only when scores
    have said who stays. is_streamed: the KV-MMU takes probabilities as they are made and knows its
    victim victim_cycles behind the last; swap_cycles: to put the lane's first table in its place.
    """

    form: str
    num_tiles: int
    head_group: int
    num_groups: int
    has_late_writes: bool
    region_passes: int
    counts: Counts
    read_cycles: int
    write_cycles: int
    score_fetch_cycles: int
    score_store_cycles: int
    qk_cycles: int
    pv_cycles: int
    softmax_cycles: int
    late_softmax_cycles: int
    collect_array_cycles: int
    collect_softmax_cycles: int
    mmu_cycles: int
    swap_cycles: int
    victim_cycles: int
    is_streamed: bool
    collects_from: str


def plan_attention(machine: Machine, q: int, live: int, written: int) -> AttentionPlan:
    """Plan q queries of a lane over `live` slots; `written` table rows are written at the end."""
    form = machine.design.softmax_form if q == 1 else "online"
    passes, heads = _query_tiles(machine, q, live) if q > 1 else (1, _heads_together(machine, live))
    form = form if _waits(machine, form, heads, live) else "online"
    work = AttentionWork(machine, q, live, form=form, heads=heads)
    scores = score_work(machine, work, heads)
    traffic = _traffic(
        machine, q, live, written, passes=passes, heads=heads, keys_again=scores.keys_again
    )
    made: dict[str, float] = dict(traffic.counts)
    for part in (scores.counts, work.counts()):
        for name, value in part.items():
            made[name] = made.get(name, 0) + value
    kv_tiles = ceil(
        (live * passes + _own_rows(q, passes)) * machine.row_bytes / kv_tile_bytes(machine)
    )
    made["dram_cycles"] = (
        traffic.read_cycles + traffic.write_cycles + scores.fetch_cycles + scores.store_cycles
    )
    made["array_cycles"] = work.qk_cycles + work.pv_cycles + scores.array_cycles
    made["softmax_cycles"] = work.softmax_cycles + work.late_cycles + scores.softmax_cycles
    made["mmu_cycles"] = scores.mmu_cycles + scores.swap_cycles
    return AttentionPlan(
        form=form,
        num_tiles=max(1, kv_tiles),
        head_group=heads,
        num_groups=machine.model.num_kv_heads // heads if q == 1 else 1,
        has_late_writes=q > 1 and machine.design.has_scores,
        region_passes=passes,
        counts=counts(made),
        read_cycles=traffic.read_cycles,
        write_cycles=traffic.write_cycles,
        score_fetch_cycles=scores.fetch_cycles,
        score_store_cycles=scores.store_cycles,
        qk_cycles=work.qk_cycles,
        pv_cycles=work.pv_cycles,
        softmax_cycles=work.softmax_cycles,
        late_softmax_cycles=work.late_cycles,
        collect_array_cycles=scores.array_cycles,
        collect_softmax_cycles=scores.softmax_cycles,
        mmu_cycles=scores.mmu_cycles,
        swap_cycles=scores.swap_cycles,
        victim_cycles=scores.victim_cycles,
        is_streamed=q == 1 and machine.design.has_scores,
        collects_from=scores.source,
    )


def _query_tiles(machine: Machine, q: int, live: int) -> tuple[int, int]:
    """Return (passes over the region, KV heads fetched together) with the shortest reading."""
    room = machine.activation_capacity // 2
    one = machine.group * machine.model.head_dim * (machine.activation_bytes + SUM_BYTES)
    best: tuple[float, int, int] | None = None
    for heads in (h for h in _divisors(machine.model.num_kv_heads)):
        fits = room // (heads * one)
        if fits < 1:
            continue
        passes = -(-q // fits)
        rows = max(1, live * passes + _own_rows(q, passes))
        cycles = machine.dram_cycles("kv_read_chunk", rows * machine.row_bytes, heads=heads)
        if best is None or (cycles, -heads) < (best[0], -best[2]):
            best = (cycles, passes, heads)
    if best is None:
        machine.refuse_buffer("activation", 2 * one)
    return best[1], best[2]


def _heads_together(machine: Machine, live: int) -> int:
    """Return how many KV heads a decode takes together: as many as have room for their logits."""
    every = machine.model.num_kv_heads
    if machine.design.softmax_form == "online" and not machine.design.has_scores:
        return every
    room = logits_room(machine)
    one = machine.group * (live + 1) * machine.logit_bytes
    fitting = [h for h in _divisors(every) if h * one <= room]
    return max(fitting, default=every)


def _waits(machine: Machine, form: str, heads: int, live: int) -> bool:
    """Say whether the logits of `heads` KV heads fit the buffer in which they wait."""
    held = heads * machine.group * (live + 1) * machine.logit_bytes
    return form == "online" or held <= logits_room(machine)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _own_rows(q: int, passes: int) -> float:
    """Rows of the chunk itself that later query tiles read again, summed over the tiles."""
    return q * (passes - 1) / 2


@dataclass(frozen=True)
class _Traffic:
    counts: dict[str, float]
    read_cycles: int
    write_cycles: int


def _traffic(
    machine: Machine,
    q: int,
    live: int,
    written: int,
    *,
    passes: int,
    heads: int,
    keys_again: bool,
) -> _Traffic:
    """Count DRAM bytes of K and V: regions read, rows written, a chunk's rows kept aside."""
    row, design = machine.row_bytes, machine.design
    rows_written = written / machine.num_tables
    read: float = live * row * passes
    if keys_again:  # score collection multiplies by K a second time
        read += (live * passes + _own_rows(q, passes)) * row / 2
    is_whole = q == 1 and heads == machine.model.num_kv_heads
    kind = "kv_read" if is_whole else "kv_read_chunk"
    write = ceil(rows_written * row)
    stage = 0.0
    if q > 1:
        again = _own_rows(q, passes) * row
        fits = q * row <= machine.kv_tile_bytes
        if design.keeps == "slots" and design.has_scores:
            # Who stays is known at the chunk's end: rows wait in DRAM, winners are moved.
            stage = 0.0 if fits else q * row + again + rows_written * row
        else:
            stage = 0.0 if fits else again
    table = 0
    if design.reads == "pages":
        table = -(-live // PAGE_TOKENS) * machine.page_entry_bytes * passes
    made: dict[str, float] = {
        f"{kind}_dram_bytes": read,
        "kv_write_dram_bytes": write,
        "kv_stage_dram_bytes": stage,
        "page_table_dram_bytes": table,
        "kv_fill_bytes": read + q * row + stage,
    }
    if not is_whole and read:
        cost = machine.pattern(kind, heads=heads)
        bursts = cost.column_pj_per_byte / command_energy(machine.dram, machine.corner).read_pj
        made |= {
            "kv_chunk_activates": read * cost.activates_per_kib / KIB,
            "kv_chunk_bursts": read * bursts,
        }
    read_cycles = machine.dram_cycles(kind, read, heads=None if is_whole else heads)
    read_cycles += machine.dram_cycles("kv_stage", stage) + machine.dram_cycles("page_table", table)
    return _Traffic(made, read_cycles, machine.dram_cycles("kv_write", write))
