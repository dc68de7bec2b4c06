"""What kind of cell a group is, and why a netlist may not use it."""

from __future__ import annotations

from collections.abc import Mapping

from kvmmu.rtl.gates.boolean import parse_expression
from kvmmu.rtl.gates.liberty import CellKind, ClockGate, Pin
from kvmmu.rtl.gates.liberty_syntax import Group

__all__ = ["MAX_INPUTS", "classify", "clock_gate_pins"]

MAX_INPUTS = 6
"""Inputs of a cell, clock apart, that the event tables reach: 4 ** 6 pairs of states."""

_POWER_KEYS = frozenset({"related_pin", "when"})


def classify(group: Group, pins: Mapping[str, Pin]) -> tuple[CellKind, str]:
    """Return (kind, why it is unusable or "")."""
    if any(True for _ in group.children("memory")):
        return "memory", ""
    if "clock_gating_integrated_cell" in group.values:
        return "clock_gate", _clock_gate_fault(group, pins)
    if any(group.children("statetable")):
        return "other", "state tables are not simulated"
    if any(group.children("latch", "latch_bank")):
        return "latch", "latches are not simulated; the netlist must have one clock edge"
    if any(group.children("ff", "ff_bank")):
        return "flip_flop", _flip_flop_fault(group, pins) or _common_fault(group, pins)
    outputs = [pin for pin in pins.values() if pin.direction == "output"]
    if not outputs and not any(pin.direction == "inout" for pin in pins.values()):
        return "physical", "it has no output"
    bare = [pin.name for pin in outputs if pin.function is None]
    if bare:
        return "other", f"output {bare[0]} has no function"
    return "combinational", _common_fault(group, pins)


def _common_fault(group: Group, pins: Mapping[str, Pin]) -> str:
    for pin in pins.values():
        if pin.direction == "inout" or pin.is_three_state:
            return f"pin {pin.name} is three-state or inout"
        if pin.bus:
            return f"pin {pin.name} is a bus"
    if any(group.children("bundle")):
        return "bundles are not read"
    inputs = [pin for pin in pins.values() if pin.direction == "input" and not pin.is_clock]
    if len(inputs) > MAX_INPUTS:
        return f"it has {len(inputs)} inputs, more than {MAX_INPUTS}"
    for owner in group.children("pin"):
        for power in owner.children("internal_power"):
            odd = sorted(set(power.values) - _POWER_KEYS)
            if odd:
                return f"internal_power of {owner.name} has {odd[0]}, which is not read"
    for leakage in group.children("leakage_power"):
        odd = sorted(set(leakage.values) - {"when", "value"})
        if odd:
            return f"leakage_power has {odd[0]}, which is not read"
    return ""


def clock_gate_pins(group: Group) -> ClockGate | None:
    """Return the pins of a clock gating cell by their role, None unless each has one."""
    roles = ("clock_gate_clock_pin", "clock_gate_enable_pin", "clock_gate_out_pin")
    found = [
        [pin.name for pin in group.children("pin") if pin.values.get(role) == "true"]
        for role in roles
    ]
    if any(len(names) != 1 for names in found):
        return None
    clock, enable, output = (names[0] for names in found)
    return ClockGate(clock, enable, output)


def _clock_gate_fault(group: Group, pins: Mapping[str, Pin]) -> str:
    kind = group.values["clock_gating_integrated_cell"]
    if kind != "latch_posedge":
        return f"clock gating of kind {kind} is not simulated, only latch_posedge"
    if clock_gate_pins(group) is None:
        return "it must have one clock, one enable and one output pin of a clock gate"
    inputs = [pin.name for pin in pins.values() if pin.direction == "input"]
    return "" if len(inputs) == 2 else f"it must have two inputs, got {inputs}"


def _flip_flop_fault(group: Group, pins: Mapping[str, Pin]) -> str:
    groups = list(group.children("ff", "ff_bank"))
    if len(groups) != 1 or groups[0].kind == "ff_bank" or len(groups[0].arguments) != 2:
        return "it must have one ff group of two names"
    clock = groups[0].values.get("clocked_on", "")
    if clock not in pins:
        return f"clocked_on must be one rising pin, got {clock!r}"
    if "clocked_on_also" in groups[0].values:
        return "clocked_on_also is not simulated"
    for pin in pins.values():
        if pin.direction != "output":
            continue
        names = set() if pin.function is None else set(parse_expression(pin.function.text).names)
        if not names or not names <= set(groups[0].arguments):
            return f"output {pin.name} must be a function of {groups[0].arguments}"
    return ""
