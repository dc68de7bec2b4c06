"""The typed form of a liberty library. Every number is in ns, pF, V, pJ, nW or um2.

Internal power. A liberty's internal_power tables hold the energy of one event in
capacitive_load_unit * voltage_unit ** 2, not a power; IHP's SRAM files state the same:
"internal_power unit: 1e-12 * J/toggle = 1 * uW/MHz, (capacitive_load_unit * voltage_unit^2) per
toggle event". The charging of the net at an output is not in it.

Nothing is dropped: a cell whose kind the simulator does not know stays here with the reason in
`unusable`, and is refused when a netlist uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.boolean import Expression
from kvmmu.rtl.gates.tables import Table

__all__ = [
    "Cell",
    "CellKind",
    "ClockGate",
    "FlipFlop",
    "LeakageState",
    "Library",
    "MemoryGroup",
    "Pin",
    "PowerArc",
    "TimingArc",
    "Units",
]

CellKind = str
"""One of combinational, flip_flop, latch, clock_gate, memory, physical, other."""


@dataclass(frozen=True)
class Units:
    """Say what one unit of the library is."""

    time_ns: float
    capacitance_pf: float
    voltage_v: float
    leakage_nw: float

    @property
    def energy_pj(self) -> float:
        """One unit of internal_power: 1 pF * (1 V) ** 2 is 1 pJ."""
        return self.capacitance_pf * self.voltage_v**2


@dataclass(frozen=True)
class PowerArc:
    """Hold one internal_power group of `pin`; energies are pJ an event.

    related is "" where the event is the pin's own transition; when is None where unconditional.
    """

    pin: str
    related: str
    when: Expression | None
    rise_pj: Table
    fall_pj: Table


@dataclass(frozen=True)
class TimingArc:
    """Hold one timing group of `pin`: delay arcs (rise, fall, their transitions) or constraints.

    tables: cell_rise, cell_fall, rise_transition, fall_transition, rise_constraint,
    fall_constraint, those that the file has, in ns. sense is "" where the file says none.
    """

    pin: str
    related: str
    kind: str
    sense: str
    when: Expression | None
    tables: Mapping[str, Table]


@dataclass(frozen=True)
class Pin:
    """Hold one pin, or one bit of a bus.

    bus is the bus's name and bit the bit's number, or "" and 0.
    """

    name: str
    direction: str
    capacitance_pf: float
    function: Expression | None
    is_clock: bool
    is_three_state: bool
    bus: str = ""
    bit: int = 0


@dataclass(frozen=True)
class FlipFlop:
    """Hold the ff group: names of the state and its inverse, what is clocked in and when."""

    state: str
    inverse: str
    next_state: Expression
    clocked_on: Expression
    clear: Expression | None
    preset: Expression | None


@dataclass(frozen=True)
class ClockGate:
    """Name the pins of a clock gating cell: the clock is passed on in cycles that enable opens."""

    clock: str
    enable: str
    output: str


@dataclass(frozen=True)
class LeakageState:
    """Hold one leakage_power group."""

    when: Expression | None
    leakage_nw: float


@dataclass(frozen=True)
class MemoryGroup:
    """Hold the memory group: words is 2 ** address_width; buses by their role."""

    address_width: int
    word_width: int
    read_buses: Mapping[str, str]
    """An output bus -> its address bus."""
    write_buses: Mapping[str, tuple[str, str]]
    """An input bus -> its address bus and clock."""


@dataclass(frozen=True)
class Cell:
    """Hold one cell; `unusable` says why a netlist may not use it, "" where it may.

    A bus's power and timing arcs stand under the name of the bus, or of the bit where the file
    gives them to single bits.
    """

    name: str
    kind: CellKind
    unusable: str
    area_um2: float
    leakage_nw: float
    leakage_states: tuple[LeakageState, ...]
    pins: Mapping[str, Pin]
    power: tuple[PowerArc, ...]
    timing: tuple[TimingArc, ...]
    flip_flop: FlipFlop | None
    clock_gate: ClockGate | None
    memory: MemoryGroup | None
    slew_fraction: float
    """See Library.slew_fraction; kept here as macros come from other files."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input pins in the file's order."""
        return tuple(p.name for p in self.pins.values() if p.direction == "input")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output pins in the file's order."""
        return tuple(p.name for p in self.pins.values() if p.direction == "output")

    def bus_pins(self, bus: str) -> tuple[Pin, ...]:
        """Return the bits of a bus, bit 0 first. Raises SpecError if there is none."""
        found = sorted((p for p in self.pins.values() if p.bus == bus), key=lambda p: p.bit)
        if not found:
            raise SpecError(f"{self.name} must have a bus {bus!r}, got {sorted(self.pins)[:8]}")
        return tuple(found)


@dataclass(frozen=True)
class Library:
    """Hold one library. digest is the SHA-256 of its text."""

    name: str
    source: str
    digest: str
    comment: str
    units: Units
    voltage_v: float
    temperature_c: float
    slew_fraction: float
    """The share of a full swing that a slew in the tables covers: (upper - lower threshold) /
    slew_derate_from_library; a slew of another library is scaled by the ratio of the two."""
    cells: Mapping[str, Cell]

    def cell(self, name: str) -> Cell:
        """Return a usable cell. Raises SpecError if it is unknown or unusable."""
        found = self.cells.get(name)
        if found is None:
            raise SpecError(f"cell must be one of {self.name}, got {name!r}")
        if found.unusable:
            raise SpecError(f"cell must be usable, got {name!r}: {found.unusable}")
        return found
