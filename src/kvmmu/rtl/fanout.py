"""Buffers where a net drives too much: between units, and before the pins of SRAM macros.

ABC sizes gates within a unit and sees neither what other units read nor that one bit of a bank is
a pin on every macro of its rows. A net may be as slow as the smallest buffer that drives 20 of
its like (assumed); a slower one keeps its lightest readers and gives the others to buffers, each
as small as its readers allow, until no net is too slow. The clock and tied nets are left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.liberty import Cell, Library
from kvmmu.rtl.gates.loads import memory_pins
from kvmmu.rtl.gates.macros import Macro, compose
from kvmmu.rtl.gates.netlist import Memory
from kvmmu.rtl.sram_verilog import SRAM_NAME, SramShape

__all__ = ["buffer_nets", "buffers_of", "fastest_load", "slew_allowed"]

_FANOUT = 20
_SLEW_NS = 0.1
"""Slew at which drivers are compared; assumed."""
_MOST_PF = 100.0
_TRANSITIONS = ("rise_transition", "fall_transition")


@dataclass(frozen=True)
class _Reader:
    """Say which bit of which cell's pin reads a net, and its load."""

    load_pf: float
    cell: str
    pin: str
    index: int


@dataclass(frozen=True)
class _Buffer:
    """Hold a buffer, its pins, its input's load and the most that it may drive."""

    cell: Cell
    source: str
    sink: str
    load_pf: float
    most_pf: float


def buffers_of(library: Library) -> tuple[Cell, ...]:
    """Return the buffers of a library, the smallest first."""
    found = [cell for cell in library.cells.values() if not cell.unusable and _is_buffer(cell)]
    return tuple(sorted(found, key=lambda cell: (cell.area_um2, cell.name)))


def _is_buffer(cell: Cell) -> bool:
    if cell.kind != "combinational" or len(cell.inputs) != 1 or len(cell.outputs) != 1:
        return False
    function = cell.pins[cell.outputs[0]].function
    return function is not None and list(function.table(cell.inputs)) == [False, True]


def slew_allowed(library: Library) -> float:
    """Return how slow a net may be, in ns: as the smallest buffer that drives _FANOUT of its like.

    Raises SpecError if the library has no buffer.
    """
    cells = buffers_of(library)
    if not cells:
        raise SpecError(f"liberty must hold a buffer, got {library.name!r} without one")
    first = cells[0]
    pin_pf = first.pins[first.inputs[0]].capacitance_pf
    return _slew(first, first.outputs[0], _FANOUT * pin_pf)


def fastest_load(cell: Cell, pin: str, slew_ns: float) -> float:
    """Return the largest load in pF at which a cell's output is no slower than slew_ns."""
    low, high = 0.0, _MOST_PF
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _slew(cell, pin, middle) <= slew_ns else (low, middle)
    return low


def buffer_nets(module: dict[str, Any], library: Library, macros: Sequence[Macro]) -> int:
    """Add buffers to a flat module of Yosys's JSON in place; return how many.

    A library without a buffer leaves the module as it is. Without macros a bit of a bank loads
    its net like one buffer.
    """
    cells = buffers_of(library)
    return _Pass(module, library, cells, macros).run() if cells else 0


