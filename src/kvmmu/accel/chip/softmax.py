"""The softmax unit: fp16 operations on logits. How many a row takes is the pipeline's count.

online     one pass: running maximum and sum; never exposes final probabilities
two_pass   maximum and sum in one pass, probabilities in a second
three_pass maximum, then exponentials and sum, then division
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmmu.accel.chip.prices import Prices
from kvmmu.accel.spec.accelerator import AcceleratorSpec

__all__ = ["SoftmaxPrices", "build_softmax_prices", "softmax_area_mm2"]


@dataclass(frozen=True)
class SoftmaxPrices:
    """Energy of one operation each at fp16."""

    compare_pj: float
    exp_pj: float
    multiply_pj: float
    add_pj: float
    divide_pj: float


def build_softmax_prices(prices: Prices) -> SoftmaxPrices:
    """Return the prices; the comparator is the 32-bit table's for half as many bits."""
    return SoftmaxPrices(
        compare_pj=prices.energy_pj("compare") / 2,
        exp_pj=prices.energy_pj("exp"),
        multiply_pj=prices.energy_pj("fp16_multiply"),
        add_pj=prices.energy_pj("fp16_add"),
        divide_pj=prices.energy_pj("divide"),
    )


def softmax_area_mm2(spec: AcceleratorSpec, prices: Prices) -> float:
    """Return the area: in each way a comparator, exp, multiplier and adder; one divider for all."""
    parts = ("compare", "exp", "fp16_multiply", "fp16_add")
    way_mm2 = sum(prices.area_mm2(part) for part in parts)
    return spec.softmax.ways * way_mm2 + prices.area_mm2("divide")
