"""Liberty groups to the typed library; units are applied here, once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.boolean import Expression, parse_expression
from kvmmu.rtl.gates.liberty import (
    Cell,
    FlipFlop,
    LeakageState,
    Library,
    MemoryGroup,
    Pin,
    PowerArc,
    TimingArc,
    Units,
)
from kvmmu.rtl.gates.liberty_kinds import classify, clock_gate_pins
from kvmmu.rtl.gates.liberty_syntax import Group, parse_groups, read_text
from kvmmu.rtl.gates.liberty_units import read_number, read_slew_fraction, read_units
from kvmmu.rtl.gates.tables import AXES, Table, scalar_table

__all__ = ["parse_library", "read_library"]

_TIMING_TABLES = frozenset(
    f"{edge}_{kind}" for edge in ("rise", "fall") for kind in ("transition", "constraint")
) | {"cell_rise", "cell_fall"}


def read_library(path: Path) -> Library:
    """Read a .lib, .lib.gz or .lib.xz. Raises SpecError naming file, cell and rule."""
    return parse_library(read_text(path), path.name)


def parse_library(text: str, source: str) -> Library:
    """Parse a library's text; source is what errors and reports call it."""
    group = parse_groups(text, source)
    context = _Context(
        source=source,
        units=read_units(group, source),
        templates={g.name: g for g in group.children("lu_table_template", "power_lut_template")},
        types={g.name: g for g in group.children("type")},
        input_capacitance=read_number(group, "default_input_pin_cap", source, 0.0),
        output_capacitance=read_number(group, "default_output_pin_cap", source, 0.0),
        leakage=read_number(group, "default_cell_leakage_power", source, 0.0),
        slew_fraction=read_slew_fraction(group, source),
    )
    cells = [context.cell(child) for child in group.children("cell")]
    return Library(
        name=group.name,
        source=source,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        comment=f"{group.values.get('comment', '')} revision {group.values.get('revision', '')}",
        units=context.units,
        voltage_v=read_number(group, "nom_voltage", source, None),
        temperature_c=read_number(group, "nom_temperature", source, None),
        slew_fraction=context.slew_fraction,
        cells={cell.name: cell for cell in cells},
    )


def _floats(texts: tuple[str, ...]) -> list[float]:
    return [float(word) for text in texts for word in re.split(r"[\s,]+", text.strip()) if word]


