"""Price counts: energy by unit = prices [units, counts] @ counts, leakage and standby by time.

Every count is priced by the units that it moves, once. Leakage, DRAM standby and the KV-MMU's clock
are powers, so they follow the delay; they are kept apart from what switching costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmmu.accel.dram.energy import command_energy, static_power_w
from kvmmu.accel.pipeline.counts import COUNT_NAMES, DRAM_KINDS, INDEX, Counts
from kvmmu.accel.pipeline.machine import Machine
from kvmmu.units import PJ_PER_J, seconds_of_cycles

__all__ = ["GROUPS", "MMU_UNITS", "Prices", "UNITS", "energy_j", "make_prices"]

UNITS = (
    "dram_activate",
    "dram_column",
    "dram_io",
    "weight_buffer",
    "kv_buffer",
    "activation_buffer",
    "logits_buffer",
    "array",
    "softmax",
    "vector",
    "mmu_logic",
    "mmu_scores",
    "mmu_dram",
    "mmu_collect",
)
MMU_UNITS = ("mmu_logic", "mmu_clock", "mmu_scores", "mmu_dram", "mmu_collect")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "DRAM, switching": ("dram_activate", "dram_column", "dram_io", "mmu_dram"),
    "DRAM, standby and refresh": ("dram_background", "dram_refresh"),
    "SRAM buffers": ("weight_buffer", "kv_buffer", "activation_buffer", "logits_buffer"),
    "PE array": ("array",),
    "softmax and vector": ("softmax", "vector"),
    "KV-MMU": ("mmu_logic", "mmu_clock", "mmu_scores", "mmu_collect"),
    "leakage": ("leakage",),
}
"""Units whose constants a sensitivity study moves together; `leakage` is every leak_* of them."""


@dataclass(frozen=True, eq=False)
class Prices:
    """Energy of counts and power of waiting, for one machine and one corner."""

    matrix: NDArray[np.float64]  # [units, counts], pJ
    static_w: Mapping[str, float]
    clock_mhz: float


def make_prices(machine: Machine) -> Prices:
    """Collect every price of a machine."""
    chip = machine.chip
    matrix = np.zeros((len(UNITS), len(COUNT_NAMES)))

    def price(unit: str, name: str, pj: float) -> None:
        matrix[UNITS.index(unit), INDEX[name]] += pj

    _price_dram(machine, price)
    for memory, written, read in (
        ("weight", ("weight_fill",), ("weight_use",)),
        ("kv", ("kv_fill",), ("kv_use",)),
        ("activation", ("activation_write",), ("activation_read",)),
        ("logits", ("logits_write",), ("logits_read",)),
        ("score", ("score_write",), ("score_read",)),
    ):
        if memory not in chip.memories:
            continue
        unit = "mmu_scores" if memory == "score" else f"{memory}_buffer"
        for name in written:
            price(unit, f"{name}_bytes", chip.memories[memory].write_pj_per_byte)
        for name in read:
            price(unit, f"{name}_bytes", chip.memories[memory].read_pj_per_byte)
    rest = chip.pe_register_pj_per_mac + chip.clock_noc_pj_per_mac
    price("array", "gemm_macs", chip.mac_pj + rest)
    price("array", "attention_macs", chip.attention_mac_pj + rest)
    price("mmu_collect", "collect_macs", chip.attention_mac_pj + rest)
    price("mmu_collect", "collect_exp", chip.softmax.exp_pj)
    price("mmu_collect", "collect_mul", chip.softmax.multiply_pj)
    price("softmax", "softmax_compare", chip.softmax.compare_pj)
    price("softmax", "softmax_exp", chip.softmax.exp_pj)
    price("softmax", "softmax_mul", chip.softmax.multiply_pj)
    price("softmax", "softmax_add", chip.softmax.add_pj)
    price("softmax", "softmax_div", chip.softmax.divide_pj)
    price("vector", "vector_ops", chip.vector_op_pj)
    price("mmu_logic", "mmu_beats", chip.mmu.beat_pj_per_way)
    price("mmu_logic", "mmu_rows", chip.mmu.row_pj_per_way)
    price("mmu_logic", "mmu_steps", chip.mmu.step_pj)
    price("mmu_logic", "mmu_images", chip.mmu.image_pj_per_way)
    background_w, refresh_w = static_power_w(machine.dram, corner=machine.corner)
    static = {"dram_background": background_w, "dram_refresh": refresh_w}
    static["mmu_clock"] = chip.mmu_clock_w if machine.design.has_scores else 0.0
    static |= {f"leak_{unit}": power for unit, power in chip.leakage_w.items()}
    return Prices(matrix, static, chip.spec.clock.clock_mhz)


def _price_dram(machine: Machine, price) -> None:  # type: ignore[no-untyped-def]
    """Price each kind of DRAM traffic by its pattern; score tables belong to the KV-MMU."""
    for kind in DRAM_KINDS:
        if kind == "kv_read_chunk":
            continue
        cost = machine.pattern(kind)
        parts = {
            "dram_activate": cost.activate_pj_per_byte,
            "dram_column": cost.column_pj_per_byte,
            "dram_io": cost.io_pj_per_byte,
        }
        for unit, pj in parts.items():
            price("mmu_dram" if kind == "score" else unit, f"{kind}_dram_bytes", pj)
    energy = command_energy(machine.dram, machine.corner)
    price("dram_activate", "kv_chunk_activates", energy.activate_pj)
    price("dram_column", "kv_chunk_bursts", energy.read_pj)
    price("dram_io", "kv_chunk_bursts", energy.io_read_pj)


def energy_j(prices: Prices, counts: Counts, *, cycles: float) -> dict[str, float]:
    """Return joules by unit: switching of UNITS, then standby and leak_* over `cycles`."""
    switching = prices.matrix @ counts / PJ_PER_J
    seconds = seconds_of_cycles(cycles, clock_mhz=prices.clock_mhz)
    made = dict(zip(UNITS, (float(x) for x in switching)))
    return made | {unit: power * seconds for unit, power in prices.static_w.items()}
