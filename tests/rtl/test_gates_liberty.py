"""Reading liberty files: the toy library exactly, IHP's where it is there."""

from __future__ import annotations

import gzip
import lzma
import os
from pathlib import Path

import numpy as np
import pytest
from toy_gates import toy_library, toy_macros

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.liberty_read import parse_library, read_library
from kvmmu.rtl.gates.liberty_syntax import parse_groups
from kvmmu.rtl.gates.tables import Table, scalar_table

_HEAD = """library (l) {
  capacitive_load_unit (10, ff); voltage_unit : "1V"; time_unit : "100ps";
  leakage_power_unit : "1uW"; nom_voltage : 1.5; nom_temperature : 25;
  power_lut_template (p) { variable_1 : input_transition_time; index_1 ("1, 2"); }
"""


def library(cells: str):
    return parse_library(_HEAD + cells + "}", "x.lib")


def test_toy_units_and_cells() -> None:
    lib = toy_library()
    assert (lib.units.time_ns, lib.units.capacitance_pf, lib.units.leakage_nw) == (1.0, 1.0, 1.0)
    assert lib.voltage_v == 1.0
    assert lib.slew_fraction == pytest.approx(0.6)
    nand = lib.cell("NAND2")
    assert (nand.kind, nand.area_um2, nand.leakage_nw) == ("combinational", 3.0, 2.0)
    assert (nand.inputs, nand.outputs) == (("A", "B"), ("Y",))
    assert [state.leakage_nw for state in nand.leakage_states] == [0.5, 1.5, 2.0, 4.0]
    flip_flop = lib.cell("DFFR").flip_flop
    assert flip_flop is not None
    assert flip_flop.clear is not None
    assert (flip_flop.clocked_on.text, flip_flop.clear.text) == ("CLK", "!RN")
    assert all(not cell.unusable for cell in lib.cells.values())


def test_toy_arcs_hold_their_tables() -> None:
    inverter = toy_library().cell("INV")
    (timing,) = inverter.timing
    assert (timing.related, timing.sense, timing.kind) == ("A", "negative_unate", "combinational")
    assert timing.tables["cell_rise"].at(slew=0.1, load=0.1) == pytest.approx(0.14, rel=1e-12)
    (power,) = inverter.power
    assert (power.pin, power.related, power.when) == ("Y", "A", None)
    assert power.fall_pj.at(slew=0.5, load=0.0) == pytest.approx(0.002, rel=1e-12)


def test_toy_memory_has_buses_and_roles() -> None:
    small, large = toy_macros()
    assert (small.words, small.bits, large.words) == (16, 8, 64)
    assert small.cell.memory is not None
    assert small.cell.memory.write_buses == {"A_DIN": ("A_ADDR", "A_CLK")}
    assert [pin.bit for pin in small.cell.bus_pins("A_ADDR")] == [0, 1, 2, 3]


def test_every_number_is_converted_to_our_units() -> None:
    lib = library(
        """cell (c) { area : 2; cell_leakage_power : 3;
          pin (A) { direction : input; capacitance : 2; internal_power () {
            rise_power (p) { values ("4, 8"); } } }
          pin (Y) { direction : output; function : "A"; } }"""
    )
    cell = lib.cell("c")
    assert cell.leakage_nw == 3000.0
    assert cell.pins["A"].capacitance_pf == pytest.approx(0.02)
    (arc,) = cell.power
    assert arc.rise_pj.index == ((0.1, 0.2),)
    assert arc.rise_pj.at(slew=0.15) == pytest.approx(6 * 0.01)  # 10 fF * (1 V)^2 is 0.01 pJ
    assert arc.fall_pj.at() == 0.0


def test_loads_of_a_table_are_capacitances() -> None:
    template = "lu_table_template (d) { variable_1 : total_output_net_capacitance;"
    lib = library(
        template
        + """ index_1 ("1, 3"); } cell (c) { pin (A) { direction : input; }
          pin (Y) { direction : output; function : "A"; timing () { related_pin : "A";
            cell_rise (d) { values ("2, 6"); } } } }"""
    )
    (arc,) = lib.cell("c").timing
    table = arc.tables["cell_rise"]  # 10 fF a unit of load, 100 ps a unit of time
    assert table.index[0] == pytest.approx((0.01, 0.03))
    assert table.at(load=0.02) == pytest.approx(0.4)


def test_slew_fraction_is_the_thresholds_over_the_derating() -> None:
    assert library("").slew_fraction == pytest.approx(0.6)  # Liberty's defaults
    stated = """slew_lower_threshold_pct_rise : 30; slew_upper_threshold_pct_rise : 70;
      slew_derate_from_library : 0.5;"""
    assert library(stated).slew_fraction == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        ('pin (Y) { direction : output; function : "A"; three_state : "E"; }'
         " pin (A) { direction : input; } pin (E) { direction : input; }",
         "combinational", "three-state"),
        ('pin (Q) { direction : output; function : "I"; } pin (E) { direction : input; }'
         ' latch (I, J) { enable : "E"; data_in : "E"; }', "latch", "latches"),
        ('pin (Q) { direction : output; function : "I"; } pin (C) { direction : input; }'
         ' ff (I, J) { clocked_on : "!C"; next_state : "J"; }', "flip_flop", "rising"),
        ("clock_gating_integrated_cell : x; pin (Y) { direction : output; }",
         "clock_gate", "clock gating"),
        ("pin (A) { direction : input; }", "physical", "no output"),
        ("pin (Y) { direction : output; }", "other", "no function"),
        ('pin (Y) { direction : output; function : "A"; internal_power () { related_pin : "A";'
         ' equal_or_opposite_output : "Z"; } } pin (A) { direction : input; }',
         "combinational", "equal_or_opposite_output"),
    ],
)  # fmt: skip
def test_unknown_kinds_are_kept_but_refused(body: str, kind: str, reason: str) -> None:
    lib = library(f"cell (c) {{ {body} }}")
    assert lib.cells["c"].kind == kind
    with pytest.raises(SpecError, match=reason):
        lib.cell("c")