class _Pass:
    """Hold one module, who reads each net and who drives it."""

    def __init__(
        self,
        module: dict[str, Any],
        library: Library,
        cells: Sequence[Cell],
        macros: Sequence[Macro],
    ) -> None:
        self.module = module
        self.library = library
        self.macros = macros
        self.most = lru_cache(maxsize=None)(self._most)
        self.slew_ns = slew_allowed(library)
        self.buffers: list[_Buffer] = []
        for buffer in map(self._buffer, cells):  # one that is larger and no stronger is of no use
            if not self.buffers or buffer.most_pf > self.buffers[-1].most_pf:
                self.buffers.append(buffer)
        self.readers: dict[int, list[_Reader]] = defaultdict(list)
        self.drivers: dict[int, tuple[str, str]] = {}
        self.next_bit = 1 + max(_bits(module))
        self.added = 0

    def _buffer(self, cell: Cell) -> _Buffer:
        source, sink = cell.inputs[0], cell.outputs[0]
        load = cell.pins[source].capacitance_pf
        return _Buffer(cell, source, sink, load, self.most(cell.name, sink))

    def _most(self, name: str, pin: str) -> float:
        """Return the largest load at which a cell's output is fast enough, in pF."""
        return fastest_load(self.library.cells[name], pin, self.slew_ns)

    def run(self) -> int:
        self._collect()
        for bit in sorted(self.readers):
            driver = self.drivers.get(bit)
            if driver is None:
                self._relieve(bit, self.buffers[0].most_pf, "")
                continue
            name, pin = driver
            cell = self.library.cells.get(self.module["cells"][name]["type"])
            if cell is not None and cell.inputs:
                self._relieve(bit, self.most(cell.name, pin), name.rpartition(".")[0])
        return self.added

    def _collect(self) -> None:
        """Find readers and drivers; the clock's readers are left out."""
        for name, cell in sorted(self.module["cells"].items()):
            loads = self._loads(cell)
            for pin, bits in cell["connections"].items():
                for index, bit in enumerate(bits):
                    if not isinstance(bit, int):
                        continue
                    if cell["port_directions"][pin] == "output":
                        self.drivers[bit] = name, pin
                    elif (pin, index) in loads:
                        reader = _Reader(loads[pin, index], name, pin, index)
                        self.readers[bit].append(reader)

    def _loads(self, cell: Mapping[str, Any]) -> Mapping[tuple[str, int], float]:
        """Map (pin, bit) to its load, clock pins left out. Raises SpecError for other cells."""
        if SRAM_NAME.fullmatch(cell["type"]):
            return self._sram_loads(cell["type"])
        known = self.library.cell(cell["type"])
        clock = "" if known.flip_flop is None else known.flip_flop.clocked_on.text
        if known.clock_gate is not None:
            clock = known.clock_gate.clock
        return {(pin, 0): known.pins[pin].capacitance_pf for pin in known.inputs if pin != clock}

    def _sram_loads(self, name: str) -> dict[tuple[str, int], float]:
        shape = SramShape.of(name)
        places = _sram_places(shape)
        if not self.macros:
            return dict.fromkeys(places, self.buffers[0].load_pf)
        ids = {place: number for number, place in enumerate(places)}

        def port(pin: str) -> Any:
            return np.array([number for (other, _), number in ids.items() if other == pin])

        memory = Memory(
            name, shape.depth, shape.width, shape.granule,
            en=ids["en", 0], we=ids["we", 0], addr=port("addr"), wdata=port("wdata"),
            wmask=port("wmask"), rdata=np.full(shape.width, -1),
        )  # fmt: skip
        loads = dict.fromkeys(places, 0.0)
        for pin in memory_pins(memory, compose(shape.depth, shape.width, self.macros)):
            if pin.role != "DOUT":
                loads[places[pin.net]] += pin.copies * pin.capacitance_pf
        return loads

    def _relieve(self, bit: int, most_pf: float, unit: str) -> None:
        """Give readers to buffers until the net's driver is fast enough."""
        readers = sorted(self.readers[bit], key=lambda r: (r.load_pf, r.cell, r.pin, r.index))
        while sum(reader.load_pf for reader in readers) > most_pf:
            kept, groups = self._share(readers, most_pf)
            if all(self._is_idle(group) for group in groups):
                break  # buffers would load the driver no less than what they relieve
            added = [self._add(group, bit, unit) for group in groups]
            readers = sorted([*kept, *added], key=lambda r: (r.load_pf, r.cell, r.pin, r.index))

    def _share(
        self, readers: Sequence[_Reader], most_pf: float
    ) -> tuple[list[_Reader], list[list[_Reader]]]:
        """Keep the lightest readers, and put the others in groups for one buffer each."""
        largest = self.buffers[-1].most_pf
        for count in range(len(readers), -1, -1):
            groups = _groups(readers[count:], largest)
            load = sum(reader.load_pf for reader in readers[:count])
            load += sum(self._fitting(group).load_pf for group in groups)
            if load <= most_pf:
                return list(readers[:count]), groups
        return [], _groups(readers, largest)

    def _is_idle(self, group: Sequence[_Reader]) -> bool:
        return len(group) == 1 and self._fitting(group).load_pf >= group[0].load_pf

    def _fitting(self, group: Sequence[_Reader]) -> _Buffer:
        """Return the smallest buffer that drives a group; the strongest if none does."""
        load = sum(reader.load_pf for reader in group)
        return next((b for b in self.buffers if b.most_pf >= load), self.buffers[-1])

    def _add(self, group: Sequence[_Reader], source: int, unit: str) -> _Reader:
        """Put a buffer between a net and a group of its readers."""
        buffer = self._fitting(group)
        name = f"{unit}.fan{self.added}" if unit else f"fan{self.added}"
        sink = self.next_bit
        self.next_bit += 1
        self.added += 1
        self.module["cells"][name] = {
            "hide_name": 0,
            "type": buffer.cell.name,
            "parameters": {},
            "attributes": {},
            "port_directions": {buffer.source: "input", buffer.sink: "output"},
            "connections": {buffer.source: [source], buffer.sink: [sink]},
        }
        self.module["netnames"][f"{name}_net"] = {"hide_name": 0, "bits": [sink], "attributes": {}}
        for reader in group:
            self.module["cells"][reader.cell]["connections"][reader.pin][reader.index] = sink
        return _Reader(buffer.load_pf, name, buffer.source, 0)


def _groups(readers: Sequence[_Reader], most_pf: float) -> list[list[_Reader]]:
    """Fill groups in order up to a load; a reader that is heavier stands alone."""
    groups: list[list[_Reader]] = []
    load = most_pf
    for reader in readers:
        load += reader.load_pf
        if load > most_pf or not groups:
            groups.append([])
            load = reader.load_pf
        groups[-1].append(reader)
    return groups


def _sram_places(shape: SramShape) -> list[tuple[str, int]]:
    """List the bits of a bank's inputs."""
    sizes = {
        "en": 1,
        "we": 1,
        "addr": (shape.depth - 1).bit_length(),
        "wdata": shape.width,
        "wmask": shape.width // shape.granule,
    }
    return [(pin, index) for pin, size in sizes.items() for index in range(size)]


def _slew(cell: Cell, pin: str, load_pf: float) -> float:
    """Return the largest slew of a cell's output at a load. Raises SpecError without a table."""
    found = [
        float(arc.tables[name].at(slew=_SLEW_NS, load=load_pf))
        for arc in cell.timing
        if arc.pin == pin
        for name in _TRANSITIONS
        if name in arc.tables
    ]
    if not found:
        raise SpecError(f"{cell.name}.{pin} must have a transition table, got none")
    return max(found)


def _bits(module: Mapping[str, Any]) -> Iterator[int]:
    """Yield every net's number."""
    holders = [*module["ports"].values(), *module["netnames"].values()]
    for holder in holders:
        yield from (bit for bit in holder["bits"] if isinstance(bit, int))
    for cell in module["cells"].values():
        for bits in cell["connections"].values():
            yield from (bit for bit in bits if isinstance(bit, int))
