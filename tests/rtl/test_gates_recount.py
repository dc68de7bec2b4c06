"""The counter against a second, slow computation: every gate, every cycle, rule by rule."""

from __future__ import annotations

import random

import numpy as np
import pytest
from toy_gates import Sketch, bus, toy_library

from kvmmu.rtl.gates.energy import count_energy
from kvmmu.rtl.gates.liberty import Cell, PowerArc
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.simulate import GateSimulation
from kvmmu.rtl.gates.timing import Timing, analyse_timing

_PINS = {"INV": "A", "NAND2": "AB", "XOR2": "AB", "MUX2": "ABS", "AOI21": ("A1", "A2", "B")}


def random_netlist(draw: random.Random, size: int) -> Netlist:
    sketch = Sketch({"i": bus("i", 5)}, {"y": [f"n{k}" for k in range(size)]})
    for k in range(size):
        kind = draw.choice(list(_PINS))
        sources = [draw.choice(bus("i", 5) + [f"n{j}" for j in range(k)]) for _ in _PINS[kind]]
        sketch.cell(f"g{k}", kind, Y=f"n{k}", **dict(zip(_PINS[kind], sources)))
    return sketch.netlist()


def holds(arc: PowerArc, levels: dict[str, int]) -> bool:
    assert arc.when is not None
    columns = {name: np.array([bool(level)]) for name, level in levels.items()}
    return bool(arc.when.over(columns, 1)[0])


def claim(arcs: list[PowerArc], states: list[dict[str, int]]) -> PowerArc | None:
    for state in states:
        for arc in arcs:
            if arc.when is not None and holds(arc, state):
                return arc
    return next((arc for arc in arcs if arc.when is None), None)


def gate_energy(
    cell: Cell, nets: dict[str, int], before: np.ndarray, after: np.ndarray, timing: Timing
) -> float:
    """Energy of one gate in one cycle; nets: pin -> net, before and after: level of each net."""
    old = {pin: int(before[net]) for pin, net in nets.items()}
    new = {pin: int(after[net]) for pin, net in nets.items()}
    toggled = [pin for pin in cell.inputs if old[pin] != new[pin]]
    total = 0.0
    switches = old["Y"] != new["Y"]
    if switches:
        arcs = {pin: [a for a in cell.power if (a.pin, a.related) == ("Y", pin)] for pin in toggled}
        chosen = [arc for pin in toggled if (arc := claim(arcs[pin], [new, old])) is not None]
        chosen = chosen or [arcs[pin][0] for pin in toggled]
        for arc in chosen:
            sense = {t.sense for t in cell.timing if t.related == arc.related}.pop()
            rising = new["Y"]
            same, other = (0, 1) if rising else (1, 0)
            edges = {"positive_unate": [same], "negative_unate": [other], "non_unate": [0, 1]}
            slews = [timing.slew_ns[edge, nets[arc.related]] for edge in edges[sense]]
            table = arc.rise_pj if rising else arc.fall_pj
            point = {"slew": np.mean(slews), "load": timing.load_pf[nets["Y"]]}
            total += float(table.at(**point)) / len(chosen)
    for pin in toggled:
        own = [a for a in cell.power if a.pin == pin]
        conditional = [a for a in own if a.when is not None]
        arc = next((a for a in conditional if holds(a, new)), None)
        if arc is None and not (conditional and switches):
            arc = next((a for a in own if a.when is None), None)
        if arc is not None:
            table = arc.rise_pj if new[pin] else arc.fall_pj
            total += float(table.at(slew=timing.slew_ns[1 - new[pin], nets[pin]]))
    return total


@pytest.mark.parametrize("seed", range(4))
def test_counter_equals_a_slow_recount(seed: int) -> None:
    draw = random.Random(seed)
    netlist = random_netlist(draw, 25)
    simulation = GateSimulation(netlist)
    timing = analyse_timing(
        netlist, toy_library(), input_slew_ns=0.3, clock_slew_ns=0.1, output_load_pf=0.004
    )
    simulation.step({})
    simulation.clear_activity()
    internal = switching = leakage = 0.0
    for _ in range(40):
        before = simulation.compiled.nets["level"].copy()
        simulation.step({"i": draw.randrange(32)})
        after = simulation.compiled.nets["level"].copy()
        switching += 0.5 * float((timing.load_pf * (before != after)).sum())
        for node in range(netlist.num_nodes):
            cell = netlist.cell_of(node)
            nets = dict(zip(cell.inputs, netlist.inputs_of(node).tolist()))
            nets["Y"] = int(netlist.outputs_of(node)[0])
            internal += gate_energy(cell, nets, before, after, timing)
            new = {pin: int(after[net]) for pin, net in nets.items()}
            states = [s for s in cell.leakage_states if holds(s, new)]  # type: ignore[arg-type]
            leakage += states[0].leakage_nw if states else cell.leakage_nw
    parts = count_energy(netlist, toy_library(), simulation.activity(), timing, period_ns=2.0).parts
    assert internal > 0.1
    assert parts.internal_pj == pytest.approx(internal, rel=1e-9)  # sums in another order
    assert parts.switching_pj == pytest.approx(switching, rel=1e-9)
    assert parts.leakage_pj == pytest.approx(leakage * 2.0 * 1e-6, rel=1e-9)
