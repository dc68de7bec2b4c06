"""The vector unit: norms, rotations, activations, residual sums; one op is an fp16 multiply-add."""

from __future__ import annotations

from kvmmu.accel.chip.prices import Prices
from kvmmu.accel.spec.accelerator import AcceleratorSpec

__all__ = ["vector_area_mm2", "vector_op_pj"]

_PARTS = ("fp16_multiply", "fp16_add")


def vector_op_pj(prices: Prices) -> float:
    """Return the energy of one multiply-add."""
    return sum(prices.energy_pj(part) for part in _PARTS)


def vector_area_mm2(spec: AcceleratorSpec, prices: Prices) -> float:
    """Return the area of all ways."""
    return spec.vector.ways * sum(prices.area_mm2(part) for part in _PARTS)
