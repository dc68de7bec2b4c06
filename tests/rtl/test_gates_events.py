"""Who gets a transition where the toy library leaves no doubt: cells made for it."""

from __future__ import annotations

import pytest

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.events import SHARE, compile_events
from kvmmu.rtl.gates.liberty import Cell
from kvmmu.rtl.gates.liberty_read import parse_library
from kvmmu.rtl.gates.netlist import Netlist
from kvmmu.rtl.gates.netlist_read import parse_netlist
from kvmmu.rtl.gates.simulate import GateSimulation

_HEAD = """library (l) {
  capacitive_load_unit (1, pf); voltage_unit : "1V"; time_unit : "1ns";
  leakage_power_unit : "1nW"; nom_voltage : 1; nom_temperature : 25;
"""
RISE, FALL = 0, 1


def _inputs(names: str) -> str:
    return "".join(f"pin ({name}) {{ direction : input; }}\n" for name in names)


def _arc(related: str, when: str = "") -> str:
    condition = f'when : "{when}";' if when else ""
    return (
        f'internal_power () {{ related_pin : "{related}"; {condition}'
        " rise_power (scalar) { values (1); } }\n"
    )


def gate(function: str, names: str, *arcs: str) -> Cell:
    output = f'pin (Y) {{ direction : output; function : "{function}"; {"".join(arcs)} }}'
    lib = parse_library(f"{_HEAD} cell (c) {{ {_inputs(names)} {output} }} }}", "x.lib")
    return lib.cell("c")


def entries(cell: Cell, old: int, new: int) -> list[tuple[int, int]]:
    """Return (slot, share) of a change of rows; slot 2 * arc + edge."""
    return compile_events(cell).settle[old, new]


def test_when_is_looked_at_after_the_change_first() -> None:
    cell = gate("B", "AB", _arc("B", "A"), _arc("B", "!A"))  # A decides which arc B takes
    assert entries(cell, 0b00, 0b11) == [(2 * 0 + RISE, SHARE)]
    assert entries(cell, 0b11, 0b00) == [(2 * 1 + FALL, SHARE)]
    assert entries(cell, 0b01, 0b11) == [(2 * 0 + RISE, SHARE)]


def test_when_before_the_change_serves_where_none_holds_after() -> None:
    cell = gate("A*B", "AB", _arc("A", "B"), _arc("B", "A"))
    assert entries(cell, 0b11, 0b00) == [(2 * 0 + FALL, SHARE // 2), (2 * 1 + FALL, SHARE // 2)]


def test_arc_without_when_serves_what_is_left() -> None:
    cell = gate("B", "AB", _arc("B", "A"), _arc("B"))
    assert entries(cell, 0b00, 0b10) == [(2 * 1 + RISE, SHARE)]
    assert entries(cell, 0b01, 0b11) == [(2 * 0 + RISE, SHARE)]


def test_first_arc_serves_where_no_condition_ever_held() -> None:
    cell = gate("B", "AB", _arc("B", "A"))
    assert entries(cell, 0b00, 0b10) == [(2 * 0 + RISE, SHARE)]


def test_transition_without_arc_is_counted_as_unattributed() -> None:
    cell = gate("B", "AB", _arc("A"))
    events = compile_events(cell)
    assert events.settle[0b00, 0b10] == [(events.num_slots - 1, SHARE)]


def test_input_that_cannot_claim_gets_no_share() -> None:
    cell = gate("A + B", "AB", _arc("A", "!B"), _arc("B"))
    assert entries(cell, 0b00, 0b11) == [
        (2 * 0 + RISE, SHARE // 2),  # !B held before the change
        (2 * 1 + RISE, SHARE // 2),
    ]
    assert entries(cell, 0b00, 0b10) == [(2 * 1 + RISE, SHARE)]


@pytest.mark.parametrize("names", ["ABC", "ABCDEF"])
def test_shares_of_up_to_six_inputs_are_whole(names: str) -> None:
    cell = gate(" * ".join(names), names, *(_arc(name) for name in names))
    found = entries(cell, 0, (1 << len(names)) - 1)
    assert sum(share for _, share in found) == SHARE
    assert {share for _, share in found} == {SHARE // len(names)}


def _toggle_flip_flop() -> Netlist:
    text = f"""{_HEAD} cell (TFF) {{ {_inputs("T")}
      pin (C) {{ direction : input; clock : true; }}
      ff (IQ, IQN) {{ clocked_on : "C"; next_state : "T ^ IQ"; }}
      pin (Q) {{ direction : output; function : "IQ"; {_arc("C", "T")} {_arc("C")} }}
      pin (QN) {{ direction : output; function : "IQN"; {_arc("C")} }} }} }}"""
    connections = '{"T": [2], "C": [3], "Q": [4], "QN": [5]}'
    ports = (
        '{"t": {"direction": "input", "bits": [2]}, "c": {"direction": "input", "bits": [3]},'
        ' "q": {"direction": "output", "bits": [4]}, "n": {"direction": "output", "bits": [5]}}'
    )
    module = (
        f'{{"attributes": {{"top": "1"}}, "ports": {ports}, "netnames": {{}},'
        f' "cells": {{"f": {{"type": "TFF", "connections": {connections}}}}}}}'
    )
    return parse_netlist(f'{{"modules": {{"top": {module}}}}}', parse_library(text, "x.lib"))


def test_flip_flop_may_read_its_own_state() -> None:
    simulation = GateSimulation(_toggle_flip_flop())
    seen = [simulation.step({"t": t}) for t in (1, 1, 1, 0, 0, 1, 1)]
    assert [step["q"] for step in seen] == [0, 1, 0, 1, 1, 1, 0]
    assert all(step["n"] == 1 - step["q"] for step in seen)


@pytest.mark.parametrize(("net", "tied"), [('"0"', True), ('"1"', False), ("2", False)])
def test_active_high_clear_must_be_tied_low(net: str, *, tied: bool) -> None:
    text = f"""{_HEAD} cell (F) {{ {_inputs("DR")} pin (C) {{ direction : input; }}
      ff (I, J) {{ clocked_on : "C"; next_state : "D"; clear : "R"; }}
      pin (Q) {{ direction : output; function : "I"; }} }} }}"""
    module = (
        '{"attributes": {"top": "1"}, "ports": {"d": {"direction": "input", "bits": [2]},'
        ' "c": {"direction": "input", "bits": [3]}}, "cells": {"f": {"type": "F",'
        f' "connections": {{"D": [2], "C": [3], "R": [{net}], "Q": [4]}}}}}}}}'
    )
    made = parse_netlist(f'{{"modules": {{"top": {module}}}}}', parse_library(text, "x.lib"))
    if tied:
        assert GateSimulation(made).step({"d": 1}) == {}
        return
    with pytest.raises(SpecError, match="tied inactive"):
        GateSimulation(made)


def test_flip_flop_counts_each_edge_of_each_output() -> None:
    simulation = GateSimulation(_toggle_flip_flop())
    for t in (1, 1, 1, 0):  # q rises, falls, rises
        simulation.step({"t": t})
    activity = simulation.activity()
    slots = activity.tally[int(activity.slot_base[0]) :].tolist()
    # arcs: Q with T, Q without, QN
    assert slots[:6] == [2 * SHARE, SHARE, 0, 0, SHARE, 2 * SHARE]
