"""Plan the attention of one lane in one layer: q new tokens over `live` held ones and themselves.

online      K and V of a tile arrive together; sums are rescaled as larger logits come. Final
            probabilities never exist, so that scores need one more look at every logit: from a
            buffer in decode, by multiplying once more in a chunk ("collect").
two_pass    all K first, with maximum and sum on the way; then probabilities, then V.
three_pass  maximum; exponentials and their sum; probabilities. Then V.

A chunk (q > 1) always runs online. Query tiles are as large as the activation buffer allows; each
streams the region again, by groups of KV heads so that more queries fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from kvmmu.accel.designs import PAGE_TOKENS
from kvmmu.accel.pipeline.counts import Counts, counts
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.units import BITS_PER_BYTE

__all__ = ["AttentionPlan", "plan_attention"]

PASSES = {"online": 1, "two_pass": 2, "three_pass": 3}
LOGIT_BYTES = 2  # 16-bit logits between passes
SUM_BYTES = 4  # an output's running sum, in a query tile


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What a lane's attention costs. Cycles of each unit; num_tiles of K and V pass the buffer.

    score_* is what score collection adds to softmax and array, in cycles.
    """

    form: str
    num_tiles: int
    head_group: int
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
    collects_from: str


def plan_attention(machine: Machine, q: int, live: int, written: int) -> AttentionPlan:
    """Plan q queries of a lane over `live` slots; `written` table rows are written at the end."""
    form = machine.design.softmax_form if q == 1 else "online"
    passes, heads = _query_tiles(machine, q, live)
    work = _Work(machine, q, live, form, passes, heads)
    scores = _scores(machine, work)
    traffic = _traffic(
        machine, q, live, written, passes=passes, heads=heads, keys_again=scores.keys_again
    )
    made: dict[str, float] = dict(traffic.counts)
    for part in (scores.counts, work.counts()):
        for name, value in part.items():
            made[name] = made.get(name, 0) + value
    kv_tiles = ceil((live * passes + _own_rows(q, passes)) * machine.row_bytes / _tile(machine))
    made["dram_cycles"] = (
        traffic.read_cycles + traffic.write_cycles + scores.fetch_cycles + scores.store_cycles
    )
    made["array_cycles"] = work.qk_cycles + work.pv_cycles + scores.array_cycles
    made["softmax_cycles"] = work.softmax_cycles + work.late_cycles + scores.softmax_cycles
    made["mmu_cycles"] = scores.mmu_cycles
    return AttentionPlan(
        form=form,
        num_tiles=max(1, kv_tiles),
        head_group=heads,
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
        collects_from=scores.source,
    )


def _tile(machine: Machine) -> int:
    """Bytes of a tile of whole rows."""
    return machine.kv_tile_bytes // machine.row_bytes * machine.row_bytes


def _query_tiles(machine: Machine, q: int, live: int) -> tuple[int, int]:
    """Return (passes over the region, KV heads fetched together) with the shortest reading."""
    if q == 1:
        return 1, machine.model.num_kv_heads
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


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _own_rows(q: int, passes: int) -> float:
    """Rows of the chunk itself that later query tiles read again, summed over the tiles."""
    return q * (passes - 1) / 2


