"""The PE array: energy of one multiply-accumulate by its parts, and area.

mac: multiplier (product of the widths) and 32-bit accumulate. Registers: what a PE writes each
MAC. Clock and network: a share of both. Narrow operands leave the wide multiplier's rest still.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmmu.accel.chip.prices import Prices
from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.units import BITS_PER_BYTE

__all__ = ["ArrayPrices", "array_area_mm2", "build_array_prices"]


@dataclass(frozen=True)
class ArrayPrices:
    """Energy of a MAC of weights x activations and of KV x activations, and what goes with both."""

    mac_pj: float
    attention_mac_pj: float
    pe_register_pj_per_mac: float
    clock_noc_pj_per_mac: float


def build_array_prices(spec: AcceleratorSpec, prices: Prices) -> ArrayPrices:
    """Return the array's prices; an all-in figure is the MAC's and the rest is zero."""
    if spec.all_in is not None:
        whole_pj = spec.all_in.pj_per_mac.at(prices.corner)
        return ArrayPrices(whole_pj, whole_pj, 0.0, 0.0)
    assert spec.overheads is not None  # the specification holds one of the two
    bits, overheads = spec.bits, spec.overheads
    accumulate_pj = prices.energy_pj("int32_add")
    mac_pj = prices.multiply_pj(bits.weights, bits.activations) + accumulate_pj
    attention_pj = prices.multiply_pj(bits.kv, bits.activations) + accumulate_pj
    register_pj = overheads.pe_register_bits * prices.energy_pj("register_bit")
    share = overheads.clock_noc_share.at(prices.corner)
    return ArrayPrices(mac_pj, attention_pj, register_pj, share * (mac_pj + register_pj))


def array_area_mm2(spec: AcceleratorSpec, prices: Prices) -> float:
    """Return the array's area: MACs as wide as the widest operands, registers, wiring."""
    if spec.overheads is None:
        return 0.0
    widest = max(spec.bits.weights, spec.bits.kv) * spec.bits.activations
    mac_mm2 = prices.area_mm2("int8_mac") * widest / BITS_PER_BYTE**2
    registers_mm2 = spec.overheads.pe_register_bits * prices.area_mm2("register_bit")
    wiring = 1.0 + spec.overheads.wiring_area_share.at(prices.corner)
    return spec.num_pes * (mac_mm2 + registers_mm2) * wiring
