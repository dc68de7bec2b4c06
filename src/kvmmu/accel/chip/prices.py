"""Prices of operations and areas of logic at a specification's node, Vdd and corner."""

from __future__ import annotations

from dataclasses import dataclass

from kvmmu.accel.spec.accelerator import AcceleratorSpec
from kvmmu.accel.spec.scaling import Flavour
from kvmmu.accel.spec.sourced import Corner
from kvmmu.accel.spec.tables import load_arithmetic, load_sram
from kvmmu.units import BITS_PER_BYTE

__all__ = ["Prices"]

_UM2_PER_MM2 = 1e6
_LEAKAGE_BANK = (32.0, 64.0)  # KiB, bits: the bank whose leakage tells the flavours apart


@dataclass(frozen=True)
class Prices:
    """Look up energy, area and leakage of parts, scaled to the specification."""

    spec: AcceleratorSpec
    corner: Corner

    def energy_pj(self, operation: str) -> float:
        """Return the energy of one operation; zero where an all-in figure holds it."""
        if self.spec.all_in is not None:
            return 0.0
        return load_arithmetic().energy_pj(
            operation,
            to_node=self.spec.logic_node,
            to_vdd_v=self.spec.process.vdd_v,
            corner=self.corner,
        )

    def area_mm2(self, part: str) -> float:
        """Return the cell area of one part; zero where energy is all-in (no area model then)."""
        if self.spec.all_in is not None:
            return 0.0
        area = load_arithmetic().area_um2(part, to_node=self.spec.logic_node, corner=self.corner)
        return area / _UM2_PER_MM2

    def multiply_pj(self, left_bits: int, right_bits: int) -> float:
        """Return an integer multiply: the 8 x 8 bit one times the product of widths over 64.

        Checked by the table itself: 32 x 32 bit is 15.5 times 8 x 8 bit, the rule says 16.
        """
        return self.energy_pj("int8_multiply") * left_bits * right_bits / BITS_PER_BYTE**2

    def leakage_w(self, area_mm2: float) -> float:
        """Return what logic of this area leaks, by the flavour's ratio in the SRAM table."""
        if self.spec.all_in is not None:
            return 0.0
        table, flavour = load_sram(self.spec.process.node_nm), self.spec.process.sram_flavour
        logic = load_arithmetic().logic_leakage
        names: tuple[Flavour, Flavour] = (flavour, "hp")
        leaks = {name: sum(table.row(name, *_LEAKAGE_BANK)[4:6]) for name in names}
        squared = (self.spec.process.vdd_v / logic.native_vdd_v) ** 2
        density = logic.hp_mw_per_mm2.at(self.corner) * squared * leaks[flavour] / leaks["hp"]
        return area_mm2 * density / 1e3
