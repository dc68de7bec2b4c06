"""Yosys JSON to a Netlist: nets, drivers, order; every broken rule is an error."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmmu.errors import SpecError
from kvmmu.rtl.gates.liberty import Cell, Library
from kvmmu.rtl.gates.netlist import (
    ENABLE,
    ONE,
    ZERO,
    ClockGate,
    Memory,
    Netlist,
    gated,
    signal_inputs,
)

__all__ = ["parse_netlist", "read_netlist"]

_Ints = NDArray[np.int64]
_SRAM = re.compile(r"kvmmu_sram_(\d+)x(\d+)m(\d+)")


def read_netlist(path: Path, library: Library, top: str = "") -> Netlist:
    """Read a yosys JSON file. Raises SpecError if it cannot be read or breaks a rule."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"netlist must be a readable file, got {str(path)!r}: {error}") from error
    return parse_netlist(text, library, top)


def parse_netlist(text: str, library: Library, top: str = "") -> Netlist:
    """Parse yosys JSON; top is the module, "" for the one marked top. Raises SpecError."""
    try:
        modules = json.loads(text)["modules"]
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"netlist must be yosys JSON with modules, got {error!r}") from error
    if not top:
        tops = [n for n, m in modules.items() if int(m["attributes"].get("top", "0"), 2)]
        if len(tops) != 1:
            raise SpecError(f"netlist must mark one module top, got {tops}")
        top = tops[0]
    if top not in modules:
        raise SpecError(f"top must be a module of the netlist, got {top!r}")
    return _Builder(modules[top], library).build(top)


