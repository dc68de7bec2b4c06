"""Chip: the price list of an accelerator. Prices per operation and byte, leakage and area by unit.

What is counted and multiplied by these prices is the pipeline's. Leakage is apart from energy per
operation; it costs leakage_w times the run's time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

from kvmmu.accel.chip.array import array_area_mm2, build_array_prices
from kvmmu.accel.chip.memory import Memory, build_memory
from kvmmu.accel.chip.mmu import (
    MmuPrices,
    MmuTables,
    build_mmu_prices,
    build_score_memory,
    loser_search_cycles,
    mmu_area_mm2,
)
from kvmmu.accel.chip.prices import Prices
from kvmmu.accel.chip.softmax import SoftmaxPrices, build_softmax_prices, softmax_area_mm2
from kvmmu.accel.chip.vector import vector_area_mm2, vector_op_pj
from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.sourced import Corner
from kvmmu.errors import SpecError
from kvmmu.units import KIB, PJ_PER_J

__all__ = ["Chip", "MmuTables", "build_chip"]


@dataclass(frozen=True)
class Chip:
    """Prices of a built accelerator at one corner; see the units' files for each figure's rule."""

    spec: AcceleratorSpec
    corner: Corner
    memories: MappingProxyType[str, Memory]
    mac_pj: float
    attention_mac_pj: float
    pe_register_pj_per_mac: float
    clock_noc_pj_per_mac: float
    softmax: SoftmaxPrices
    vector_op_pj: float
    mmu: MmuPrices
    leakage_w: MappingProxyType[str, float]
    area_mm2: MappingProxyType[str, float]

    @property
    def total_leakage_w(self) -> float:
        """Leakage of all units."""
        return sum(self.leakage_w.values())

    @property
    def total_area_mm2(self) -> float:
        """Area of all units."""
        return sum(self.area_mm2.values())

    def without(self, *units: str) -> Chip:
        """Return the chip with units left out: no leakage, no area. Raises KeyError."""
        leakage_w, area_mm2 = dict(self.leakage_w), dict(self.area_mm2)
        for unit in units:
            leakage_w[unit] = area_mm2[unit] = 0.0 * area_mm2[unit]
        return replace(
            self, leakage_w=MappingProxyType(leakage_w), area_mm2=MappingProxyType(area_mm2)
        )

    @property
    def mmu_clock_w(self) -> float:
        """What of the KV-MMU's clock runs all the time, past the gates."""
        return self.mmu.idle_cycle_pj * self.spec.clock.clock_mhz * 1e6 / PJ_PER_J

    def loser_search_cycles(self, num_slots: int) -> int:
        """Return the cycles of one search over `num_slots` slots. Raises SpecError without MMU."""
        if self.spec.mmu is None:
            raise SpecError(f"{self.spec.name}: mmu must be given for a search, got none")
        return loser_search_cycles(self.spec.mmu.ways, num_slots)


def build_chip(
    spec: AcceleratorSpec, *, corner: Corner = "nominal", mmu_tables: MmuTables | None = None
) -> Chip:
    """Return the prices of an accelerator. Raises SpecError for what cannot be built.

    Without `mmu_tables` the chip has no score memory: the full-cache baseline's chip, its KV-MMU
    logic included only if the specification has one.
    """
    if corner not in ("low", "nominal", "high"):
        raise SpecError(f"corner must be 'low', 'nominal' or 'high', got {corner!r}")
    prices = Prices(spec, corner)
    memories = {
        name: build_memory(
            spec,
            name,
            getattr(spec.buffers, f"{name}_kib") * KIB,
            getattr(spec.buffers, f"{name}_port_bytes"),
            corner=corner,
        )
        for name in ("weight", "kv", "activation", "logits")
    }
    memories["score"] = build_score_memory(spec, mmu_tables, prices=prices)
    logic_mm2 = {
        "array": array_area_mm2(spec, prices),
        "softmax": softmax_area_mm2(spec, prices),
        "vector": vector_area_mm2(spec, prices),
        "mmu_logic": mmu_area_mm2(spec, prices),
    }
    units = {"mmu_score" if n == "score" else f"{n}_buffer": m for n, m in memories.items()}
    leakage_w = {unit: memory.leakage_w for unit, memory in units.items()}
    leakage_w |= {unit: prices.leakage_w(area) for unit, area in logic_mm2.items()}
    area_mm2 = {unit: memory.area_mm2 for unit, memory in units.items()} | logic_mm2
    array = build_array_prices(spec, prices)
    return Chip(
        spec=spec,
        corner=corner,
        memories=MappingProxyType(memories),
        mac_pj=array.mac_pj,
        attention_mac_pj=array.attention_mac_pj,
        pe_register_pj_per_mac=array.pe_register_pj_per_mac,
        clock_noc_pj_per_mac=array.clock_noc_pj_per_mac,
        softmax=build_softmax_prices(prices),
        vector_op_pj=vector_op_pj(prices),
        mmu=build_mmu_prices(spec, prices),
        leakage_w=MappingProxyType(leakage_w),
        area_mm2=MappingProxyType(area_mm2),
    )