@dataclass(frozen=True)
class _Context:
    """Hold what a library says once for all its cells."""

    source: str
    units: Units
    templates: dict[str, Group]
    types: dict[str, Group]
    input_capacitance: float
    output_capacitance: float
    leakage: float
    slew_fraction: float

    def cell(self, group: Group) -> Cell:
        try:
            return self._cell(group)
        except (SpecError, ValueError) as error:
            raise SpecError(f"{self.source}, cell {group.name}: {error}") from error

    def _cell(self, group: Group) -> Cell:
        pins: dict[str, Pin] = {}
        power: list[PowerArc] = []
        timing: list[TimingArc] = []
        for owner, name, spans in self._owners(group):
            if spans:
                for pin in self._pins(owner, name):
                    pins[pin.name] = pin
            for inner in owner.children("internal_power"):
                power.extend(self._power(inner, name))
            for inner in owner.children("timing"):
                timing.extend(self._timing(inner, name))
        kind, unusable = classify(group, pins)
        leakage_unit = self.units.leakage_nw
        return Cell(
            name=group.name,
            kind=kind,
            unusable=unusable,
            area_um2=read_number(group, "area", group.name, 0.0),
            leakage_nw=read_number(group, "cell_leakage_power", group.name, self.leakage)
            * leakage_unit,
            leakage_states=tuple(
                LeakageState(
                    when=_optional(state.values.get("when")),
                    leakage_nw=read_number(state, "value", group.name, None) * leakage_unit,
                )
                for state in group.children("leakage_power")
            ),
            pins=pins,
            power=tuple(power),
            timing=tuple(timing),
            flip_flop=_flip_flop(group),
            clock_gate=clock_gate_pins(group) if kind == "clock_gate" else None,
            memory=_memory(group),
            slew_fraction=self.slew_fraction,
        )

    def _owners(self, group: Group) -> Iterator[tuple[Group, str, bool]]:
        """Yield what holds pins and arcs: group, name, whether it makes pins.

        pin(X[9:0]) inside bus(X) speaks of the whole bus, pin(X[3]) of one bit.
        """
        for owner in group.children("pin"):
            for name in owner.arguments:
                yield owner, name, True
        for bus in group.children("bus"):
            yield bus, bus.name, True
            for pin in bus.children("pin"):
                yield pin, pin.name.split("[")[0] if ":" in pin.name else pin.name, False

    def _pins(self, owner: Group, name: str) -> Iterator[Pin]:
        if owner.kind == "pin":
            yield self._pin(owner, owner, name, "", 0)
            return
        kind = self.types.get(owner.values.get("bus_type", ""))
        if kind is None:
            raise SpecError(f"bus {name} must name a type of the library")
        ends = (int(kind.values["bit_from"]), int(kind.values["bit_to"]))
        single = {pin.name: pin for pin in owner.children("pin")}
        for bit in range(min(ends), max(ends) + 1):
            bit_name = f"{name}[{bit}]"
            yield self._pin(single.get(bit_name, owner), owner, bit_name, name, bit)

    def _pin(self, group: Group, bus_group: Group, name: str, bus: str, bit: int) -> Pin:
        direction = group.values.get("direction", bus_group.values.get("direction", ""))
        if direction not in ("input", "output", "inout", "internal"):
            raise SpecError(f"pin {name} must have a direction, got {direction!r}")
        default = self.output_capacitance if direction == "output" else self.input_capacitance
        default = read_number(bus_group, "capacitance", name, default)
        return Pin(
            name=name,
            direction=direction,
            capacitance_pf=read_number(group, "capacitance", name, default)
            * self.units.capacitance_pf,
            function=_optional(group.values.get("function")),
            is_clock=group.values.get("clock") == "true",
            is_three_state="three_state" in group.values,
            bus=bus,
            bit=bit,
        )

    def _power(self, group: Group, pin: str) -> Iterator[PowerArc]:
        """Yield an arc a related pin; a missing rise_power or fall_power is no energy."""
        energy = self.units.energy_pj
        both = next(group.children("power"), None)
        tables = []
        for kind in ("rise_power", "fall_power"):
            found = next(group.children(kind), both)
            tables.append(scalar_table(0.0) if found is None else self._table(found, energy))
        for related in group.values.get("related_pin", "").split() or [""]:
            yield PowerArc(
                pin=pin,
                related=related,
                when=_optional(group.values.get("when")),
                rise_pj=tables[0],
                fall_pj=tables[1],
            )

    def _timing(self, group: Group, pin: str) -> Iterator[TimingArc]:
        tables = {
            inner.kind: self._table(inner, self.units.time_ns)
            for inner in group.groups
            if inner.kind in _TIMING_TABLES
        }
        for related in group.values.get("related_pin", "").split() or [""]:
            yield TimingArc(
                pin=pin,
                related=related,
                kind=group.values.get("timing_type", "combinational"),
                sense=group.values.get("timing_sense", ""),
                when=_optional(group.values.get("when")),
                tables=tables,
            )

    def _table(self, group: Group, unit: float) -> Table:
        values = group.list_of("values")
        if values is None:
            raise SpecError(f"line {group.line}: {group.kind} must have values")
        numbers = np.array(_floats(values)) * unit
        if group.name == "scalar":
            if numbers.shape != (1,):
                raise SpecError(f"line {group.line}: a scalar must have one value, got {numbers}")
            return scalar_table(float(numbers[0]))
        template = self.templates.get(group.name)
        if template is None:
            raise SpecError(f"line {group.line}: template must be known, got {group.name!r}")
        axes: list[str] = []
        index: list[tuple[float, ...]] = []
        for place in ("1", "2", "3"):
            variable = template.values.get(f"variable_{place}")
            if variable is None:
                break
            points = group.list_of(f"index_{place}") or template.list_of(f"index_{place}") or ()
            axis = AXES.get(variable, variable)  # an unknown one is refused when looked up
            scale = self.units.capacitance_pf if axis == "load" else self.units.time_ns
            axes.append(axis)
            index.append(tuple(x * scale for x in _floats(points)))
        shape = tuple(len(points) for points in index)
        if numbers.size != np.prod(shape):
            raise SpecError(f"line {group.line}: values must be {shape}, got {numbers.size}")
        return Table(axes=tuple(axes), index=tuple(index), values=numbers.reshape(shape))


def _optional(text: str | None) -> Expression | None:
    return None if text is None else parse_expression(text)


def _flip_flop(group: Group) -> FlipFlop | None:
    found = next(group.children("ff"), None)
    if found is None or len(found.arguments) != 2:
        return None
    if "next_state" not in found.values or "clocked_on" not in found.values:
        raise SpecError("ff must have next_state and clocked_on")
    return FlipFlop(
        state=found.arguments[0],
        inverse=found.arguments[1],
        next_state=parse_expression(found.values["next_state"]),
        clocked_on=parse_expression(found.values["clocked_on"]),
        clear=_optional(found.values.get("clear")),
        preset=_optional(found.values.get("preset")),
    )


def _memory(group: Group) -> MemoryGroup | None:
    found = next(group.children("memory"), None)
    if found is None:
        return None
    reads: dict[str, str] = {}
    writes: dict[str, tuple[str, str]] = {}
    for bus in group.children("bus"):
        for read in bus.children("memory_read"):
            reads[bus.name] = read.values.get("address", "")
        for write in bus.children("memory_write"):
            writes[bus.name] = (write.values.get("address", ""), write.values.get("clocked_on", ""))
    return MemoryGroup(
        address_width=int(read_number(found, "address_width", group.name, None)),
        word_width=int(read_number(found, "word_width", group.name, None)),
        read_buses=reads,
        write_buses=writes,
    )
