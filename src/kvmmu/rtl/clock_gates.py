"""Clock gates that drive no more than they can: one for each few of the registers they clock.

Yosys puts one clock gate before all flip-flops of an enable, hundreds of them. Here each gate is
copied until its output is as fast as fanout.py asks of any net, its enable shared by the copies.
What still lies between the clock's root and the gates is a clock tree, which is left out.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from kvmmu.rtl.fanout import fastest_load, slew_allowed
from kvmmu.rtl.gates.liberty import Cell, Library

__all__ = ["split_clock_gates"]


def split_clock_gates(module: dict[str, Any], library: Library) -> int:
    """Copy the clock gates of a flat module of Yosys's JSON in place; return how many were added.

    Raises SpecError if a gate's output has no transition table.
    """
    readers = _clocked(module, library)
    next_bit = 1 + max(bit for net in module["netnames"].values() for bit in _whole(net["bits"]))
    added = 0
    for name, entry in sorted(module["cells"].items()):
        cell = library.cells.get(entry["type"])
        if cell is None or cell.clock_gate is None:
            continue
        pins = cell.clock_gate
        (output,) = entry["connections"][pins.output]
        most_pf = fastest_load(cell, pins.output, slew_allowed(library))
        for number, group in enumerate(_groups(readers[output], most_pf)[1:]):
            copy = f"{name}_{number}"
            connections = {pin: list(bits) for pin, bits in entry["connections"].items()}
            connections[pins.output] = [next_bit]
            module["cells"][copy] = {**entry, "connections": connections}
            net = {"hide_name": 1, "bits": [next_bit], "attributes": {}}
            module["netnames"][f"{copy}_clock"] = net
            for flip_flop, pin, _ in group:
                module["cells"][flip_flop]["connections"][pin] = [next_bit]
            next_bit += 1
            added += 1
    return added


_Reader = tuple[str, str, float]
"""A flip-flop, its clock pin, and the pin's load in pF."""


def _clocked(module: dict[str, Any], library: Library) -> dict[int, list[_Reader]]:
    """Map each clock net to the flip-flops that it clocks."""
    readers: dict[int, list[_Reader]] = defaultdict(list)
    for name, entry in sorted(module["cells"].items()):
        cell: Cell | None = library.cells.get(entry["type"])
        if cell is not None and cell.flip_flop is not None:
            pin = cell.flip_flop.clocked_on.text
            (bit,) = entry["connections"][pin]
            readers[bit].append((name, pin, cell.pins[pin].capacitance_pf))
    return readers


def _groups(readers: list[_Reader], most_pf: float) -> list[list[_Reader]]:
    """Share readers evenly over as few groups as keep each within a load."""
    total = sum(load for _, _, load in readers)
    count = max(1, -int(-total // most_pf))
    size = -(-len(readers) // count)
    return [readers[i : i + size] for i in range(0, len(readers), size)] or [[]]


def _whole(bits: list[Any]) -> list[int]:
    return [bit for bit in bits if isinstance(bit, int)]
