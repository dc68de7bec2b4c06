"""The KV-MMU unit: score tables on chip, and what its logic costs. Its cycles: mmu_timing.py.

A table holds, for one (lane, layer[, KV head]): a score and a position a slot, and a header of one
shared exponent, the newest token's position and the victim's slot. On chip a score has a carry bit
more than in DRAM; there a header has 8 bytes and a position whole bytes. Which slots are protected
follows from positions, so no list of them is kept. All as `kvmmu.rtl` has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvmmu.accel.chip.memory import Memory, build_memory, no_memory
from kvmmu.accel.chip.prices import Prices
from kvmmu.accel.spec.accelerator import AcceleratorSpec, Mmu
from kvmmu.errors import SpecError
from kvmmu.units import bytes_of_bits

__all__ = [
    "CARRY_BITS",
    "HEADER_BYTES",
    "MmuPrices",
    "MmuTables",
    "build_mmu_prices",
    "build_score_memory",
    "header_bits",
    "loser_search_cycles",
    "mmu_area_mm2",
]

CARRY_BITS = 1
"""Kept beside a score on chip until it is read again."""
HEADER_BYTES = 8
"""A table's header in DRAM."""


def header_bits(mmu: Mmu, slots: int) -> int:
    """Return the bits of a table's header on chip: exponent, position, victim."""
    return mmu.exponent_bits + mmu.position_bits + max(1, (slots - 1).bit_length())


@dataclass(frozen=True)
class MmuTables:
    """How many score tables there are and how many of them are on chip.

    num_tables = B * L (* Hkv at granularity "head"). Raises ValueError for counts out of range.
    """

    num_tables: int
    slots_per_table: int
    tables_on_chip: int

    def __post_init__(self) -> None:
        if self.num_tables < 1 or self.slots_per_table < 1:
            raise ValueError(f"num_tables and slots_per_table must be at least 1, got {self}")
        if self.tables_on_chip < min(2, self.num_tables):
            raise ValueError(f"tables_on_chip must be at least 2 (double buffer), got {self}")

    @classmethod
    def of(
        cls,
        spec: AcceleratorSpec,
        *,
        batch: int,
        num_layers: int,
        num_kv_heads: int,
        slots: int,
        granularity: str | None = None,
    ) -> MmuTables:
        """Return the tables of a run: all on chip, or where their store is DRAM two of them.

        At granularity "head" the tables of two lanes wait on chip besides, one lane's being fetched
        or written back while the other's pass through the two.
        """
        mmu = spec.mmu
        if mmu is None:
            raise SpecError(f"{spec.name}: mmu must be given for score tables, got none")
        heads = num_kv_heads if (granularity or mmu.granularity) == "head" else 1
        total = batch * num_layers * heads
        waiting = 2 * heads if heads > 1 else 0
        return cls(total, slots, total if mmu.store == "sram" else min(2 + waiting, total))

    def bytes_per_table(self, spec: AcceleratorSpec) -> int:
        """Bytes of one table in SRAM. Raises SpecError."""
        mmu = spec.mmu
        if mmu is None:
            raise SpecError(f"{spec.name}: mmu must be given for score tables, got none")
        slots = self.slots_per_table
        bits = slots * (mmu.score_bits + CARRY_BITS + mmu.position_bits) + header_bits(mmu, slots)
        return bytes_of_bits(bits, 1)


@dataclass(frozen=True)
class MmuPrices:
    """Energy of the KV-MMU's logic by what it does, over what its clock takes in any cycle.

    beat_pj_per_way: a probability taken; row_pj_per_way: a slot read, decayed, added to, clamped
    and compared; step_pj: a token admitted to one table, its victim's address made, its header
    written; image_pj_per_way: a slot of a table's image that goes to DRAM or comes back;
    idle_cycle_pj: every cycle, busy or not, what clock gates leave running: with tables on chip the
    same whatever the ways. SRAM accesses are apart.
    """

    beat_pj_per_way: float
    row_pj_per_way: float
    step_pj: float
    image_pj_per_way: float
    idle_cycle_pj: float


def build_mmu_prices(spec: AcceleratorSpec, prices: Prices) -> MmuPrices:
    """Return the prices of the KV-MMU's logic; zero without one."""
    mmu = spec.mmu
    if mmu is None:
        return MmuPrices(0.0, 0.0, 0.0, 0.0, 0.0)
    idle_cycle_pj = prices.energy_pj("mmu_idle_cycle")
    if mmu.store == "dram":
        idle_cycle_pj += mmu.ways * prices.energy_pj("mmu_swap_cycle")
    return MmuPrices(
        beat_pj_per_way=prices.energy_pj("mmu_beat"),
        row_pj_per_way=prices.energy_pj("mmu_row"),
        step_pj=prices.energy_pj("mmu_step"),
        image_pj_per_way=prices.energy_pj("mmu_image_beat"),
        idle_cycle_pj=idle_cycle_pj,
    )


def mmu_area_mm2(spec: AcceleratorSpec, prices: Prices) -> float:
    """Return the logic's area, SRAM apart: what there is once, each way, and each way's swap."""
    if spec.mmu is None:
        return 0.0
    way_mm2 = prices.area_mm2("mmu_way")
    if spec.mmu.store == "dram":
        way_mm2 += prices.area_mm2("mmu_swap_way")
    return prices.area_mm2("mmu_logic") + spec.mmu.ways * way_mm2


def build_score_memory(
    spec: AcceleratorSpec, tables: MmuTables | None, *, prices: Prices
) -> Memory:
    """Return the SRAM of the tables on chip; none without tables. Raises SpecError.

    In a cycle a row of words and positions is read from one bank and another written to the other.
    """
    mmu = spec.mmu
    if mmu is None or tables is None:
        return no_memory("score")
    if mmu.store == "sram" and tables.tables_on_chip != tables.num_tables:
        raise SpecError(
            f"tables_on_chip must be all {tables.num_tables} tables where mmu.store is 'sram', "
            f"got {tables.tables_on_chip}; set mmu.store to 'dram'"
        )
    capacity_bytes = tables.bytes_per_table(spec) * tables.tables_on_chip
    row_bytes = bytes_of_bits(mmu.ways, mmu.score_bits + CARRY_BITS + mmu.position_bits)
    return build_memory(spec, "score", capacity_bytes, 2 * row_bytes, corner=prices.corner)


def loser_search_cycles(ways: int, num_slots: int) -> int:
    """Return the cycles of one search for a chunk's losers: rows, the tree, the running minimum.

    A model only: the RTL takes a prompt token by token and has no such search.
    """
    return -(-num_slots // ways) + math.ceil(math.log2(ways)) + 1
