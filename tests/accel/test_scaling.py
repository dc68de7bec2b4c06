"""Node scaling: the printed factors, the refused voltages, the shape of every fit."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kvmmu.accel.spec.scaling import (
    area_factor,
    delay_factor,
    energy_factor,
    geometric_area_factor,
    logic_node,
    vdd_range,
)
from kvmmu.errors import SpecError

ROWS = ("180", "130", "90", "65", "HP45", "LP45", "HP32", "LP32", "HP28", "LP28", "HP20", "LP20")


# Ratios of Stillmaker and Baas's fits (Integration 58, 2017), to two decimals.
@pytest.mark.parametrize(
    ("node", "vdd_v", "printed"),
    [
        ("HP45", 0.9, (1.51, 1.91, 2.41, 3.01)),
        ("HP45", 1.0, (1.23, 1.55, 1.95, 2.44)),
        ("LP45", 1.1, (0.87, 1.10, 1.39, 1.73)),
    ],
)
def test_energy_to_65_nm_is_the_printed_table(
    node: str, vdd_v: float, printed: tuple[float, ...]
) -> None:
    got = [energy_factor(node, vdd_v, to_node="65", to_vdd_v=v) for v in (0.9, 1.0, 1.1, 1.2)]
    assert got == pytest.approx(printed, abs=0.006)  # two printed decimals


def test_delay_to_65_nm_is_the_printed_table() -> None:
    got = [delay_factor("HP45", 0.9, to_node="65", to_vdd_v=v) for v in (0.9, 1.0, 1.1, 1.2)]
    assert got == pytest.approx((2.05, 1.73, 1.52, 1.40), abs=0.006)


def test_area_from_45_to_65_nm_is_smaller_by_the_fit_than_by_the_square() -> None:
    assert area_factor(45, to_node=65) == pytest.approx(1.5, abs=0.001)
    assert geometric_area_factor(45, to_node=65) == pytest.approx(2.09, abs=0.005)
    assert area_factor("HP45", to_node="65") == area_factor(45, to_node=65)


@pytest.mark.parametrize(("node_nm", "printed"), [(130, 0.23), (90, 0.53), (32, 3.3), (20, 7.1)])
def test_area_to_65_nm_is_the_printed_ratio(node_nm: int, printed: float) -> None:
    assert area_factor(node_nm, to_node=65) == pytest.approx(printed, rel=0.02)  # rounded ratios


def test_area_of_28_nm_lies_between_its_neighbours() -> None:
    assert 4.0 < area_factor(28, to_node=65) < 5.0  # 32 nm 3.3, 20 nm 7.1 by the same fits


@pytest.mark.parametrize(("prefix", "vdd_v"), [("HP", 0.8), ("LP", 1.0)])
def test_28_nm_lies_between_its_fitted_neighbours(prefix: str, vdd_v: float) -> None:
    for factor in (energy_factor, delay_factor):
        values = [
            factor("65", 1.0, to_node=f"{prefix}{node_nm}", to_vdd_v=vdd_v)
            for node_nm in (20, 28, 32)
        ]
        assert min(values[0], values[2]) < values[1] < max(values[0], values[2])


@pytest.mark.parametrize("node", ROWS)
def test_in_its_vdd_range_every_fit_has_rising_energy_and_falling_delay(node: str) -> None:
    low, high = vdd_range(node, "energy")
    energies = [energy_factor("65", 1.0, to_node=node, to_vdd_v=v) for v in np.linspace(low, high)]
    assert min(energies) > 0
    assert (np.diff(energies) > 0).all()
    low, high = vdd_range(node, "delay")
    delays = [delay_factor("65", 1.0, to_node=node, to_vdd_v=v) for v in np.linspace(low, high)]
    assert min(delays) > 0
    assert (np.diff(delays) < 0).all()


@pytest.mark.parametrize("node", ROWS)
@pytest.mark.parametrize("kind", ["energy", "delay"])
def test_vdd_outside_the_fit_is_refused(node: str, kind: str) -> None:
    factor = energy_factor if kind == "energy" else delay_factor
    for vdd_v in np.array(vdd_range(node, kind)) + (-0.01, 0.01):  # type: ignore[arg-type]
        with pytest.raises(SpecError, match=f"vdd_v must lie in .*{kind} fit of node {node}"):
            factor(node, float(vdd_v), to_node="65", to_vdd_v=1.0)


def test_unknown_nodes_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match=re.escape("got '45'")):
        energy_factor("45", 0.9, to_node="65", to_vdd_v=1.0)
    with pytest.raises(SpecError, match=r"20 .. 180 nm, got 7"):
        area_factor(7, to_node=65)
    with pytest.raises(SpecError, match=r"HP or LP before it, got 'X65'"):
        area_factor("X65", to_node=65)


def test_only_high_performance_sram_takes_high_performance_logic() -> None:
    assert logic_node(65, "lop") == "65"
    assert [logic_node(28, flavour) for flavour in ("hp", "lop", "lstp")] == [
        "HP28",
        "LP28",
        "LP28",
    ]
