"""The KV-MMU unit: score tables on chip, scan logic, victim and write address.

A table holds, for one (lane, layer[, KV head]): a score mantissa and a position per slot, one
shared exponent, the recent FIFO of slot ids and the victim's slot id.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvmmu.accel.chip.memory import Memory, build_memory, no_memory
from kvmmu.accel.chip.prices import Prices
from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.tables import load_arithmetic
from kvmmu.errors import SpecError
from kvmmu.units import bytes_of_bits

__all__ = [
    "MmuPrices",
    "MmuTables",
    "build_mmu_prices",
    "build_score_memory",
    "mmu_area_mm2",
    "scan_cycles",
]


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
        cls, spec: AcceleratorSpec, *, batch: int, num_layers: int, num_kv_heads: int, slots: int
    ) -> MmuTables:
        """Return the tables of a run: all on chip, or two where their store is DRAM."""
        if spec.mmu is None:
            raise SpecError(f"{spec.name}: mmu must be given for score tables, got none")
        heads = num_kv_heads if spec.mmu.granularity == "head" else 1
        total = batch * num_layers * heads
        return cls(total, slots, total if spec.mmu.store == "sram" else min(2, total))

    def bytes_per_table(self, spec: AcceleratorSpec) -> int:
        """Bytes of one table as it lies in SRAM or is moved to DRAM. Raises SpecError."""
        mmu = spec.mmu
        if mmu is None:
            raise SpecError(f"{spec.name}: mmu must be given for score tables, got none")
        slots = self.slots_per_table
        id_bits = max(1, (slots - 1).bit_length())
        recent = max(1, int(mmu.recent_share * slots))
        bits = slots * (mmu.score_bits + mmu.position_bits) + mmu.exponent_bits
        return bytes_of_bits(bits + (recent + 1) * id_bits, 1)


@dataclass(frozen=True)
class MmuPrices:
    """Energy of the KV-MMU's steps.

    add_pj, compare_pj and control_pj_per_slot are for one slot's visit; the three together are
    the synthesised scan logic's energy. address_pj is for one computed row address.
    """

    add_pj: float
    compare_pj: float
    control_pj_per_slot: float
    address_pj: float


def build_mmu_prices(spec: AcceleratorSpec, prices: Prices) -> MmuPrices:
    """Return the prices of the KV-MMU's steps; zero without one."""
    mmu = spec.mmu
    if mmu is None:
        return MmuPrices(0.0, 0.0, 0.0, 0.0)
    add_pj = prices.energy_pj("int32_add") * mmu.accumulator_bits / 32
    compare_pj = prices.energy_pj("compare") * mmu.score_bits / 32
    scan_pj = prices.energy_pj("mmu_scan_cycle") / load_arithmetic().mmu_scan_ways.ways
    address_pj = prices.energy_pj("int32_multiply") + 2 * prices.energy_pj("int32_add")
    return MmuPrices(add_pj, compare_pj, max(0.0, scan_pj - add_pj - compare_pj), address_pj)


def mmu_area_mm2(spec: AcceleratorSpec, prices: Prices) -> float:
    """Return the scan logic's area: in proportion to its ways (assumed), SRAM apart."""
    if spec.mmu is None:
        return 0.0
    return prices.area_mm2("mmu_scan_logic") * spec.mmu.ways / load_arithmetic().mmu_scan_ways.ways


def build_score_memory(
    spec: AcceleratorSpec, tables: MmuTables | None, *, prices: Prices
) -> Memory:
    """Return the SRAM of the tables on chip; none without tables. Raises SpecError."""
    mmu = spec.mmu
    if mmu is None or tables is None:
        return no_memory("score")
    if mmu.store == "sram" and tables.tables_on_chip != tables.num_tables:
        raise SpecError(
            f"tables_on_chip must be all {tables.num_tables} tables where mmu.store is 'sram', "
            f"got {tables.tables_on_chip}; set mmu.store to 'dram'"
        )
    capacity_bytes = tables.bytes_per_table(spec) * tables.tables_on_chip
    port_bytes = bytes_of_bits(mmu.ways, mmu.score_bits)  # the scores of one scan cycle
    return build_memory(spec, "score", capacity_bytes, port_bytes, corner=prices.corner)


def scan_cycles(ways: int, num_slots: int) -> int:
    """Return the cycles of one search: rows of `ways` slots, then the tree and running minimum.

    256 slots in rows of 16 take 21 cycles, as the synthesised unit does.
    """
    return -(-num_slots // ways) + math.ceil(math.log2(ways)) + 1
