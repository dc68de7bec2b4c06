"""Static timing against sums done by hand with the toy library's linear tables."""

from __future__ import annotations

from importlib.resources import files

import pytest
from toy_gates import Sketch, bus, toy_library, toy_macros

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.liberty_read import parse_library
from kvmmu.rtl.gates.macros import compose, macros_of
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.timing import Timing, analyse_timing


def analyse(netlist: Netlist, load_pf: float = 0.0) -> Timing:
    return analyse_timing(
        netlist,
        toy_library(),
        toy_macros(),
        input_slew_ns=0.1,
        clock_slew_ns=0.2,
        output_load_pf=load_pf,
    )


def test_chain_of_inverters_equals_the_sum_by_hand() -> None:
    """INV: rise 0.03 + 0.1 slew + 1.0 load, fall 0.02 + 0.1 slew + 0.8 load; its slew after a
    rise 0.04 + 0.05 slew + 2.0 load, after a fall 0.03 + 0.05 slew + 1.6 load.
    """
    netlist = (
        Sketch({"a": "a"}, {"y": "y"})
        .cell("g", "INV", A="a", Y="m")
        .cell("h", "INV", A="m", Y="y")
        .netlist()
    )
    timing = analyse(netlist, load_pf=0.05)
    # a falls, m rises on one inverter's 0.002 pF, y falls on 0.05 pF
    m_rise = 0.03 + 0.1 * 0.1 + 1.0 * 0.002
    m_slew = 0.04 + 0.05 * 0.1 + 2.0 * 0.002
    y_fall = m_rise + 0.02 + 0.1 * m_slew + 0.8 * 0.05
    # a rises, m falls, y rises
    m_fall = 0.02 + 0.1 * 0.1 + 0.8 * 0.002
    m_slew_fall = 0.03 + 0.05 * 0.1 + 1.6 * 0.002
    y_rise = m_fall + 0.03 + 0.1 * m_slew_fall + 1.0 * 0.05
    y = int(netlist.outputs["y"][0])
    assert timing.arrival_ns[:, y].tolist() == pytest.approx([y_rise, y_fall], rel=1e-12)
    assert timing.minimum_period_ns == pytest.approx(max(y_rise, y_fall), rel=1e-12)
    steps = [(p.instance, p.cell, p.pin, p.edge) for p in timing.path]
    assert steps == [
        ("", "input", "", "rise"),
        ("g", "INV", "Y", "fall"),
        ("h", "INV", "Y", "rise"),
        ("y[0]", "output", "", "rise"),
    ]


def test_register_to_register_adds_clock_to_q_and_setup() -> None:
    netlist = (
        Sketch({"clk": "c", "d": "d"}, {"q": "q"})
        .cell("f", "DFF", CLK="c", D="d", Q="m")
        .cell("i", "INV", A="m", Y="n")
        .cell("e", "DFF", CLK="c", D="n", Q="q")
        .netlist()
    )
    timing = analyse(netlist)
    # DFF: fall 0.14 + 0.1 slew + 0.8 load, slew after a fall 0.03 + 0.05 slew + 1.6 load
    fall = 0.14 + 0.1 * 0.2 + 0.8 * 0.002
    fall_slew = 0.03 + 0.05 * 0.2 + 1.6 * 0.002
    rise = 0.15 + 0.1 * 0.2 + 1.0 * 0.002
    rise_slew = 0.04 + 0.05 * 0.2 + 2.0 * 0.002
    n_rise = fall + 0.03 + 0.1 * fall_slew + 1.0 * 0.002
    n_fall = rise + 0.02 + 0.1 * rise_slew + 0.8 * 0.002
    # setup of D: 0.1 + 0.1 * slew for a rise, 0.11 + 0.1 * slew for a fall
    by_rise = n_rise + 0.1 + 0.1 * (0.04 + 0.05 * fall_slew + 2.0 * 0.002)
    by_fall = n_fall + 0.11 + 0.1 * (0.03 + 0.05 * rise_slew + 1.6 * 0.002)
    assert timing.endpoints[0].instance == "e"
    assert timing.minimum_period_ns == pytest.approx(max(by_rise, by_fall), rel=1e-12)
    assert timing.slack_ns(1.0) == pytest.approx(1.0 - max(by_rise, by_fall), rel=1e-12)
    assert timing.path[-1].arrival_ns == timing.minimum_period_ns
    assert timing.clock_load_pf == pytest.approx(2 * 0.003)


def test_slews_merge_to_the_largest() -> None:
    """A reaches the NAND2 through an inverter whose output is loaded, B comes at slew 0.1."""
    sketch = Sketch({"a": "a", "b": "b"}, {"y": "y", "m": "m"}).cell("i", "INV", A="a", Y="m")
    netlist = sketch.cell("g", "NAND2", A="m", B="b", Y="y").netlist()
    timing = analyse(netlist, load_pf=0.2)
    m_rise = 0.04 + 0.05 * 0.1 + 2.0 * (0.2 + 0.003)
    y_fall = 0.03 + 0.05 * m_rise + 1.6 * 0.2
    assert timing.slew_ns[1, netlist.outputs["y"][0]] == pytest.approx(y_fall, rel=1e-12)