class _Work:
    """Arithmetic of a lane's attention, scores left out."""

    def __init__(
        self, machine: Machine, q: int, live: int, form: str, passes: int, heads: int
    ) -> None:
        model, array = machine.model, machine.chip.spec.array
        self.machine, self.q, self.live, self.form = machine, q, live, form
        self.pairs = q * live + q * (q + 1) // 2  # causal: a new token sees itself and those before
        self.logits = model.num_heads * self.pairs
        self.macs = 2 * model.num_heads * model.head_dim * self.pairs
        rows = machine.group * q
        groups = -(-rows // array.rows)
        split = max(1, min(array.rows // rows, model.head_dim))
        keys = self.pairs / q  # keys a query sees, on average
        half = model.num_kv_heads * model.head_dim * keys
        wide = -(-model.head_dim // array.cols) * array.cols / model.head_dim  # PV: D on columns
        self.kv_use = 2 * half * machine.kv_value_bytes * groups
        port = machine.port_cycles("kv", self.kv_use / 2)
        self.qk_cycles = max(ceil(half * groups / (array.cols * split)), port)
        self.pv_cycles = max(ceil(half * groups * wide / (array.cols * split)), port)
        ways = machine.chip.spec.softmax.ways
        self.softmax_cycles = ceil(self.logits / ways)
        self.late_cycles = (PASSES[form] - 1) * self.softmax_cycles
        self.num_tiles = max(1, ceil(live * machine.row_bytes * passes / _tile(machine)))

    def counts(self) -> dict[str, float]:
        """Return operations and on-chip bytes."""
        n, ab = self.logits, self.machine.activation_bytes
        outputs = self.machine.model.num_heads * self.machine.model.head_dim * self.q
        made: dict[str, float] = {
            "attention_macs": self.macs,
            "kv_use_bytes": self.kv_use,
            "activation_read_bytes": outputs * ab,
            "activation_write_bytes": outputs * ab,
            "softmax_compare": n,
            "softmax_add": n,
            "softmax_exp": n,
        }
        if self.form == "online":  # outputs are rescaled tile by tile, divided once
            made |= {"softmax_mul": outputs * self.num_tiles, "softmax_div": outputs}
        elif self.form == "two_pass":  # the second pass makes each exponential again
            made |= {"softmax_exp": 2 * n, "softmax_mul": n, "softmax_div": self.q}
            made |= {"logits_write_bytes": LOGIT_BYTES * n, "logits_read_bytes": LOGIT_BYTES * n}
        else:
            made |= {"softmax_mul": n, "softmax_div": self.q}
            made |= {
                "logits_write_bytes": 2 * LOGIT_BYTES * n,
                "logits_read_bytes": 2 * LOGIT_BYTES * n,
            }
        return made


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
        read += live * row * passes / 2
    kind = "kv_read" if q == 1 else "kv_read_chunk"
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
    if q > 1 and read:
        cost = machine.pattern(kind, heads=heads)
        made |= {
            "kv_chunk_activate_pj": read * cost.activate_pj_per_byte,
            "kv_chunk_column_pj": read * cost.column_pj_per_byte,
            "kv_chunk_io_pj": read * cost.io_pj_per_byte,
        }
    read_cycles = machine.dram_cycles(kind, read, heads=heads if q > 1 else None)
    read_cycles += machine.dram_cycles("kv_stage", stage) + machine.dram_cycles("page_table", table)
    return _Traffic(made, read_cycles, machine.dram_cycles("kv_write", write))


@dataclass(frozen=True)
class _Scores:
    counts: dict[str, float]
    fetch_cycles: int = 0
    store_cycles: int = 0
    array_cycles: int = 0
    softmax_cycles: int = 0
    mmu_cycles: int = 0
    source: str = "none"
    keys_again: bool = False


def _scores(machine: Machine, work: _Work) -> _Scores:
    """Count what the KV-MMU does with a lane's probabilities, and what it takes to get them."""
    if not machine.design.has_scores:
        return _Scores({})
    mmu, q = machine.mmu, work.q
    slots = work.live + q
    entries = slots * machine.num_tables
    score_bytes = entries * mmu.score_bits / BITS_PER_BYTE
    # Positions, and the ids of the protected newest slots: recent_share of them, log2 C bits each.
    newest_bits = mmu.recent_share * max(1, (machine.design.num_slots - 1).bit_length())
    position_bytes = entries * (mmu.position_bits + newest_bits) / BITS_PER_BYTE
    made: dict[str, float] = {
        "mmu_add": work.logits,
        "mmu_compare": entries,
        "mmu_visit": entries,
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
        source, array_cycles, softmax_cycles = _collect(machine, work, made)
    mmu_cycles = ceil(work.logits / mmu.ways) + machine.chip.mmu_latency_cycles(mmu.ways)
    again = source == "second product"
    return _Scores(made, fetch, store, array_cycles, softmax_cycles, mmu_cycles, source, again)


def _collect(machine: Machine, work: _Work, made: dict[str, float]) -> tuple[str, int, int]:
    """Charge the extra look at every logit that an online softmax needs; fill `made`."""
    made["collect_exp"] = work.logits
    made["collect_mul"] = work.logits
    softmax_cycles = ceil(work.logits / machine.chip.spec.softmax.ways)
    held = LOGIT_BYTES * work.logits
    if work.q == 1 and held <= machine.chip.memories["logits"].capacity_bytes:
        made["logits_write_bytes"] = held
        made["logits_read_bytes"] = held
        return "logits buffer", 0, softmax_cycles
    made["collect_macs"] = work.macs / 2
    made["kv_use_bytes"] = work.kv_use / 2
    return "second product", work.qk_cycles, softmax_cycles
