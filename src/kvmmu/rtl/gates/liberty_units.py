"""Units, thresholds and plain numbers of a library."""

from __future__ import annotations

import re

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.liberty import Units
from kvmmu.rtl.gates.liberty_syntax import Group

__all__ = ["read_number", "read_slew_fraction", "read_units"]

_SCALES = {"": 1.0, "k": 1e3, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15}


def read_number(group: Group, name: str, where: str, default: float | None) -> float:
    text = group.values.get(name)
    if text is None:
        if default is None:
            raise SpecError(f"{where} must state {name}")
        return default
    try:
        return float(text)
    except ValueError:
        raise SpecError(f"{where}: {name} must be a number, got {text!r}") from None


def _unit(group: Group, name: str, source: str, base: str) -> float:
    """Read a unit such as "1ns" as a multiple of `base` (s, V, W)."""
    text = group.values.get(name, "")
    match = re.fullmatch(rf"([0-9.]+)\s*([kmunpf]?){base}", text, re.IGNORECASE)
    if match is None:
        raise SpecError(f"{source}: {name} must be like '1n{base}', got {text!r}")
    return float(match.group(1)) * _SCALES[match.group(2).lower()]


def read_units(group: Group, source: str) -> Units:
    load = group.list_of("capacitive_load_unit")
    if load is None or len(load) != 2 or load[1].lower() not in ("pf", "ff"):
        raise SpecError(f"{source}: capacitive_load_unit must be (number, pf or ff), got {load}")
    return Units(
        time_ns=_unit(group, "time_unit", source, "s") * 1e9,
        capacitance_pf=float(load[0]) * (1.0 if load[1].lower() == "pf" else 1e-3),
        voltage_v=_unit(group, "voltage_unit", source, "V"),
        leakage_nw=_unit(group, "leakage_power_unit", source, "W") * 1e9,
    )


def read_slew_fraction(group: Group, source: str) -> float:
    """Take the rising thresholds; 20 %, 80 % and 1 are Liberty's own defaults."""
    lower = read_number(group, "slew_lower_threshold_pct_rise", source, 20.0)
    upper = read_number(group, "slew_upper_threshold_pct_rise", source, 80.0)
    derate = read_number(group, "slew_derate_from_library", source, 1.0)
    if not 0.0 <= lower < upper <= 100.0 or derate <= 0.0:
        raise SpecError(f"{source}: slew thresholds must ascend, got {lower}, {upper}, {derate}")
    return (upper - lower) / 100.0 / derate