def test_constant_starts_no_path() -> None:
    timing = analyse(Sketch({}, {"y": "y"}).cell("g", "INV", A="0", Y="y").netlist())
    assert timing.endpoints == ()
    assert timing.minimum_period_ns == 0.0


def _bank(depth: int, width: int) -> Netlist:
    pins = {"en": "en", "we": "we", "addr": bus("a", (depth - 1).bit_length())}
    pins |= {"wdata": bus("d", width), "wmask": "m"}
    sketch = Sketch({"clk": "clk", **pins}, {"rdata": bus("r", width)})
    kind = f"kvmmu_sram_{depth}x{width}m{width}"
    return sketch.cell("bank", kind, clk="clk", rdata=bus("r", width), **pins).netlist()


def test_memory_launches_and_ends_paths_by_its_macros_tables() -> None:
    timing = analyse(_bank(16, 8), load_pf=0.1)
    # toy_sram_16x8: rise 0.8 + 0.1 slew + 1.0 load; address setup 0.3 + 0.1 slew
    assert timing.endpoints[0].period_ns == pytest.approx(0.8 + 0.1 * 0.2 + 0.1, rel=1e-12)
    assert timing.path[0].pin.startswith("DOUT[")
    (address,) = {e.period_ns for e in timing.endpoints if e.pin.startswith("ADDR")}
    assert address == pytest.approx(0.3 + 0.1 * 0.1, rel=1e-12)


def test_slews_are_scaled_between_libraries() -> None:
    """The macro's slews are of twice the swing: a slew of 0.2 ns is 0.4 ns in its tables."""
    text = files("kvmmu.rtl.gates").joinpath("toy_sram.lib").read_text()
    other = text.replace("slew_derate_from_library : 1", "slew_derate_from_library : 0.5")
    netlist = _bank(16, 8)
    timing = analyse_timing(
        netlist,
        toy_library(),
        macros_of(parse_library(other, "other.lib")),
        input_slew_ns=0.1,
        clock_slew_ns=0.2,
        output_load_pf=0.1,
    )
    out = netlist.outputs["rdata"][0]
    assert timing.arrival_ns[0, out] == pytest.approx(0.8 + 0.1 * 0.4 + 0.1, rel=1e-12)
    assert timing.slew_ns[0, out] == pytest.approx((0.04 + 0.05 * 0.4 + 2 * 0.1) / 2, rel=1e-12)
    (address,) = {e.period_ns for e in timing.endpoints if e.pin.startswith("ADDR")}
    assert address == pytest.approx(0.3 + 0.1 * 0.2, rel=1e-12)


def test_composition_loads_every_macro() -> None:
    netlist = _bank(32, 12)  # two columns, two rows of 16 x 8: 400 um2 against 600
    timing = analyse(netlist)
    (made,) = timing.compositions
    assert (made.columns, made.rows, made.area_um2) == (2, 2, 400.0)
    assert timing.clock_load_pf == pytest.approx(4 * 0.006)
    load = {name: timing.load_pf[nets[0]] for name, nets in netlist.inputs.items()}
    assert load["addr"] == pytest.approx(4 * 0.005)
    assert load["wdata"] == pytest.approx(2 * 0.005)
    assert load["wmask"] == pytest.approx(12 * 2 * 0.005)
    assert load["en"] == pytest.approx(2 * 0.004)
    assert load["we"] == pytest.approx(2 * 4 * 0.004)
    assert timing.load_pf[netlist.inputs["addr"][4]] == 0.0  # selects the row


def test_composition_takes_the_least_area() -> None:
    macros = toy_macros()
    assert compose(64, 8, macros).macro.cell.name == "toy_sram_64x8"
    assert compose(17, 8, macros).macro.cell.name == "toy_sram_16x8"
    made = compose(33, 9, macros)  # 2 x 3 of 100 um2 or 2 x 1 of 300 um2: fewer macros win
    assert (made.macro.cell.name, made.columns, made.rows) == ("toy_sram_64x8", 2, 1)
    made = compose(64, 16, macros)  # two columns of one row
    assert (made.read_pj, made.write_pj, made.leakage_nw) == (4.0, 8.0, 60.0)
    assert made.idle_pj == pytest.approx(0.2)
    rows = compose(32, 8, macros)  # the row that is not selected is clocked
    assert rows.read_pj == pytest.approx(1.0 + 0.1)
    assert rows.clock_to_q_ns == pytest.approx(0.8 + 0.01 + 0.01)
    assert rows.setup_ns == pytest.approx(0.31)


def test_macros_are_needed_where_there_are_memories() -> None:
    with pytest.raises(SpecError, match="macros must be given"):
        analyse_timing(_bank(16, 8), toy_library(), input_slew_ns=0.1, clock_slew_ns=0.1)
    with pytest.raises(SpecError, match="got none"):
        compose(4, 4, ())