class _Builder:
    """Collect nets and drivers, then order the gates."""

    def __init__(self, module: dict[str, Any], library: Library) -> None:
        self.module = module
        self.library = library
        self.ids: dict[int, int] = {}
        self.drivers: dict[int, str] = {ZERO: "constant", ONE: "constant"}
        self.readers: dict[int, str] = {}
        self.clocks: dict[int, str] = {}
        self.nodes: list[tuple[str, Cell, list[int], list[int]]] = []
        self.memories: list[Memory] = []
        self.gates: dict[int, ClockGate] = {}  # by the net of the gated clock
        self.gated: dict[str, Cell] = {}  # one type a cell

    def net(self, bit: int | str, where: str) -> int:
        if bit in ("0", "1"):
            return int(bit)
        if not isinstance(bit, int):
            raise SpecError(f"{where} must not be {bit!r}; run setundef -zero before write_json")
        return self.ids.setdefault(bit, len(self.ids) + 2)

    def drive(self, net: int, where: str) -> int:
        if net in self.drivers:
            raise SpecError(
                f"net {self.net_name(net)!r} must have one driver, "
                f"got {self.drivers[net]} and {where}"
            )
        self.drivers[net] = where
        return net

    def read(self, net: int, where: str) -> int:
        self.readers.setdefault(net, where)
        return net

    def net_name(self, net: int) -> str:
        return self.names().get(net, f"net {net}")

    def names(self) -> dict[int, str]:
        """Name nets by the module's public names first; bit i of a wide wire is name[i]."""
        names: dict[int, str] = {ZERO: "0", ONE: "1"}
        entries = sorted(self.module.get("netnames", {}).items(), key=lambda e: e[1]["hide_name"])
        for name, entry in entries:
            for i, bit in enumerate(entry["bits"]):
                if bit in self.ids:
                    wide = len(entry["bits"]) > 1
                    names.setdefault(self.ids[bit], f"{name}[{i}]" if wide else name)
        return names

    def build(self, top: str) -> Netlist:
        ports: dict[str, dict[str, _Ints]] = {"input": {}, "output": {}}
        for name, port in self.module["ports"].items():
            if port["direction"] not in ports:
                raise SpecError(f"port {name} must be input or output, got {port['direction']!r}")
            nets = [self.net(bit, f"port {name}") for bit in port["bits"]]
            for net in nets:
                if port["direction"] == "input":
                    self.drive(net, f"port {name}")
                else:
                    self.read(net, f"port {name}")
            ports[port["direction"]][name] = np.array(nets, dtype=np.int64)
        for name, cell in self.module["cells"].items():
            self.clock_gate(name, cell)
        for name, cell in self.module["cells"].items():
            self.instance(name, cell)
        for net, where in self.readers.items():
            if net not in self.drivers:
                raise SpecError(f"net {self.net_name(net)!r} must have a driver, read by {where}")
        order = self.topological()
        return self.arrays(top, order, ports)

    def clock_gate(self, name: str, entry: dict[str, Any]) -> None:
        """Note a clock gate, before the flip-flops that it clocks."""
        if self.library.cells.get(entry["type"]) is None:
            return
        if self.library.cells[entry["type"]].kind != "clock_gate":
            return
        cell = self.library.cell(entry["type"])
        pins = cell.clock_gate
        assert pins is not None  # classify() refuses such a cell
        nets = {p: self.net(bits[0], f"{name}.{p}") for p, bits in entry["connections"].items()}
        if set(nets) != {pins.clock, pins.enable, pins.output}:
            raise SpecError(f"clock gate {name!r} must connect {pins}, got {sorted(nets)}")
        self.clocks[self.read(nets[pins.clock], name)] = name
        self.read(nets[pins.enable], name)
        output = self.drive(nets[pins.output], name)
        self.gates[output] = ClockGate(name, cell, nets[pins.enable], 0.0)

    def instance(self, name: str, entry: dict[str, Any]) -> None:
        kind = entry["type"]
        if kind == "$scopeinfo":  # what `flatten` leaves of a hierarchy: no hardware
            return
        if kind in self.library.cells and self.library.cells[kind].kind == "clock_gate":
            return
        sram = _SRAM.fullmatch(kind)
        if sram is not None:
            self.memory(name, entry["connections"], [int(x) for x in sram.groups()])
            return
        if kind not in self.library.cells:
            raise SpecError(
                f"cell {name!r} must be mapped to {self.library.name}, got type {kind!r}; "
                "run techmap, dfflibmap and abc"
            )
        cell = self.library.cell(kind)
        if cell.kind not in ("combinational", "flip_flop"):
            raise SpecError(f"cell {name!r} must be a gate or a flip-flop, got {cell.kind}")
        pins = {
            pin: self.net(bits[0], f"{name}.{pin}") for pin, bits in entry["connections"].items()
        }
        unknown = sorted(set(pins) - set(cell.pins))
        missing = sorted(set(cell.inputs) - set(pins))
        if unknown or missing:
            raise SpecError(
                f"cell {name!r} must connect {list(cell.inputs)}, "
                f"got {sorted(entry['connections'])}"
            )
        if cell.flip_flop is not None:
            clock = cell.flip_flop.clocked_on.text
            net = self.read(pins[clock], name)
            gate = self.gates.get(net)
            if gate is None:
                self.clocks[net] = name
            else:
                load_pf = gate.load_pf + cell.pins[clock].capacitance_pf
                self.gates[net] = replace(gate, load_pf=load_pf)
                if kind not in self.gated:
                    self.gated[kind] = gated(cell)
                cell = self.gated[kind]
                pins[ENABLE] = gate.enable
        inputs = [self.read(pins[pin], name) for pin in signal_inputs(cell)]
        outputs = [self.drive(pins[p], name) if p in pins else -1 for p in cell.outputs]
        self.nodes.append((name, cell, inputs, outputs))

    def memory(self, name: str, connections: dict[str, list[Any]], sizes: list[int]) -> None:
        depth, width, granule = sizes
        if depth < 2 or width < 1 or granule < 1 or width % granule:
            raise SpecError(f"memory {name!r} must have granule | width, got {sizes}")
        wanted = {"clk": 1, "en": 1, "we": 1, "addr": (depth - 1).bit_length()}
        wanted |= {"wdata": width, "wmask": width // granule, "rdata": width}
        got = {port: len(bits) for port, bits in connections.items()}
        if got != wanted:
            raise SpecError(f"memory {name!r} must have ports {wanted}, got {got}")
        nets = {
            port: np.array([self.net(bit, f"{name}.{port}") for bit in bits], dtype=np.int64)
            for port, bits in connections.items()
        }
        for port, bits in nets.items():
            for net in bits:
                if port == "rdata":
                    self.drive(int(net), name)
                else:
                    self.read(int(net), name)
        self.clocks[int(nets["clk"][0])] = name
        self.memories.append(
            Memory(
                name=name,
                depth=depth,
                width=width,
                granule=granule,
                en=int(nets["en"][0]),
                we=int(nets["we"][0]),
                addr=nets["addr"],
                wdata=nets["wdata"],
                wmask=nets["wmask"],
                rdata=nets["rdata"],
            )
        )

    def topological(self) -> list[int]:
        """Order the gates so that each comes after the drivers of its inputs."""
        gates = [i for i, node in enumerate(self.nodes) if node[1].flip_flop is None]
        made_by = {net: i for i in gates for net in self.nodes[i][3]}
        readers: dict[int, list[int]] = {i: [] for i in gates}
        waiting = dict.fromkeys(gates, 0)
        for i in gates:
            for source in (made_by[net] for net in self.nodes[i][2] if net in made_by):
                readers[source].append(i)
                waiting[i] += 1
        order = [i for i in gates if waiting[i] == 0]
        for i in order:  # grows while it is walked
            for reader in readers[i]:
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    order.append(reader)
        if len(order) != len(gates):
            stuck = [self.nodes[i][0] for i in gates if waiting[i]]
            raise SpecError(f"gates must not form a loop, got one through {stuck[:6]}")
        return order

    def arrays(self, top: str, order: list[int], ports: dict[str, dict[str, _Ints]]) -> Netlist:
        order = order + [i for i, n in enumerate(self.nodes) if n[1].flip_flop is not None]
        nodes = [self.nodes[i] for i in order]
        types = list({id(n[1]): n[1] for n in nodes}.values())
        place = {id(cell): i for i, cell in enumerate(types)}
        names = self.names()
        num_nets = len(self.ids) + 2
        return Netlist(
            top=top,
            types=tuple(types),
            node_type=np.array([place[id(n[1])] for n in nodes], dtype=np.int64),
            node_names=tuple(n[0] for n in nodes),
            num_gates=sum(n[1].flip_flop is None for n in nodes),
            in_ptr=np.cumsum([0] + [len(n[2]) for n in nodes], dtype=np.int64),
            in_net=np.array([net for n in nodes for net in n[2]], dtype=np.int64),
            out_ptr=np.cumsum([0] + [len(n[3]) for n in nodes], dtype=np.int64),
            out_net=np.array([net for n in nodes for net in n[3]], dtype=np.int64),
            num_nets=num_nets,
            net_names=tuple(names.get(i, f"net {i}") for i in range(num_nets)),
            inputs=ports["input"],
            outputs=ports["output"],
            clock=self.clock(ports["input"]),
            memories=tuple(self.memories),
            clock_gates=tuple(self.gates.values()),
        )

    def clock(self, inputs: dict[str, _Ints]) -> str:
        """Return the port that clocks everything, "" where nothing is clocked."""
        if not self.clocks:
            return ""
        found = [n for n, nets in inputs.items() if len(nets) == 1 and int(nets[0]) in self.clocks]
        if len(found) != 1 or len(self.clocks) != 1:
            raise SpecError(
                "every flip-flop must be clocked by one input port, "
                f"got {list(self.clocks.values())[:4]}"
            )
        return found[0]
