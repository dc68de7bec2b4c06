"""SRAM and arithmetic tables: known points, interpolation, ranges, Vdd, corners."""

from __future__ import annotations

import math

import pytest

from kvmmu.accel.spec.tables import load_arithmetic, load_sram, sram_nodes
from kvmmu.errors import SpecError

CORNERS = ("low", "nominal", "high")

# (KiB, bit, flavour) -> read pJ, write pJ, leak mW, ns, mm, mm: CACTI (HewlettPackard/cacti,
# commit 1ffd8df) at 300 K, rounded to two or three digits.
PRINTED = {
    (1, 32, "hp"): (1.6, 4.8, 0.72, 0.42, 0.267, 0.032),
    (1, 32, "lop"): (1.0, 2.6, 0.013, 0.88, 0.267, 0.032),
    (8, 64, "lop"): (4.2, 10.7, 0.09, 1.67, 0.56, 0.119),
    (32, 64, "hp"): (16.5, 38.0, 23.0, 1.21, 1.05, 0.23),
    (32, 64, "lop"): (11.2, 20.8, 0.41, 2.27, 1.05, 0.23),
    (32, 128, "hp"): (21.1, 73.0, 23.0, 1.21, 1.10, 0.23),
    (32, 128, "lop"): (14.1, 39.9, 0.41, 2.27, 1.10, 0.23),
    (128, 128, "lop"): (42.8, 62.1, 1.5, 2.92, 1.146, 0.886),
    (256, 128, "hp"): (70.7, 174.8, 183.0, 2.70, 2.14, 0.94),
}


@pytest.mark.parametrize(("kib", "port_bits", "flavour"), PRINTED)
def test_sram_at_65_nm_is_the_measured_table(kib: int, port_bits: int, flavour: str) -> None:
    _, _, read, write, leak, _, access, _, height, width = load_sram(65).row(
        flavour, kib, port_bits
    )
    printed = PRINTED[kib, port_bits, flavour]
    assert (read, write, leak, access, height, width) == pytest.approx(printed, rel=0.04)


@pytest.mark.parametrize("node_nm", sram_nodes())
def test_every_row_of_the_table_is_hit_exactly(node_nm: int) -> None:
    table = load_sram(node_nm)
    for flavour, rows in table.flavours.items():
        for row in rows.rows:
            assert table.row(flavour, row[0], row[1]) == row


def test_between_two_rows_a_bank_lies_on_the_line_of_the_logarithms() -> None:
    table = load_sram(65)
    between = table.row("lop", math.sqrt(16 * 32), 64)
    for idx in range(2, 10):
        ends = [table.row("lop", kib, 64)[idx] for kib in (16, 32)]
        assert between[idx] == pytest.approx(math.sqrt(ends[0] * ends[1]), rel=1e-12)


@pytest.mark.parametrize(("kib", "port_bits"), [(0.5, 64), (257, 64), (32, 16), (32, 257)])
def test_banks_outside_the_table_are_refused(kib: float, port_bits: int) -> None:
    with pytest.raises(SpecError, match=r"range of the SRAM table.*build the memory of banks"):
        load_sram(65).row("lop", kib, port_bits)


def test_unknown_flavours_and_nodes_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"one of hp, lop, lstp, got 'lp'"):
        load_sram(65).row("lp", 32, 64)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"one of 28, 65 .*got 40"):
        load_sram(40)


def test_energy_and_leakage_follow_the_square_of_vdd_and_time_never_shortens() -> None:
    table = load_sram(65)
    native = table.bank("lop", 32, 128, vdd_v=0.8, corner="nominal")
    raised = table.bank("lop", 32, 128, vdd_v=1.0, corner="nominal")
    assert native.read_pj == 14.1
    assert native.access_ns == raised.access_ns
    assert raised.read_pj == pytest.approx(native.read_pj * 1.5625)
    assert raised.leakage_mw == pytest.approx(native.leakage_mw * 1.5625)


def test_sram_below_its_native_vdd_slows_as_the_gates_do() -> None:
    table = load_sram(65)  # HP: native 1.1 V
    native = table.bank("hp", 32, 128, vdd_v=1.1, corner="nominal")
    lowered = table.bank("hp", 32, 128, vdd_v=1.0, corner="nominal")
    assert lowered.access_ns / native.access_ns == pytest.approx(1.73 / 1.52, abs=0.01)


def test_leakage_spans_the_flavours_and_the_high_corner_is_hot() -> None:
    table = load_sram(65)
    leaks = {
        f: table.bank(f, 32, 64, vdd_v=1.1, corner="nominal").leakage_mw for f in ("hp", "lop")
    }
    assert leaks["hp"] / leaks["lop"] > 10
    hp = table.row("hp", 32, 64)[4] / table.row("lstp", 32, 64)[4]
    assert hp > 3700  # of the same CACTI runs: HP to LSTP spans 3,700x and more
    hot = table.bank("hp", 32, 64, vdd_v=1.1, corner="high").leakage_mw
    row = table.row("hp", 32, 64)
    assert hot == pytest.approx(row[4] * 2.02 + row[5])  # gate leakage stays, the rest is hot


def test_bands_of_operations_and_areas_are_ordered_at_65_nm() -> None:
    table = load_arithmetic()
    for name in table.operations:
        pj = [table.energy_pj(name, to_node="65", to_vdd_v=1.0, corner=c) for c in CORNERS]
        assert pj == sorted(pj), name
    for name in table.areas:
        um2 = [table.area_um2(name, to_node="65", corner=c) for c in CORNERS]
        assert um2 == sorted(um2), name


def test_nominal_operations_at_65_nm_are_the_scaled_published_ones() -> None:
    table = load_arithmetic()
    # Horowitz, ISSCC 2014, at 45 nm, scaled to 65 nm and 1.0 V by Stillmaker and Baas 2017.
    for name, pj in {
        "int8_multiply": 0.38,
        "int8_add": 0.06,
        "int32_add": 0.19,
        "fp16_multiply": 2.1,
        "fp16_add": 0.76,
        "int32_multiply": 5.9,
    }.items():
        got = table.energy_pj(name, to_node="65", to_vdd_v=1.0, corner="nominal")
        assert got == pytest.approx(pj, abs=0.5 * 10 ** -(2 if pj < 1 else 1)), name
