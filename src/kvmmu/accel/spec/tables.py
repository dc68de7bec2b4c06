"""SRAM banks, operations and areas as data: rows of CACTI and figures with their node and Vdd.

SRAM between two rows is interpolated: straight lines over the logarithms of size and port width,
exact at a row. A size or port outside the table is refused; larger memories are built of banks.
Vdd: a bank's dynamic energy goes with V^2 and its leakage with V^2 (assumed: current about
proportional to V) from the flavour's native Vdd. Its time follows the gate delay of the
node's fit below the native Vdd and is never taken shorter than CACTI's above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from kvmmu.accel.spec.scaling import (
    Flavour,
    area_factor,
    delay_factor,
    energy_factor,
    logic_node,
)
from kvmmu.accel.spec.sourced import (
    Band,
    Corner,
    Source,
    SpecModel,
    parse_spec,
    read_yaml,
    require_sources,
)
from kvmmu.errors import SpecError

__all__ = [
    "Arithmetic",
    "Bank",
    "SramTable",
    "load_arithmetic",
    "load_sram",
    "sram_nodes",
]

_FOLDER = Path(__file__).parents[1] / "configs" / "tables"
_COLUMNS = [
    "kib",
    "port_bits",
    "read_pj",
    "write_pj",
    "leakage_mw",
    "gate_leakage_mw",
    "access_ns",
    "cycle_ns",
    "height_mm",
    "width_mm",
]


@dataclass(frozen=True)
class Bank:
    """One SRAM bank with one port, at a flavour, Vdd and corner."""

    kib: float
    port_bits: float
    read_pj: float
    write_pj: float
    leakage_mw: float
    access_ns: float
    cycle_ns: float
    area_mm2: float


class _SramCorners(SpecModel):
    energy_factor: Band
    source: Source


class _SramFlavour(SpecModel):
    native_vdd_v: float = Field(gt=0)
    hot_leakage_factor: float = Field(ge=1)
    source: Source
    rows: list[list[float]]


class SramTable(SpecModel):
    """Rows of banks at one node, by flavour."""

    name: str
    title: str
    source: Source
    node_nm: int
    columns: list[str]
    corners: _SramCorners
    flavours: dict[str, _SramFlavour]

    @model_validator(mode="after")
    def _has_columns(self) -> Self:
        if self.columns != _COLUMNS:
            raise ValueError(f"columns must be {_COLUMNS}, got {self.columns}")
        for name, flavour in self.flavours.items():
            if any(len(row) != len(_COLUMNS) or min(row) <= 0 for row in flavour.rows):
                raise ValueError(f"flavours.{name}.rows must hold {len(_COLUMNS)} positive numbers")
        return self

    def size_range_kib(self) -> tuple[float, float]:
        """Return the smallest and the largest bank of the table."""
        sizes = [row[0] for flavour in self.flavours.values() for row in flavour.rows]
        return min(sizes), max(sizes)

    def row(self, flavour: Flavour, kib: float, port_bits: float) -> list[float]:
        """Return the columns of a bank at the flavour's native Vdd, 300 K. Raises SpecError."""
        points = {(row[0], row[1]): row for row in self._flavour(flavour).rows}
        sizes = _around("bank_kib", kib, sorted({size for size, _ in points}))
        ports = _around("port_bits", port_bits, sorted({port for _, port in points}))
        if len(sizes) == len(ports) == 1:  # a row as it stands, no rounding by the logarithm
            return points[kib, port_bits]
        columns = [0.0] * (len(_COLUMNS) - 2)
        for size, size_share in sizes:
            for port, port_share in ports:
                for idx, value in enumerate(points[size, port][2:]):
                    columns[idx] += size_share * port_share * math.log(value)
        return [kib, port_bits, *(math.exp(value) for value in columns)]

    def bank(
        self, flavour: Flavour, kib: float, port_bits: float, *, vdd_v: float, corner: Corner
    ) -> Bank:
        """Return a bank at a Vdd; it leaks as at 300 K, at the high corner as at 350 K."""
        native = self._flavour(flavour)
        _, _, read, write, leak, gate, access, cycle, height, width = self.row(
            flavour, kib, port_bits
        )
        squared = (vdd_v / native.native_vdd_v) ** 2
        energy = squared * self.corners.energy_factor.at(corner)
        hot = native.hot_leakage_factor if corner == "high" else 1.0
        slower = self._delay(flavour, vdd_v)
        return Bank(
            kib=kib,
            port_bits=port_bits,
            read_pj=read * energy,
            write_pj=write * energy,
            leakage_mw=(leak * hot + gate) * squared,
            access_ns=access * slower,
            cycle_ns=cycle * slower,
            area_mm2=height * width,
        )

    def _delay(self, flavour: Flavour, vdd_v: float) -> float:
        native = self._flavour(flavour).native_vdd_v
        if vdd_v >= native:
            return 1.0
        node = logic_node(self.node_nm, flavour)
        return max(1.0, delay_factor(node, native, to_node=node, to_vdd_v=vdd_v))

    def _flavour(self, flavour: Flavour) -> _SramFlavour:
        if flavour not in self.flavours:
            raise SpecError(
                f"process.sram_flavour must be one of {', '.join(self.flavours)}, got {flavour!r}"
            )
        return self.flavours[flavour]


