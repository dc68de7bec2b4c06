"""Scale energy, delay and area between nodes: the fits of Stillmaker and Baas, Vdd explicit.

Paper: A. Stillmaker, B. Baas, "Scaling equations for the accurate prediction of CMOS device
performance from 180 nm to 7 nm", Integration 58 (2017) 74-81, doi 10.1016/j.vlsi.2017.02.002;
coefficients as coded in wromaszkan/nodeScale. A fit of transistor models, about +-25 %. Below
65 nm it has a high-performance (HP) and a low-power (LP) row, e.g. "HP45"; 28 nm has none and
lies between 32 and 20 (assumed: geometric in the node).
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field

from kvmmu.accel.spec.sourced import Source, SpecModel, parse_spec, read_yaml, require_sources
from kvmmu.errors import SpecError

__all__ = [
    "Flavour",
    "area_factor",
    "delay_factor",
    "energy_factor",
    "geometric_area_factor",
    "logic_node",
    "vdd_range",
]

Flavour = Literal["hp", "lop", "lstp"]
_FILE = Path(__file__).parents[1] / "configs" / "tables" / "scaling.yaml"
_NODES_WITHOUT_FLAVOUR = (180, 130, 90, 65)


class _Row(SpecModel):
    """Polynomials of one node: energy a V^2 + b V + c, delay a V^3 + b V^2 + c V + d."""

    energy: list[float] = Field(min_length=3, max_length=3)
    delay: list[float] = Field(min_length=4, max_length=4)
    energy_vdd_v: list[float] = Field(min_length=2, max_length=2)
    delay_vdd_v: list[float] = Field(min_length=2, max_length=2)


class _Area(SpecModel):
    """Relative area by node."""

    nodes_nm: list[int]
    relative: list[float]
    source: Source


class _Scaling(SpecModel):
    name: str
    title: str
    source: Source
    rows: dict[str, _Row]
    area: _Area


@cache
def _table() -> _Scaling:
    raw = read_yaml(_FILE)
    require_sources({k: v for k, v in raw.items() if k != "rows"}, _FILE.name)
    return parse_spec(_Scaling, raw, _FILE.name)


def logic_node(node_nm: int, flavour: Flavour) -> str:
    """Return the name of a node's row: "65", or "HP28", "LP28" where the fit tells them apart."""
    if node_nm in _NODES_WITHOUT_FLAVOUR:
        return str(node_nm)
    return f"{'HP' if flavour == 'hp' else 'LP'}{node_nm}"


def _bracket(node: str) -> list[tuple[_Row, float]]:
    """Return the rows that make up a node with their weights."""
    rows = _table().rows
    if node in rows:
        return [(rows[node], 1.0)]
    if node in ("HP28", "LP28"):
        share = math.log(28 / 20) / math.log(32 / 20)
        return [(rows[f"{node[:2]}32"], share), (rows[f"{node[:2]}20"], 1.0 - share)]
    raise SpecError(
        f"node must be one of {', '.join([*rows, 'HP28', 'LP28'])}, got {node!r}; "
        "nodes above 45 nm have no HP or LP before the number"
    )


def vdd_range(node: str, kind: Literal["energy", "delay"]) -> tuple[float, float]:
    """Return the lowest and highest Vdd for which a node's fit is taken. Raises SpecError."""
    rows = [row for row, _ in _bracket(node)]
    ranges = [row.energy_vdd_v if kind == "energy" else row.delay_vdd_v for row in rows]
    return max(span[0] for span in ranges), min(span[1] for span in ranges)


def _value(node: str, vdd_v: float, kind: Literal["energy", "delay"]) -> float:
    low, high = vdd_range(node, kind)
    if not low <= vdd_v <= high:
        raise SpecError(
            f"vdd_v must lie in {low} .. {high} V, where the {kind} fit of node {node} holds, "
            f"got {vdd_v}"
        )
    log_value = 0.0
    for row, weight in _bracket(node):
        coefficients = row.energy if kind == "energy" else row.delay
        value = 0.0
        for coefficient in coefficients:
            value = value * vdd_v + coefficient
        log_value += weight * math.log(value)
    return math.exp(log_value)


def energy_factor(node: str, vdd_v: float, *, to_node: str, to_vdd_v: float) -> float:
    """Return by what an operation's energy grows. Raises SpecError outside the fitted Vdd."""
    return _value(to_node, to_vdd_v, "energy") / _value(node, vdd_v, "energy")


def delay_factor(node: str, vdd_v: float, *, to_node: str, to_vdd_v: float) -> float:
    """Return by what a gate's delay grows. Raises SpecError outside the fitted Vdd."""
    return _value(to_node, to_vdd_v, "delay") / _value(node, vdd_v, "delay")


def _nm(node: str | int) -> int:
    digits = str(node).removeprefix("HP").removeprefix("LP")
    if not digits.isdigit() or int(digits) < 1:
        raise SpecError(f"node must be a count of nm, HP or LP before it, got {node!r}")
    return int(digits)


def area_factor(node: str | int, *, to_node: str | int) -> float:
    """Return by what area grows, log-log between nodes of the fit. Raises SpecError outside."""
    return _area(_nm(to_node)) / _area(_nm(node))


def _area(node_nm: int) -> float:
    area = _table().area
    points = sorted(zip(area.nodes_nm, area.relative))
    if not points[0][0] <= node_nm <= points[-1][0]:
        raise SpecError(f"node must be {points[0][0]} .. {points[-1][0]} nm, got {node_nm}")
    for (left_nm, left), (right_nm, right) in pairwise(points):
        if left_nm <= node_nm <= right_nm:
            share: float = math.log(node_nm / left_nm) / math.log(right_nm / left_nm)
            return float(left * (right / left) ** share)
    raise AssertionError(node_nm)


def geometric_area_factor(node: str | int, *, to_node: str | int) -> float:
    """Return by what area grows if every length follows the node's name: the other bound."""
    return (_nm(to_node) / _nm(node)) ** 2
