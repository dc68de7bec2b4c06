"""Clock gates: what is behind one keeps its state and rests, and what the gate itself costs."""

from __future__ import annotations

import numpy as np
import pytest
from toy_gates import Sketch, toy_library

from kvmmu.errors import SpecError
from kvmmu.rtl.clock_gates import split_clock_gates
from kvmmu.rtl.fanout import fastest_load, slew_allowed
from kvmmu.rtl.gates.energy import Energy, count_energy
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.gates.timing import Timing, analyse_timing
from kvmmu.rtl.synth import Recipe, choose_cells

SLEW, CLOCK_SLEW, PERIOD = 0.1, 0.2, 10.0


def gated_flip_flop() -> Netlist:
    """Return q, which takes d in cycles with e."""
    sketch = Sketch({"clk": "c", "d": "d", "e": "e"}, {"q": "q"})
    sketch = sketch.cell("u.f", "DFF", CLK="g", D="d", Q="q")  # before its gate, as in a file
    return sketch.cell("u.gate", "CLKGATE", CLK="c", EN="e", GCLK="g").netlist()


def timed(netlist: Netlist) -> Timing:
    return analyse_timing(netlist, toy_library(), input_slew_ns=SLEW, clock_slew_ns=CLOCK_SLEW)


def counted(steps: list[tuple[int, int]]) -> Energy:
    """Run steps (d, e) and price them."""
    netlist = gated_flip_flop()
    simulation = GateSimulation(netlist)
    for d, e in steps:
        simulation.step({"d": d, "e": e})
    activity = simulation.activity()
    return count_energy(netlist, toy_library(), activity, timed(netlist), period_ns=PERIOD)


@pytest.mark.parametrize("seed", range(3))
def test_a_gated_flip_flop_takes_its_input_in_enabled_cycles_alone(seed: int) -> None:
    simulation = GateSimulation(gated_flip_flop())
    state = 0
    for d, e in np.random.default_rng(seed).integers(0, 2, (200, 2)).tolist():
        assert simulation.step({"d": d, "e": e})["q"] == state
        state = d if e else state


def test_clock_energy_equals_the_products_by_hand() -> None:
    """d = 1 1 1 0, e = 1 1 0 0: q = 0 1 1 1; two cycles open, two shut."""
    energy = counted([(1, 1), (1, 1), (1, 0), (0, 0)])
    slew = 0.001 * CLOCK_SLEW
    flip_flop = (0.0 + 0.006 + 2 * slew) + (0.004 + 0.005 + 2 * slew)  # D*!Q, then D*Q
    pins = 4 * 0.002 + 2 * 0.003  # C V^2: the gate's pin each cycle, the flip-flop's while open
    opened = 2 * (0.004 + 0.003 + 2 * (0.002 * CLOCK_SLEW + 0.01 * 0.003))
    shut = 2 * (0.002 + 0.001 + 2 * slew)
    enable = (0.001 + 0.002) + 2 * 0.001 * SLEW  # e rises once and falls once
    total = flip_flop + pins + opened + shut + enable
    assert energy.parts.clock_pj == pytest.approx(total, rel=1e-12)
    assert energy.parts.leakage_pj == pytest.approx(4 * (6.0 + 5.0) * PERIOD * 1e-6, rel=1e-12)
    assert set(energy.by_unit) == {"u", "(clock)", "(inputs)"}


@pytest.mark.parametrize(
    ("enables", "rise_pj", "fall_pj"),
    [((0, 0, 0), 0.004, 0.003), ((1, 1, 1), 0.001, 0.001), ((1, 0, 0), 0.001, 0.003)],
)
def test_data_behind_a_shut_gate_is_charged_as_of_a_low_clock(
    enables: tuple[int, int, int], rise_pj: float, fall_pj: float
) -> None:
    """d rises in the second cycle and falls in the third; the enable before says who is open."""
    energy = counted(list(zip((0, 1, 0), enables)))
    outputs = 0.0
    if enables[1]:  # q rises
        outputs = 0.010 + 0.002 * CLOCK_SLEW
    data = rise_pj + fall_pj + 2 * 0.001 * SLEW
    assert energy.parts.internal_pj == pytest.approx(outputs + data, rel=1e-12)


def test_a_clock_that_never_opens_costs_the_gate_alone() -> None:
    energy = counted([(0, 0)] * 10)
    shut = 10 * (0.002 + 0.001 + 2 * 0.001 * CLOCK_SLEW) + 10 * 0.002
    assert energy.parts.clock_pj == pytest.approx(shut, rel=1e-12)


def test_the_enable_must_be_there_before_the_clock() -> None:
    (end,) = [end for end in timed(gated_flip_flop()).endpoints if end.instance == "u.gate"]
    assert end.pin == "EN"
    # constraint tables: 0.11 (rise) or 0.12 (fall) and 0.1 of both slews beyond 0.1
    assert end.setup_ns == pytest.approx(0.12 + 0.1 * (CLOCK_SLEW - 0.1), abs=0.011)


def test_area_counts_the_gates() -> None:
    assert gated_flip_flop().area_um2 == 12 + 8


def test_a_gate_that_is_not_connected_is_refused() -> None:
    sketch = Sketch({"clk": "c", "d": "d"}, {"q": "q"}).cell("f", "DFF", CLK="g", D="d", Q="q")
    with pytest.raises(SpecError, match="must connect"):
        sketch.cell("gate", "CLKGATE", CLK="c", GCLK="g").netlist()


def test_synthesis_gates_the_clock_unless_told_not_to() -> None:
    choice = choose_cells(toy_library())
    line = "clockgate -pos CLKGATE EN:CLK:GCLK"
    assert line in Recipe(choice, clock_mhz=100.0).script()
    assert line not in Recipe(choice, clock_mhz=100.0, gates_clock=False).script()


def test_a_gate_of_many_registers_is_copied_until_it_is_fast_enough() -> None:
    """GCLK: 0.015 + 0.1 * slew + 2 * load ns at most; a BUF of 20 like it allows so much load."""
    library = toy_library()
    cells = {
        f"f{n}": {"type": "DFF", "connections": {"CLK": [2], "D": [9], "Q": [100 + n]}}
        for n in range(200)
    }
    gate = {"type": "CLKGATE", "connections": {"CLK": [3], "EN": [4], "GCLK": [2]}}
    nets = {str(bit): {"bits": [bit]} for bit in (2, 3, 4, 9, 299)}
    module = {"cells": {**cells, "gate": gate}, "netnames": nets}
    added = split_clock_gates(module, library)
    gates = {n: c["connections"] for n, c in module["cells"].items() if c["type"] == "CLKGATE"}
    assert len(gates) == added + 1 > 2
    assert {pins["EN"][0] for pins in gates.values()} == {4}
    clocks = [c["connections"]["CLK"][0] for c in module["cells"].values() if c["type"] == "DFF"]
    loads = {pins["GCLK"][0]: 0.003 * clocks.count(pins["GCLK"][0]) for pins in gates.values()}
    assert sum(loads.values()) == pytest.approx(200 * 0.003)  # each register has one of the gates
    most = fastest_load(library.cell("CLKGATE"), "GCLK", slew_allowed(library))
    assert 0 < max(loads.values()) <= most
    assert split_clock_gates(module, library) == 0