def test_lines_without_semicolon_and_continued_lines_are_read() -> None:
    group = parse_groups('library (l) {\n a : "x y"\n b : 2\n v ("1, 2",\\\n  "3");\n}', "t")
    assert group.values == {"a": "x y", "b": "2"}
    assert group.lists == [("v", ("1, 2", "3"))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("library (l) { a : 1 2; }", "line 1 must give one value to 'a'"),
        ("library (l) {\n a : 1;\n a : 2; }", "say 'a' once"),
        ("library (l) { ", "close every group"),
        ("library (l) { a }", "go on with : or"),
        ("cell (c) { }", "one library group"),
    ],
)
def test_broken_text_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_groups(text, "t")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("pin (Y) { direction : output; function : \"A\"; }", None),
        ("pin (Y) { direction : sideways; }", "direction"),
        ("bus (Y) { direction : output; }", "type"),
        ("pin (Y) { direction : output; internal_power () { rise_power (q) { values (1); } } }",
         "template"),
        ("pin (Y) { direction : output; internal_power () { rise_power (p) { values (1); } } }",
         "values"),
    ],
)  # fmt: skip
def test_broken_cell_is_refused_by_name(cell: str, message: str | None) -> None:
    if message is None:
        assert "c" in library(f"cell (c) {{ {cell} }}").cells
        return
    with pytest.raises(SpecError, match=f"cell c.*{message}"):
        library(f"cell (c) {{ {cell} }}")


def test_missing_unit_is_refused() -> None:
    with pytest.raises(SpecError, match="voltage_unit"):
        parse_library(_HEAD.replace('voltage_unit : "1V";', "") + "}", "x.lib")


def test_packed_files_read_like_plain_ones(tmp_path: Path) -> None:
    text = _HEAD + "}"
    (tmp_path / "a.lib").write_text(text)
    (tmp_path / "a.lib.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.lib.xz").write_bytes(lzma.compress(text.encode()))
    digests = {read_library(path).digest for path in tmp_path.iterdir()}
    assert len(digests) == 1


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="readable"):
        read_library(tmp_path / "none.lib")


def test_table_is_linear_inside_and_outside() -> None:
    values = np.array([[1.0, 3.0], [5.0, 7.0]])
    table = Table(axes=("slew", "load"), index=((0.0, 2.0), (0.0, 1.0)), values=values)
    slews, loads = np.array([0.0, 1.0, 4.0, -1.0]), np.array([0.0, 0.5, 2.0, 0.0])
    expected = 1.0 + 2.0 * slews + 2.0 * loads
    np.testing.assert_allclose(table.at(slew=slews, load=loads), expected, rtol=1e-12)
    bent = Table(axes=("slew",), index=((0.0, 1.0, 3.0),), values=np.array([0.0, 2.0, 3.0]))
    points = np.array([-1.0, 0.5, 1.0, 2.0, 3.0, 5.0])  # the last two pieces carry on outside
    assert bent.at(slew=points).tolist() == [-2.0, 1.0, 2.0, 2.5, 3.0, 4.0]
    assert scalar_table(2.5).at(slew=slews).tolist() == [2.5] * 4
    with pytest.raises(SpecError, match="'load'"):
        table.at(slew=0.1)


def _ihp_files() -> list[Path]:
    folder = os.environ.get("KVMMU_LIBERTY")
    root = Path(folder) if folder else Path(__file__).resolve().parents[3] / "shared/data/liberty"
    return sorted(root.glob("*.lib*"))


@pytest.mark.skipif(not _ihp_files(), reason="no liberty files; name their folder KVMMU_LIBERTY")
def test_ihp_files_are_read_whole() -> None:
    for path in _ihp_files():
        lib = read_library(path)
        assert lib.voltage_v == 1.2
        if path.name.startswith("sg13g2_stdcell_typ"):
            assert len(lib.cells) == 84
            assert sum(not cell.unusable for cell in lib.cells.values()) == 64
            assert lib.cell("sg13g2_dfrbpq_1").leakage_nw == pytest.approx(0.510516)
        if path.name.startswith("RM_IHPSG13_1P_1024x16"):
            (cell,) = lib.cells.values()
            assert cell.area_um2 == 79673.728
            assert lib.slew_fraction == pytest.approx(0.8)
            assert cell.pins["A_ADDR[3]"].capacitance_pf == 0.00766726