def _around(what: str, value: float, known: list[float]) -> list[tuple[float, float]]:
    """Return the one or two table points beside a value with their weights in the logarithm."""
    if not known[0] <= value <= known[-1]:
        raise SpecError(
            f"{what} must be {known[0]:g} .. {known[-1]:g}, the range of the SRAM table, "
            f"got {value:g}; build the memory of banks"
        )
    for left, right in pairwise(known):
        if value == left:
            return [(left, 1.0)]
        if left < value < right:
            share = math.log(value / left) / math.log(right / left)
            return [(left, 1.0 - share), (right, share)]
    return [(known[-1], 1.0)]


class _Energy(SpecModel):
    energy_pj: float = Field(gt=0)
    node: str
    vdd_v: float
    source: Source


class _EnergyBand(SpecModel):
    low: _Energy
    nominal: _Energy
    high: _Energy


class _Area(SpecModel):
    area_um2: float = Field(gt=0)
    node: str
    source: Source


class _AreaBand(SpecModel):
    low: _Area
    nominal: _Area
    high: _Area


class _Leakage(SpecModel):
    hp_mw_per_mm2: Band
    native_vdd_v: float
    node: str
    source: Source


class Arithmetic(SpecModel):
    """Energy and area of operations with the node and Vdd each was given for."""

    name: str
    title: str
    source: Source
    operations: dict[str, _EnergyBand]
    areas: dict[str, _AreaBand]
    logic_leakage: _Leakage

    def energy_pj(self, operation: str, *, to_node: str, to_vdd_v: float, corner: Corner) -> float:
        """Return an operation's energy at a node and Vdd. Raises SpecError out of the fit."""
        given: _Energy = getattr(self.operations[operation], corner)
        factor = energy_factor(given.node, given.vdd_v, to_node=to_node, to_vdd_v=to_vdd_v)
        return given.energy_pj * factor

    def area_um2(self, part: str, *, to_node: str, corner: Corner) -> float:
        """Return a part's area at a node, scaled by the fit."""
        given: _Area = getattr(self.areas[part], corner)
        return given.area_um2 * area_factor(given.node, to_node=to_node)


def sram_nodes() -> list[int]:
    """List the nodes that have an SRAM table."""
    return sorted(
        int(path.stem.removeprefix("sram_").removesuffix("nm")) for path in _FOLDER.glob("sram_*")
    )


@cache
def load_sram(node_nm: int) -> SramTable:
    """Return the SRAM table of a node. Raises SpecError for a node without one."""
    if node_nm not in sram_nodes():
        known = ", ".join(str(node) for node in sram_nodes())
        raise SpecError(
            f"process.node_nm must be one of {known} (an SRAM table each), got {node_nm}"
        )
    path = _FOLDER / f"sram_{node_nm}nm.yaml"
    raw = read_yaml(path)
    require_sources(raw, path.name)
    return parse_spec(SramTable, raw, path.name)


@cache
def load_arithmetic() -> Arithmetic:
    """Return the table of operations and areas."""
    path = _FOLDER / "arithmetic.yaml"
    raw = read_yaml(path)
    require_sources(raw, path.name)
    return parse_spec(Arithmetic, raw, path.name)
