"""Energy against products done by hand with the toy library's tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
from toy_gates import Sketch, bus, toy_library, toy_macros

from kvmmu.rtl.gates.energy import Energy, count_energy
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.gates.timing import analyse_timing

SLEW, CLOCK_SLEW, LOAD, PERIOD = 0.1, 0.2, 0.01, 10.0


def run(netlist: Netlist, inputs: list[dict[str, int]], *, settled: int = 0) -> Energy:
    """Count from the settled state that the first `settled` inputs leave."""
    simulation = GateSimulation(netlist, idle_rdata="hold")
    for step in inputs[:settled]:
        simulation.step(step)
    simulation.clear_activity()
    for step in inputs[settled:]:
        simulation.step(step)
    timing = analyse_timing(
        netlist,
        toy_library(),
        toy_macros(),
        input_slew_ns=SLEW,
        clock_slew_ns=CLOCK_SLEW,
        output_load_pf=LOAD,
    )
    activity = simulation.activity()
    return count_energy(netlist, toy_library(), activity, timing, period_ns=PERIOD)


def test_three_gates_equal_the_products_by_hand() -> None:
    """n = NAND2(a, b), w = XOR2(n, c), y = INV(w), from a = b = c = 0: n = 1, w = 1, y = 0.

    cycle  a b c | n w y | toggles
      0    0 0 0 | 1 1 0 |
      1    1 1 0 | 0 0 1 | a+ b+ n- w- y+     n- is shared by a and b, w- comes from n, y+ from w
      2    1 0 1 | 1 0 1 | b- c+ n+           n+ comes from b; n and c toggle, w stays
      3    1 0 0 | 1 1 0 | c- w+ y-           w+ comes from c, y- from w
    """
    netlist = (
        Sketch({"a": "a", "b": "b", "c": "c"}, {"y": "y"})
        .cell("u.nand", "NAND2", A="a", B="b", Y="n")
        .cell("u.xor", "XOR2", A="n", B="c", Y="w")
        .cell("inv", "INV", A="w", Y="y")
        .netlist()
    )
    steps = [(0, 0, 0), (1, 1, 0), (1, 0, 1), (1, 0, 0)]
    energy = run(netlist, [dict(zip("abc", step)) for step in steps])

    # loads: n sees one XOR2 pin, w one INV pin, y the output's load; inputs one pin of 0.003
    n_load, w_load, y_load = 0.003, 0.002, LOAD
    # slews of a rise and a fall of n: the largest of the arcs from a and b, both at slew 0.1
    n_rise, n_fall = 0.04 + 0.05 * SLEW + 2.0 * n_load, 0.03 + 0.05 * SLEW + 1.6 * n_load
    # w comes from n or c by either edge: the largest slew is that of n's rise
    assert n_rise > n_fall
    w_rise = 0.04 + 0.05 * max(n_rise, SLEW) + 2.0 * w_load
    w_fall = 0.03 + 0.05 * max(n_rise, SLEW) + 1.6 * w_load
    # tables: e(slew, load) = base + 0.002 * slew + 0.01 * load
    nand_a_fall = 0.002 + 0.002 * SLEW + 0.01 * n_load
    nand_b_fall = 0.003 + 0.002 * SLEW + 0.01 * n_load
    nand_b_rise = 0.004 + 0.002 * SLEW + 0.01 * n_load
    # XOR2 from A (n): base 0.008 where !B, 0.0085 where B; from B (c): 0.009 where !A, 0.0095
    # where A; falls 0.001 less; both edges of n or c may cause an edge of w, so slews are means
    xor_n_fall = 0.007 + 0.002 * (n_rise + n_fall) / 2 + 0.01 * w_load  # c = 0 after cycle 1
    xor_c_rise = 0.0095 + 0.002 * SLEW + 0.01 * w_load  # n = 1 after cycle 3
    inv_rise = 0.002 + 0.002 * w_fall + 0.01 * y_load  # y rises as w falls
    inv_fall = 0.001 + 0.002 * w_rise + 0.01 * y_load
    internal = (nand_a_fall + nand_b_fall) / 2 + xor_n_fall + inv_rise  # cycle 1
    internal += nand_b_rise  # cycle 2
    internal += xor_c_rise + inv_fall  # cycle 3
    assert energy.parts.internal_pj == pytest.approx(internal, rel=1e-12)

    # 1/2 C (1 V)^2 a toggle: a 1, b 2, c 2 of 0.003 pF; n 2, w 2, y 2
    inputs, gates = 0.5 * 0.003 * 5, 0.5 * (2 * n_load + 2 * w_load)
    outside = 0.5 * 2 * y_load
    assert energy.parts.switching_pj == pytest.approx(inputs + gates + outside, rel=1e-12)

    # leakage in nW over 10 ns is 1e-5 pJ a nW: NAND2 by state 0.5, 4, 1.5, 1.5; XOR2 4, INV 1
    leakage = (0.5 + 4.0 + 1.5 + 1.5 + 4 * 4.0 + 4 * 1.0) * PERIOD * 1e-6
    assert energy.parts.leakage_pj == pytest.approx(leakage, rel=1e-12)

    assert energy.parts.clock_pj == 0.0
    total = internal + inputs + gates + outside + leakage
    assert energy.parts.total_pj == pytest.approx(total, rel=1e-12)
    assert energy.pj_per_cycle == pytest.approx(total / 4, rel=1e-12)
    inverter = inv_rise + inv_fall + outside + 4 * PERIOD * 1e-6
    assert energy.by_unit["(top)"] == pytest.approx(inverter, rel=1e-12)
    assert energy.by_unit["(inputs)"] == pytest.approx(inputs, rel=1e-12)
    assert sum(energy.by_unit.values()) == pytest.approx(total, rel=1e-12)
    assert energy.unattributed == 0.0


def test_flip_flop_pays_for_clock_edges_in_its_state() -> None:
    """d = 1 1 0 0: q = 0 1 1 0; rows (d, q) = (1, 0) (1, 1) (0, 1) (0, 0)."""
    netlist = Sketch({"clk": "c", "d": "d"}, {"q": "q"})
    netlist = netlist.cell("f", "DFF", CLK="c", D="d", Q="q").netlist()
    energy = run(netlist, [{"d": d} for d in (1, 1, 0, 0)])
    slew = 0.001 * CLOCK_SLEW  # both edges of every arc: base + 0.001 * slew
    states = (0.0 + slew + 0.006 + slew) + (0.004 + 0.005 + 2 * slew)
    states += (0.0 + slew + 0.007 + slew) + (0.004 + 0.003 + 2 * slew)
    pins = 4 * 0.003  # C V^2 a cycle
    assert energy.parts.clock_pj == pytest.approx(states + pins, rel=1e-12)
    # q rises and falls once: 0.010 and 0.009 + 0.002 * clock slew + 0.01 * load
    outputs = 0.019 + 2 * (0.002 * CLOCK_SLEW + 0.01 * LOAD)
    # d rises and falls once while the clock is high: 0.001 + 0.001 * slew each
    data = 2 * (0.001 + 0.001 * SLEW)
    assert energy.parts.internal_pj == pytest.approx(outputs + data, rel=1e-12)
    assert energy.parts.leakage_pj == pytest.approx(4 * 6.0 * PERIOD * 1e-6, rel=1e-12)


def test_data_that_settles_late_is_charged_as_of_a_low_clock() -> None:
    netlist = Sketch({"clk": "c", "d": "d"}, {"q": "q"})
    netlist = netlist.cell("i", "INV", A="d", Y="n").cell("f", "DFF", CLK="c", D="n", Q="q")
    made = netlist.netlist()
    simulation = GateSimulation(made)
    for d in (0, 1):
        simulation.step({"d": d})
    timing = analyse_timing(made, toy_library(), input_slew_ns=SLEW, clock_slew_ns=CLOCK_SLEW)
    arrival = timing.arrival_ns[:, made.inputs_of(1)[0]].max()

    def internal(period: float) -> float:
        activity = simulation.activity()
        energy = count_energy(made, toy_library(), activity, timing, period_ns=period)
        return energy.parts.internal_pj

    # n falls once, from 1: 0.001 where the clock is high, 0.003 where it is low
    late, early = internal(arrival * 1.99), internal(arrival * 2.01)
    assert late - early == pytest.approx(0.002, rel=1e-9)


def test_multiplexer_pays_for_a_select_that_changes_nothing() -> None:
    """MUX2: S has its own arcs, for A*B, for !A*!B, and one without `when`."""
    netlist = Sketch({"a": "a", "b": "b", "s": "s"}, {"y": "y"})
    netlist = netlist.cell("m", "MUX2", A="a", B="b", S="s", Y="y").netlist()
    both = [{"a": 1, "b": 1, "s": 0}, {"s": 1}]
    own = 0.001 + 0.001 * SLEW
    assert run(netlist, both, settled=1).parts.internal_pj == pytest.approx(own, rel=1e-12)
    # where y toggles the energy is that of y's arc from S under A*!B alone: it falls
    turns = [{"a": 1, "b": 0, "s": 0}, {"s": 1}]
    fall = 0.006 + 0.002 * SLEW + 0.01 * LOAD
    assert run(netlist, turns, settled=1).parts.internal_pj == pytest.approx(fall, rel=1e-12)


def _bank(depth: int) -> Netlist:
    pins = {"en": "en", "we": "we", "addr": bus("a", (depth - 1).bit_length())}
    pins |= {"wdata": bus("d", 8), "wmask": bus("m", 2)}
    sketch = Sketch({"clk": "clk", **pins}, {"rdata": bus("r", 8)})
    kind = f"kvmmu_sram_{depth}x8m4"
    return sketch.cell("s.bank", kind, clk="clk", rdata=bus("r", 8), **pins).netlist()


def test_memory_pays_for_accesses_and_pins() -> None:
    steps = [{}, {"en": 1, "we": 1, "addr": 1, "wdata": 1, "wmask": 1}, {"we": 0}, {"en": 0}]
    parts = run(_bank(16), steps).parts
    assert parts.sram_write_pj == pytest.approx(2.0)
    assert parts.sram_read_pj == pytest.approx(1.0)
    assert parts.sram_idle_pj == pytest.approx(2 * 0.1)
    assert parts.sram_leakage_pj == pytest.approx(4 * 10.0 * PERIOD * 1e-6, rel=1e-12)
    # en rises and falls; we rises (REN falls) and falls (REN rises): 0.02 up, 0.01 down each
    pins = 0.03 + 2 * 0.03
    # addr[0] rises; enabled in half of the cycles: (0.03 + 0.04) / 2
    pins += 0.035
    # wdata[0] rises: 0.05; wmask[0] rises on four pins: 0.02 each
    pins += 0.05 + 4 * 0.02
    assert parts.sram_pins_pj == pytest.approx(pins, rel=1e-12)
    # nets: en 2 x 0.004, we 2 x 2 x 0.004, addr 0.005, data 0.005, mask 4 x 0.005, rdata[0] LOAD
    nets = 2 * 0.004 + 2 * 2 * 0.004 + 0.005 + 0.005 + 4 * 0.005 + 1 * LOAD
    assert parts.switching_pj == pytest.approx(0.5 * nets, rel=1e-12)
    assert parts.clock_pj == pytest.approx(4 * 0.006, rel=1e-12)


def test_read_enable_falls_as_write_enable_rises() -> None:
    parts = run(_bank(16), [{}, {"we": 1}]).parts
    assert parts.sram_pins_pj == pytest.approx(0.02 + 0.01, rel=1e-12)


def test_rows_of_macros_are_clocked_but_one_is_accessed() -> None:
    steps = [{"en": 1, "we": 0}] * 3
    parts = run(_bank(32), steps).parts
    assert parts.sram_read_pj == pytest.approx(3 * (1.0 + 0.1), rel=1e-12)
    assert parts.sram_idle_pj == 0.0


def test_period_scales_leakage_alone() -> None:
    netlist = Sketch({"a": "a"}, {"y": "y"}).cell("g", "INV", A="a", Y="y").netlist()
    simulation = GateSimulation(netlist)
    simulation.run(np.array([[1], [0], [1]], np.uint8))
    timing = analyse_timing(netlist, toy_library(), input_slew_ns=SLEW, clock_slew_ns=CLOCK_SLEW)
    activity = simulation.activity()
    one, ten = (
        count_energy(netlist, toy_library(), activity, timing, period_ns=period).parts
        for period in (1.0, 10.0)
    )
    assert ten.leakage_pj == pytest.approx(10 * one.leakage_pj, rel=1e-12)
    assert ten.total_pj - ten.leakage_pj == pytest.approx(one.total_pj - one.leakage_pj, rel=1e-12)
    with pytest.raises(ValueError, match="period_ns"):
        count_energy(netlist, toy_library(), activity, timing, period_ns=0.0)


def test_result_is_json_and_says_what_is_left_out() -> None:
    netlist = Sketch({"a": "a"}, {"y": "y"}).cell("g", "INV", A="a", Y="y").netlist()
    plain = json.loads(json.dumps(run(netlist, [{"a": 1}]).to_json()))
    assert plain["library"] == "kvmmu_toy"
    assert "wires" in plain["left_out"]
    assert plain["total_pj"] == pytest.approx(sum(plain["parts"].values()))
